"""How one request wants its tokens chosen: vLLM's names and defaults, checked once, at construction."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from step3.engine.sampling import field_checks as check
from step3.engine.sampling.errors import ParamsError
from step3.engine.sampling.structured_params import StructuredOutputsParams

GREEDY_BELOW = 1e-5
MAX_CHOICES_PER_REQUEST = 16384
MAX_TEMPERATURE = 2.0
MAX_STOP_STRINGS = 256
MAX_STOP_CHARS = 1024
MAX_BAD_WORDS = 1024
# More than any vocabulary has; a model's own bound is checked by `check_model`.
MAX_TOKEN_IDS = 2**22


class RequestOutputKind(Enum):
    """What each output of a streamed request holds: all so far, what is new, or only the last, whole one."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, when to stop, and what to tell about them.

    Attributes:
        n: how many outputs, from 1 to 16384; 1 with temperature 0, where all would be equal.
        presence_penalty: taken off the logits of tokens that the output holds, from -2 to 2.
        frequency_penalty: taken off as many times as the output holds the token, from -2 to 2.
        repetition_penalty: positive logits of tokens that the prompt or the output holds are divided by it,
            negative ones multiplied.
        temperature: logits are divided by it, from 0 to 2; below 1e-5 the best token is taken.
        top_p: only the likeliest tokens that together have at least this probability, in (0, 1]. Of equally
            likely ones the lower id goes first.
        top_k: only the k likeliest tokens, and those as likely as the k-th; 0 or -1 is all.
        min_p: only tokens at least `min_p` times as likely as the likeliest, from 0 to 1.
        seed: draws are a function of it, the output's number among n and the position; None or -1: the engine
            draws one.
        stop: text that ends the output when it appears.
        stop_token_ids: tokens that end the output.
        bad_words: text that is not to appear; its last token is ruled out where the others stand before it.
        include_stop_str_in_output: whether the stop string stays in the text.
        ignore_eos: whether end-of-sequence tokens are tokens like others.
        max_tokens: longest output in tokens; None: as far as the context goes.
        min_tokens: end-of-sequence and stop tokens are ruled out, and stop strings not looked for, before it.
        logprobs: how many of the likeliest tokens are told with their log-probabilities at each position, the
            chosen one in addition; -1 is the whole vocabulary.
        prompt_logprobs: the same for the prompt's tokens.
        detokenize: whether the output is turned into text; stop strings need it.
        skip_special_tokens, spaces_between_special_tokens: how it is turned into text.
        truncate_prompt_tokens: only the last so many tokens of the prompt are used; -1: as many as the model
            takes.
        output_kind: what each output of a stream holds.
        structured_outputs: the form that the output must have.
        thinking_token_budget: reasoning that the prompt leaves open is ended behind so many tokens; None:
            where the model ends it.
        logit_bias: token id to what is added to its logit.
        allowed_token_ids: only these tokens.
        extra_args: passed on unread.

    Raises:
        ParamsError: a value of the wrong type or out of bounds, or values that contradict each other.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | None = None
    thinking_token_budget: int | None = None
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    allowed_token_ids: Sequence[int] | None = None
    extra_args: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        for name, checked in _checked(self).items():
            object.__setattr__(self, name, checked)
        self._check_together()

    def _check_together(self) -> None:
        if self.greedy and self.n > 1:
            raise ParamsError(
                f"n is {self.n} with temperature {self.temperature:g}, where all outputs would be equal: "
                "set n to 1, or the temperature above 0"
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ParamsError(
                f"min_tokens must be at most max_tokens, found {self.min_tokens} over {self.max_tokens}"
            )
        if self.stop and not self.detokenize:
            raise ParamsError(
                "stop strings are looked for in text: set detokenize=True, or use stop_token_ids"
            )
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise ParamsError("allowed_token_ids is empty: name at least one, or leave it out")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without a draw."""
        return self.temperature < GREEDY_BELOW

    @property
    def filtered(self) -> bool:
        """Whether a draw is from less than the whole vocabulary."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def check_model(self, vocab_size: int, max_logprobs: int) -> None:
        """Checks what depends on the model.

        Args:
            vocab_size: width of the logits.
            max_logprobs: the most log-probabilities a request may ask for at a position.

        Raises:
            ParamsError: a token id outside of the vocabulary, or too many log-probabilities.
        """
        for name in ("stop_token_ids", "logit_bias", "allowed_token_ids"):
            for token_id in getattr(self, name) or ():
                if token_id >= vocab_size:
                    raise ParamsError(f"{name} holds {token_id}, but the vocabulary ends at {vocab_size - 1}")
        for name in ("logprobs", "prompt_logprobs"):
            asked = getattr(self, name)
            count = vocab_size if asked == -1 else asked or 0
            if count > max_logprobs:
                raise ParamsError(
                    f"{name} asks for {count} at each position, this engine gives at most {max_logprobs}: "
                    "ask for fewer, or start it with a larger max_logprobs"
                )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "SamplingParams":
        """The parameters out of a mapping from outside; an unknown name is an error."""
        known = [one.name for one in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(str(name)[:80], known, n=1)
                mend = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                raise ParamsError(f"there is no sampling parameter {check.shown(name)}: {mend}")
        return cls(**options)


def _checked(given: SamplingParams) -> dict[str, Any]:
    """Every field in its one form."""
    return {
        "n": check.whole("n", given.n, 1, MAX_CHOICES_PER_REQUEST),
        "presence_penalty": check.real("presence_penalty", given.presence_penalty, -2, 2),
        "frequency_penalty": check.real("frequency_penalty", given.frequency_penalty, -2, 2),
        "repetition_penalty": check.real(
            "repetition_penalty", given.repetition_penalty, 0, 1e3, above_low=True, mend="1 is no penalty"
        ),
        "temperature": check.real(
            "temperature", given.temperature, 0, MAX_TEMPERATURE, mend="0 takes the likeliest token"
        ),
        "top_p": check.real("top_p", given.top_p, 0, 1, above_low=True, mend="1 is all tokens"),
        "top_k": max(0, check.whole("top_k", given.top_k, -1, 2**31 - 1, mend="0 is all tokens")),
        "min_p": check.real("min_p", given.min_p, 0, 1, mend="0 is all tokens"),
        "seed": _seed(given.seed),
        "stop": check.texts("stop", given.stop, MAX_STOP_STRINGS, MAX_STOP_CHARS),
        "stop_token_ids": check.token_ids("stop_token_ids", given.stop_token_ids, MAX_TOKEN_IDS),
        "bad_words": check.texts("bad_words", given.bad_words, MAX_BAD_WORDS, MAX_STOP_CHARS),
        "include_stop_str_in_output": check.flag(
            "include_stop_str_in_output", given.include_stop_str_in_output
        ),
        "ignore_eos": check.flag("ignore_eos", given.ignore_eos),
        "max_tokens": _optional("max_tokens", given.max_tokens, 1),
        "min_tokens": check.whole("min_tokens", given.min_tokens, 0, 2**31 - 1),
        "logprobs": _logprobs("logprobs", given.logprobs),
        "prompt_logprobs": _logprobs("prompt_logprobs", given.prompt_logprobs),
        "detokenize": check.flag("detokenize", given.detokenize),
        "skip_special_tokens": check.flag("skip_special_tokens", given.skip_special_tokens),
        "spaces_between_special_tokens": check.flag(
            "spaces_between_special_tokens", given.spaces_between_special_tokens
        ),
        "truncate_prompt_tokens": _truncation(given.truncate_prompt_tokens),
        "output_kind": _kind(given.output_kind),
        "structured_outputs": _form(given.structured_outputs),
        "thinking_token_budget": _optional("thinking_token_budget", given.thinking_token_budget, 0),
        "logit_bias": check.biases("logit_bias", given.logit_bias, MAX_TOKEN_IDS),
        "allowed_token_ids": None
        if given.allowed_token_ids is None
        else check.token_ids("allowed_token_ids", given.allowed_token_ids, MAX_TOKEN_IDS),
        "extra_args": _extra(given.extra_args),
    }


def _optional(name: str, value: Any, low: int) -> int | None:
    return None if value is None else check.whole(name, value, low, 2**31 - 1)


def _seed(value: Any) -> int | None:
    seed = None if value is None else check.whole("seed", value, -(2**63), 2**64 - 1)
    return None if seed == -1 else seed


def _logprobs(name: str, value: Any) -> int | None:
    if value is None or value is False:
        return None
    return 1 if value is True else check.whole(name, value, -1, 2**31 - 1, mend="-1 is the whole vocabulary")


def _truncation(value: Any) -> int | None:
    checked = None if value is None else check.whole("truncate_prompt_tokens", value, -1, 2**31 - 1)
    if checked == 0:
        raise ParamsError(
            "truncate_prompt_tokens must be at least 1, or -1 for what the model takes, found 0"
        )
    return checked


def _kind(value: Any) -> RequestOutputKind:
    if not isinstance(value, RequestOutputKind):
        raise ParamsError(f"output_kind must be a RequestOutputKind, found {check.shown(value)}")
    return value


def _form(value: Any) -> StructuredOutputsParams | None:
    if isinstance(value, Mapping):
        return StructuredOutputsParams.from_options(value)
    if value is not None and not isinstance(value, StructuredOutputsParams):
        raise ParamsError(f"structured_outputs must be StructuredOutputsParams, found {check.shown(value)}")
    return value


def _extra(value: Any) -> Mapping[str, Any] | None:
    if value is not None and not isinstance(value, Mapping):
        raise ParamsError(f"extra_args must be a mapping, found {check.shown(value)}")
    return value
