"""Text and pictures into the network's input: `<im_patch>` expanded, tokens, pixels."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from step3.errors import Step3Error
from step3.model.checkpoint_json import HUB_KWARGS, read_json
from step3.model.image_processing_step3 import Step3ImageProcessor
from step3.model.messages import (
    IMAGE_TOKEN,
    Message,
    PromptError,
    forbid_image_token,
    normalise,
    pictures_of,
)
from step3.model.pictures import Picture, flatten_pictures

_MARKS = ("<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>")
_LONGEST = 65536  # tokens of the longest prompt
_CALL_KWARGS = ("padding", "padding_side", "truncation", "max_length", "pad_to_multiple_of", "do_crop")
_CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


class Step3Processor(ProcessorMixin):
    """Tokenizer and image processor in one.

    Args:
        image_processor: cuts and normalises the pictures.
        tokenizer: the checkpoint's; must know `<im_patch>` and the marks around pictures.
        chat_template: Jinja text, or several by name; else the tokenizer's, else the one that step3 brings.
        image_token_len, patch_token_len: features of a whole picture and of a crop.

    Raises:
        Step3Error: the tokenizer lacks a token, or a length cannot be.
    """

    attributes = ["image_processor", "tokenizer"]  # noqa: RUF012 (Transformers 4 reads it)
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor: Step3ImageProcessor,
        tokenizer: Any,
        chat_template: str | dict[str, str] | None = None,
        image_token_len: int = 169,
        patch_token_len: int = 81,
    ) -> None:
        template = chat_template or getattr(tokenizer, "chat_template", None)
        super().__init__(
            image_processor, tokenizer, chat_template=template or _CHAT_TEMPLATE.read_text(encoding="utf-8")
        )
        for name, length in (("image_token_len", image_token_len), ("patch_token_len", patch_token_len)):
            if type(length) is not int or not 1 <= length <= _LONGEST:
                raise Step3Error(
                    f"processor: {name} must be a whole number from 1 to {_LONGEST}, found {length!r}"
                )
        self.image_token_len = image_token_len
        self.patch_token_len = patch_token_len
        self.image_token = IMAGE_TOKEN
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in (IMAGE_TOKEN, *_MARKS) if token not in vocabulary]
        if missing:
            raise Step3Error(
                f"the tokenizer has no token {missing[0]}: it is not the tokenizer of a Step3 that sees"
            )
        self.image_token_id = vocabulary[IMAGE_TOKEN]

    @property
    def model_input_names(self) -> list[str]:
        """Everything that `__call__` can give."""
        return ["input_ids", "attention_mask", *self.image_processor.model_input_names]

    def __call__(
        self,
        images: Picture | Sequence[Any] | None = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = None,
        do_crop: bool | None = None,
        **text_kwargs: Any,
    ) -> BatchFeature:
        """Tokenises prompts and processes their pictures.

        Args:
            images: pictures for the `<im_patch>`es of `text`, in order: one, a list, or a list of lists with
                one list for each text.
            text: one prompt or several, with one `<im_patch>` for each picture.
            return_tensors: "pt", "np" or None for lists of tokens.
            do_crop: instead of the image processor's own.
            **text_kwargs: the tokenizer's: padding, padding_side, truncation, max_length, ... By default
                no token is added where the first prompt already begins with the first token.

        Returns:
            input_ids, attention_mask: int64 [texts, tokens], each `<im_patch>` expanded; and for the pictures
            what `Step3ImageProcessor.preprocess` gives, in the order of their `<im_patch>`es.

        Raises:
            PromptError: a text and its pictures differ in number, or truncation cuts a picture.
            PictureError: a picture cannot be read or is too large.
        """
        if text is None and images is None:
            raise PromptError("give text, images or both")
        pictures = [] if images is None else flatten_pictures(images)
        texts = [] if text is None else [text] if isinstance(text, str) else list(text)
        if not all(isinstance(one, str) for one in texts):
            raise PromptError("text must be one string or a list of strings")
        if text is not None:
            _check_counts(texts, images, len(pictures))
        features: dict[str, Any] = {}
        if pictures:
            features = dict(self.image_processor(pictures, do_crop=do_crop, return_tensors=return_tensors))
        if text is None:
            return BatchFeature(features)
        expansions = iter(self._expansions(features))
        expanded = [_replace_each(one, IMAGE_TOKEN, lambda: next(expansions)) for one in texts]
        if self.tokenizer.bos_token and texts and texts[0].startswith(self.tokenizer.bos_token):
            text_kwargs.setdefault("add_special_tokens", False)
        text_kwargs.setdefault("return_token_type_ids", False)
        tokens = self.tokenizer(expanded, return_tensors=return_tensors, **text_kwargs)
        for row, (ids, one) in enumerate(zip(tokens["input_ids"], expanded, strict=True)):
            if np.count_nonzero(np.asarray(ids) == self.image_token_id) != one.count(IMAGE_TOKEN):
                raise PromptError(
                    f"truncation cuts a picture of text {row}: raise max_length or give fewer pictures"
                )
        return BatchFeature({**tokens, **features})

    def _expansions(self, features: Mapping[str, Any]) -> Iterator[str]:
        """What each picture's `<im_patch>` becomes: its crops, then the whole picture."""
        if not features:
            return
        ends_row = iter(features["patch_newline_mask"].tolist())
        crop = f"<patch_start>{IMAGE_TOKEN * self.patch_token_len}<patch_end>"
        whole = f"<im_start>{IMAGE_TOKEN * self.image_token_len}<im_end>"
        for num_crops in features["num_patches"].tolist():
            yield "".join(crop + "<patch_newline>" * next(ends_row) for _ in range(num_crops)) + whole

    def num_image_tokens(self, width: int, height: int, do_crop: bool | None = None) -> int:
        """Tokens that a picture of this size takes in a prompt, without looking at its pixels."""
        plan = self.image_processor.plan(width, height, do_crop=do_crop)
        return plan.num_tokens(self.image_token_len, self.patch_token_len)

    def apply_chat_template(
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        documents: Sequence[Mapping[str, str]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Renders messages as a prompt and, with `tokenize`, processes it together with its pictures.

        A picture given as text is opened as a path or downloaded: in messages of people you do not trust, put
        pictures that you have read yourself.

        Args:
            conversation: messages with `role` and `content`; content is text, or a list of
                `{"type": "text", "text": ...}` and `{"type": "image", "image": ...}` with any picture that
                `__call__` takes (or "url", "path", "base64", or OpenAI's `image_url`). Or a list of
                conversations, for a batch.
            chat_template: Jinja text or the name of one of the processor's templates.
            tools: JSON schemas or documented Python functions.
            add_generation_prompt: end with the beginning of the assistant's turn.
            continue_final_message: leave the last turn open.
            tokenize, return_dict: give what `__call__` gives; only `input_ids` without `return_dict`.
            processor_kwargs: passed to `__call__`.
            **kwargs: those that `__call__` knows (padding, padding_side, truncation, max_length,
                pad_to_multiple_of, do_crop) go there, all others are variables of the template.

        Raises:
            PromptError: a text contains a literal `<im_patch>`, which would claim a picture; or a message or
                a tool call is malformed.
            PictureError: a picture cannot be read or is too large.
        """
        if kwargs.get("return_assistant_tokens_mask"):
            raise PromptError(
                "return_assistant_tokens_mask is not supported: to find where an answer begins, render the "
                "conversation without it and with add_generation_prompt"
            )
        batched = bool(conversation) and isinstance(conversation[0], list | tuple)
        given: Any = conversation if batched else [conversation]
        conversations = [[normalise(message, turn) for turn, message in enumerate(one)] for one in given]
        if not all(conversations):
            raise PromptError("a conversation has no messages: give at least one")
        for mapping in (*(tools or ()), *(documents or ())):
            if not callable(mapping):
                forbid_image_token(mapping, "a tool or document")
        call = {name: kwargs.pop(name) for name in _CALL_KWARGS if name in kwargs}
        prompts = [
            self.tokenizer.apply_chat_template(
                messages,
                chat_template=self._template(chat_template),
                tools=list(tools) if tools else None,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=False,
                **kwargs,
            )
            for messages in conversations
        ]
        pictures = [list(pictures_of(messages)) for messages in conversations]
        for prompt, own in zip(prompts, pictures, strict=True):
            if prompt.count(IMAGE_TOKEN) != len(own):
                raise PromptError(
                    f"the chat template made {prompt.count(IMAGE_TOKEN)} {IMAGE_TOKEN} for {len(own)} "
                    f"pictures: it is not for pictures, or a variable given to it contains {IMAGE_TOKEN}"
                )
        if not tokenize:
            return prompts if batched else prompts[0]
        inputs = self(
            images=pictures if any(pictures) else None,
            text=prompts,
            return_tensors=return_tensors,
            **call,
            **(processor_kwargs or {}),
        )
        return inputs if return_dict else inputs["input_ids"]

    def _template(self, wanted: str | None) -> str:
        own = self.chat_template
        if isinstance(own, str):
            return wanted or own
        if wanted is not None and wanted not in own:
            return wanted
        name = wanted or "default"
        if name not in own:
            raise PromptError(
                f"the chat templates are named {', '.join(own)}: choose one with chat_template="
            )
        return own[name]

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """The tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """The tokenizer's `decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    @classmethod
    def get_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The processor's fields; `config.json` has the last word on the features per picture."""
        hub = {name: kwargs[name] for name in HUB_KWARGS if name in kwargs}
        model = read_json(pretrained_model_name_or_path, "config.json", **hub)
        fields, kwargs = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        lengths = {name: model[name] for name in ("image_token_len", "patch_token_len") if name in model}
        # Transformers 4.54 would take these fields, nested by Transformers 5, for the image processor.
        fields.pop("image_processor", None)
        return {**fields, **lengths}, kwargs

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        kwargs.pop("trust_remote_code", None)
        image_processor = Step3ImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                pretrained_model_name_or_path, trust_remote_code=False, **kwargs
            )
        except ValueError:
            # tokenizer_config.json names a class that only other releases of Transformers have.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, **kwargs)
        # Code that is never imported is not pointed to when the processor is saved.
        tokenizer.init_kwargs.pop("auto_map", None)
        return [image_processor, tokenizer]


def _check_counts(texts: Sequence[str], images: Any, total: int) -> None:
    asked = [text.count(IMAGE_TOKEN) for text in texts]
    if isinstance(images, list | tuple) and images and all(isinstance(own, list | tuple) for own in images):
        if len(images) != len(texts):
            raise PromptError(
                f"{len(texts)} texts, but lists of pictures for {len(images)}: give each text its list"
            )
        for row, (want, own) in enumerate(zip(asked, images, strict=True)):
            got = len(flatten_pictures(own))
            if want != got:
                raise PromptError(f"text {row} has {want} {IMAGE_TOKEN}, but {got} pictures are given for it")
    if sum(asked) != total:
        raise PromptError(f"the text has {sum(asked)} {IMAGE_TOKEN}, but {total} pictures are given")


def _replace_each(text: str, token: str, replacement: Callable[[], str]) -> str:
    first, *rest = text.split(token)
    return first + "".join(replacement() + part for part in rest)
