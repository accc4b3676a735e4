"""A checkpoint's tokenizer and, where it sees, its processor: text and messages to tokens, and back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from step3 import model
from step3.engine.detokenizer import TokenTable
from step3.engine.plain_tokenizer import PlainTokenizer
from step3.engine.request import RequestError
from step3.errors import Step3Error

if TYPE_CHECKING:
    from step3.model.image_processing_step3 import Step3ImageProcessor
    from step3.model.processing_step3 import Step3Processor

MARKS = ("<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>")


class Tokens:
    """What turns text and chats into token ids, and ids into bytes.

    Attributes:
        processor: for pictures, or None for a checkpoint that does not see.
        table: the bytes of each token.
        marks: ids of the tokens that stand around pictures, by name.
        reasoning: ids of `<think>` and `</think>`, or None where the tokenizer has none.
    """

    def __init__(
        self,
        tokenizer: Any,
        processor: Step3Processor | None,
        chat_template: str | None = None,
        whole: Callable[[], Any] | None = None,
    ) -> None:
        """
        Args:
            tokenizer: Transformers' fast tokenizer, or a `PlainTokenizer`.
            chat_template: Jinja text.
            whole: reads Transformers' tokenizer where `tokenizer` is a plain one.
        """
        self._plain, self.processor, self._whole = tokenizer, processor, whole
        self.table = TokenTable.of(tokenizer)
        self.marks: dict[str, int] = {}
        if processor is not None:
            self.marks = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}
        vocabulary = tokenizer.get_vocab()
        self.reasoning: tuple[int, int] | None = None
        if "<think>" in vocabulary and "</think>" in vocabulary:
            self.reasoning = vocabulary["<think>"], vocabulary["</think>"]
        self._chat_template = chat_template

    @classmethod
    def load(
        cls, folder: Path, sees: bool, tokenizer: str | None = None, chat_template: str | None = None
    ) -> Tokens:
        """Reads a checkpoint's tokenizer files.

        Args:
            sees: whether the checkpoint has a vision tower.
            tokenizer: another folder to read them from.
            chat_template: Jinja text, or the path of a file with it.

        Raises:
            Step3Error: there is no tokenizer, or not one of Step3's kind.
        """
        source = tokenizer or str(folder)
        template = _read_template(chat_template)
        if sees:
            processor = _read_processor(folder, tokenizer)
            return cls(processor.tokenizer, processor, template)
        plain = PlainTokenizer.read(Path(source))
        if plain is not None:
            return cls(plain, None, template, lambda: _read_fast_tokenizer(source))
        return cls(_read_tokenizer(source), None, template)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """Transformers' fast tokenizer, which is read when it is first asked for."""
        return self._plain if self._whole is None else self._whole()

    @property
    def image_processor(self) -> Step3ImageProcessor | None:
        return None if self.processor is None else self.processor.image_processor

    @property
    def eos_token_id(self) -> int | None:
        return self._plain.eos_token_id

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt; special tokens are understood, and the first of them is not doubled."""
        bos = self._plain.bos_token
        has_start = bool(bos) and text.startswith(bos)
        return self._plain.encode(text, add_special_tokens=not has_start)

    def encode_plain(self, text: str) -> list[int]:
        """The ids of a text alone, with nothing put before or behind it."""
        return self._plain.encode(text, add_special_tokens=False)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_kwargs: Any,
    ) -> tuple[str, list[Any]]:
        """A conversation as a prompt, and its pictures in order.

        Raises:
            Step3Error: malformed messages, a typed `<im_patch>`, or pictures for a model that cannot see.
        """
        from step3.model.messages import forbid_image_token, normalise, pictures_of

        conversation = [normalise(message, turn) for turn, message in enumerate(messages)]
        if not conversation:
            raise RequestError("a conversation has no messages: give at least one")
        pictures = list(pictures_of(conversation))
        options: dict[str, Any] = {
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            **template_kwargs,
        }
        template = _read_template(chat_template) or self._chat_template
        if self.processor is not None:
            text = self.processor.apply_chat_template(conversation, chat_template=template, **options)
            return text, pictures
        if pictures:
            raise RequestError("this checkpoint has no vision tower: leave the pictures out of the messages")
        for tool in tools or ():
            if not callable(tool):
                forbid_image_token(tool, "a tool")
        template = template or self.tokenizer.chat_template or _default_template()
        text = self.tokenizer.apply_chat_template(
            conversation, chat_template=template, tokenize=False, **options
        )
        return text, pictures


def _read_processor(folder: Path, tokenizer: str | None) -> Step3Processor:
    from transformers import PreTrainedTokenizerFast

    from step3.model.processing_step3 import Step3Processor

    with _told(tokenizer or str(folder)):
        processor = Step3Processor.from_pretrained(str(folder))
        if tokenizer is not None:
            processor.tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer)
        return processor


def _read_tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    with _told(source):
        try:
            return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except ValueError:  # a class that only other releases of Transformers have
            return _read_fast_tokenizer(source)


def _read_fast_tokenizer(source: str) -> Any:
    """Without the model's configuration, whose import takes seconds."""
    from transformers import PreTrainedTokenizerFast

    with _told(source):
        return PreTrainedTokenizerFast.from_pretrained(source)


@contextmanager
def _told(source: str) -> Iterator[None]:
    """Errors of reading say what could not be read."""
    try:
        yield
    except OSError as error:
        raise Step3Error(f"{source}: no tokenizer can be read here: {error}") from None


def _default_template() -> str:
    return (Path(model.__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")


def _read_template(given: str | None) -> str | None:
    """Jinja text, or what the file of that name holds."""
    if given is None or "{" in given or "\n" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except OSError as error:
        raise Step3Error(f"chat template {given}: neither Jinja text nor a readable file ({error})") from None
