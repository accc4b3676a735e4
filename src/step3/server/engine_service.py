"""What the HTTP process can ask of the engine: prompts into answers, text into tokens and back."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from jinja2 import TemplateError
from PIL import Image

from step3.cluster.async_llm import ClusterLLM
from step3.cluster.config import wants_cluster
from step3.engine.async_llm import AsyncLLM
from step3.engine.detokenizer import TokenTable
from step3.engine.outputs import CompletionOutput, Logprob, RequestOutput
from step3.engine.request import RequestError
from step3.engine.sampling.params import RequestOutputKind, SamplingParams
from step3.engine.sampling.tool_grammar import tool_call_form
from step3.errors import Step3Error
from step3.model.pictures import FORMATS, PictureError
from step3.server.literal_text import LiteralText
from step3.server.reasoning import THINK, THINK_END
from step3.server.tool_calls import CALL_END

_ONE_THREAD_BYTES = 64 << 20
"""Weights under this are read so fast that a second thread costs more, waited for at every operation, than it
gives: the HTTP process and clients want the other cores."""

_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class EngineService:
    """An engine and its tokenizer behind methods that take and give what msgpack can carry."""

    def __init__(self, options: Mapping[str, Any], max_waiting: int, max_pixels: int) -> None:
        """
        Args:
            options: of `step3.engine.config.EngineConfig`, and of `step3.cluster.config.ClusterConfig` for
                more than one process.
            max_waiting: requests that may wait.
            max_pixels: largest width × height of a picture.
        """
        kind = ClusterLLM if wants_cluster(options) else AsyncLLM
        self._llm: AsyncLLM | ClusterLLM = kind(**options, max_waiting=max_waiting)
        is_small = self._llm.config.device == "cpu" and self._llm.memory.weights < _ONE_THREAD_BYTES
        if is_small and isinstance(self._llm, AsyncLLM):
            self._llm.set_threads(1)
        self._tokenizer = self._llm.get_tokenizer()
        self._table = TokenTable.of(self._tokenizer)
        self._text = LiteralText(self._tokenizer)
        self._max_pixels = max_pixels
        self._max_characters = max(map(len, self._table.tokens)) * self._llm.memory.max_model_len
        recommended = self._llm.get_default_sampling_params()
        self._defaults = {name: getattr(recommended, name) for name in _DEFAULTS}
        self._think, self._end_think, self._end_call = map(self._id, (THINK, THINK_END, CALL_END))
        self.methods: dict[str, Callable[[Any], AsyncGenerator[Any, None]]] = {
            "chat": self.chat,
            "complete": self.complete,
            "tokenize": self.tokenize,
            "count_tokens": self.count_tokens,
            "detokenize": self.detokenize,
            "statistics": self.statistics,
            "cluster": self.cluster,
        }

    @property
    def is_alive(self) -> bool:
        return self._llm.is_running

    def describe(self) -> dict[str, Any]:
        """What the HTTP process needs to know of the model."""
        return {
            "max_model_len": self._llm.memory.max_model_len,
            "max_num_seqs": self._llm.config.max_num_seqs,
            "max_pictures": self._llm.config.max_pictures,
            "memory": str(self._llm.memory),
            "device": self._llm.config.device,
        }

    def shutdown(self) -> None:
        self._llm.shutdown()

    async def chat(self, asked: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """Answers a conversation. First comes `{"in_reasoning": bool}`, then what `_answer` gives.

        `asked` has messages, tools, template (its variables), tool_choice (None, "required" or a function's
        name), parallel, params, thinking_budget, stream and priority.
        """
        ids, pictures = await self._render(asked)
        params = dict(asked["params"])
        if asked["tool_choice"] is not None:
            form = tool_call_form(asked["tools"], asked["tool_choice"], asked["parallel"])
            params["structured_outputs"] = form
        in_reasoning = self._is_in_reasoning(ids)
        if in_reasoning and asked["thinking_budget"] is not None:
            params["thinking_token_budget"] = asked["thinking_budget"]
        yield {"in_reasoning": in_reasoning}
        self._end_after_one_call(asked, params)
        async for output in self._answer(_prompt(ids, pictures), params, asked, in_reasoning):
            yield output

    async def complete(self, asked: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """Continues a prompt: text, in which control tokens count, or token ids."""
        async for output in self._answer(asked["prompt"], asked["params"], asked):
            yield output

    async def tokenize(self, asked: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """The ids of a prompt, or of a conversation with one `<im_patch>` for each picture."""
        if asked.get("messages") is not None:
            ids, _ = await self._render(asked)
        else:
            self._check_characters(asked["prompt"])
            ids = self._tokenizer.encode(asked["prompt"], add_special_tokens=asked["add_special_tokens"])
        strings = self._tokenizer.convert_ids_to_tokens(ids) if asked["with_strings"] else None
        yield {"tokens": ids, "strings": strings}

    async def count_tokens(self, asked: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """The length of a conversation's prompt with the places of its pictures; see `chat`."""
        ids, pictures = await self._render(asked)
        yield await self._llm.count_tokens(_prompt(ids, pictures))

    async def detokenize(self, ids: Sequence[int]) -> AsyncGenerator[Any, None]:
        """The text of token ids, control tokens included."""
        for token in ids:
            if not 0 <= token < len(self._table.tokens):
                raise RequestError(
                    f"there is no token {token}: the vocabulary goes from 0 to {len(self._table.tokens) - 1}"
                )
        yield self._tokenizer.decode(ids, skip_special_tokens=False)

    async def statistics(self, _: Any) -> AsyncGenerator[Any, None]:
        told = asdict(self._llm.get_statistics())
        if isinstance(self._llm, ClusterLLM):
            told["cluster"] = self._llm.front.describe()
        yield told

    async def cluster(self, asked: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """What `Front.describe`, `trace` or `change` give.

        Raises:
            RequestError: this server is one process.
        """
        if not isinstance(self._llm, ClusterLLM):
            raise RequestError("this server is one process: start it with --ffn-instances to have more")
        front = self._llm.front
        if asked["action"] == "describe":
            yield front.describe()
        elif asked["action"] == "trace":
            yield await asyncio.to_thread(front.trace, asked["seconds"])
        else:
            yield front.change(asked["action"], asked["role"], asked["number"])

    async def _answer(
        self, prompt: Any, params: Mapping[str, Any], asked: Mapping[str, Any], in_reasoning: bool = False
    ) -> AsyncGenerator[Any, None]:
        """`[prompt tokens, cached tokens, answers]` as they come, or once, whole; answers as in `_pack`."""
        chosen = SamplingParams.from_options({**self._defaults, **params})
        kind = RequestOutputKind.DELTA if asked["stream"] else RequestOutputKind.FINAL_ONLY
        stream = self._llm.generate(prompt, replace(chosen, output_kind=kind), priority=asked["priority"])
        thinking = set(range(chosen.n)) if in_reasoning else set[int]()
        try:
            async for output in stream:
                yield self._pack(output, chosen.logprobs, thinking)
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    async def _render(self, asked: Mapping[str, Any]) -> tuple[list[int], list[Any]]:
        for message in asked["messages"]:
            self._check_pictures(message)
        messages, tools = self._text.protect(asked["messages"]), self._text.protect(asked["tools"])
        try:
            prompt: Any = await self._llm.render_chat(messages, tools, **asked["template"])
        except (TemplateError, ValueError) as error:
            if isinstance(error, Step3Error):
                raise
            raise RequestError("the model's chat template cannot take these messages") from None
        self._check_characters(prompt["prompt"])
        return self._text.encode(prompt["prompt"]), prompt["multi_modal_data"]["image"]

    def _check_characters(self, text: str) -> None:
        # A token is at least a byte, so what is far too long need not be tokenized to be refused.
        if len(text) > self._max_characters:
            raise RequestError(
                f"the prompt has {len(text):,} characters, more than {self._llm.memory.max_model_len:,} "
                "tokens can hold: shorten it"
            )

    def _check_pictures(self, message: Mapping[str, Any]) -> None:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if part["type"] == "image":
                _check_header(part["image"], self._max_pixels)

    def _end_after_one_call(self, asked: Mapping[str, Any], params: dict[str, Any]) -> None:
        """Where the model may choose to call, but only once; a forced call's form says it by itself."""
        if asked["tools"] and not asked["parallel"] and asked["tool_choice"] is None and self._end_call >= 0:
            params["stop_token_ids"] = [*params.get("stop_token_ids", ()), self._end_call]

    def _is_in_reasoning(self, ids: list[int]) -> bool:
        """Whether the prompt leaves a thought open."""
        for token in reversed(ids):
            if token in (self._think, self._end_think):
                return token == self._think
        return False

    def _id(self, text: str) -> int:
        """The id of a control token; -1, which no prompt holds, where the vocabulary has none such."""
        return self._tokenizer.get_vocab().get(text, -1)

    def _pack(self, output: RequestOutput, logprobs: int | None, thinking: set[int]) -> list[Any]:
        """Answers are `[index, text, tokens, tokens of them that are reasoning, finish reason, stop string,
        log-probabilities]`; `thinking` are those that are still reasoning."""
        answers = [
            [
                one.index,
                one.text,
                len(one.token_ids),
                self._count_thoughts(one, thinking) if thinking else 0,
                one.finish_reason,
                one.stop_reason if isinstance(one.stop_reason, str) else None,
                self._pack_logprobs(one, logprobs or 0),
            ]
            for one in output.outputs
        ]
        return [len(output.prompt_token_ids), output.num_cached_tokens or 0, answers]

    def _count_thoughts(self, one: CompletionOutput, thinking: set[int]) -> int:
        """How many of an answer's new tokens are reasoning, its end included."""
        if one.index not in thinking:
            return 0
        if self._end_think not in one.token_ids:
            return len(one.token_ids)
        thinking.discard(one.index)
        return one.token_ids.index(self._end_think) + 1

    def _pack_logprobs(self, one: CompletionOutput, count: int) -> list[Any] | None:
        """For each token `[bytes, log-probability, [[bytes, log-probability] of the likeliest]]`."""
        if one.logprobs is None:
            return None
        packed = []
        for token, table in zip(one.token_ids, one.logprobs, strict=True):
            ranked = sorted(table.items(), key=_by_rank)
            best = [[self._table.bytes_of(other), entry.logprob] for other, entry in ranked[:count]]
            packed.append([self._table.bytes_of(token), table[token].logprob, best])
        return packed


def _prompt(ids: list[int], pictures: list[Any]) -> dict[str, Any]:
    return {"prompt_token_ids": ids, "multi_modal_data": {"image": pictures}}


def _by_rank(entry: tuple[int, Logprob]) -> int:
    return entry[1].rank or 0


def _check_header(data: bytes, max_pixels: int) -> None:
    """Refuses a picture that is larger than `max_pixels`, or none, without decoding it."""
    Image.init()
    known = [format for format in FORMATS if format in Image.OPEN]
    try:
        with Image.open(io.BytesIO(data), formats=known) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise PictureError(f"a picture has more than {max_pixels:,} pixels: scale it down") from None
    except Exception:
        raise PictureError("a picture is in no known format, or is cut off: send PNG, JPEG or WebP") from None
    if width * height > max_pixels:
        raise PictureError(
            f"a picture has {width} × {height} pixels, more than the {max_pixels:,} allowed: scale it down"
        )
