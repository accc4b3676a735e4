"""A compiled form, and where one output stands in it: which tokens may come next."""

import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import xgrammar

SPECIAL_MARK = "\U0010ffff"
"""Stands in front of special tokens where a grammar sees them; text that excludes it excludes them all."""
MAX_WHITESPACE = 64
"""White space in a row that JSON may hold where it needs none: a model could write it for ever."""


def tokenizer_info(
    tokenizer: Any, vocab_size: int, stop_token_ids: Collection[int]
) -> "xgrammar.TokenizerInfo":
    """The tokens as a grammar sees them: ordinary ones by their bytes, special ones apart from any text.

    Args:
        tokenizer: Transformers' fast tokenizer.
        vocab_size: width of the logits.
        stop_token_ids: the tokens that may end an output when its form is complete.
    """
    import xgrammar

    stops = sorted(stop_token_ids)
    read = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size, stop_token_ids=stops)
    tokens = list(read.decoded_vocab)
    for token_id in special_ids(tokenizer, vocab_size):
        # Sets of characters do not match a byte that is not UTF-8; free text does, so it excludes the mark.
        tokens[token_id] = b"\xff" + SPECIAL_MARK.encode() + tokens[token_id]
    return xgrammar.TokenizerInfo(
        tokens, xgrammar.VocabType.RAW, vocab_size=vocab_size, stop_token_ids=stops, add_prefix_space=False
    )


def special_ids(tokenizer: Any, vocab_size: int) -> list[int]:
    """The ids of tokens that stand for more than their text."""
    return [token_id for token_id in tokenizer.added_tokens_decoder if token_id < vocab_size]


def bits_of(token_ids: Collection[int], vocab_size: int) -> Tensor:
    """`[ceil(vocab / 32)]` int32 with the bits of these tokens set."""
    bits = torch.zeros(-(-vocab_size // 32) * 32, dtype=torch.bool)
    bits[list(token_ids)] = True
    weights = 1 << torch.arange(32)
    return (bits.view(-1, 32) * weights).sum(dim=-1).to(torch.int32)


class CompiledConstraint:
    """A form that outputs can be held to.

    Args:
        grammar: what xgrammar compiled.
        speakable: `[ceil(vocab / 32)]` int32, the bits of the tokens that may occur at all.
        stops: the same of the tokens that may end an output.
        step_seconds: processor time that a token may cost.
    """

    def __init__(
        self, grammar: "xgrammar.CompiledGrammar", speakable: Tensor, stops: Tensor, step_seconds: float
    ) -> None:
        self.grammar, self.speakable, self.stops = grammar, speakable, stops
        self.step_seconds = step_seconds
        self.num_bytes: int = grammar.memory_size_bytes

    def start(self, after_token: int | None = None) -> "GrammarConstraint":
        """The form at an output's beginning.

        Args:
            after_token: the output is free until this token, and held to the form behind it.
        """
        return GrammarConstraint(self, after_token)


class GrammarConstraint:
    """Where one output stands in its form. A `state.Constraint`.

    Attributes:
        failure: why the form was given up, in words; nothing is allowed from then on. None while all is well.

    Args:
        compiled: the form.
        after_token: see `CompiledConstraint.start`.
        clock: processor time in seconds.
    """

    def __init__(
        self,
        compiled: CompiledConstraint,
        after_token: int | None,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        import xgrammar

        self.failure: str | None = None
        self._compiled = compiled
        self._after_token = after_token
        self._clock = clock
        self._matcher = xgrammar.GrammarMatcher(compiled.grammar)
        self._is_free = after_token is not None
        self._before = self._inside = self._behind = 0

    @property
    def active(self) -> bool:
        return not self._is_free

    def fill(self, bitmask: Tensor, row: int) -> None:
        if self.failure is not None:
            bitmask[row] = 0
        elif self._matcher.is_terminated():
            bitmask[row] = self._compiled.stops
        else:
            self._timed(lambda: self._matcher.fill_next_token_bitmask(bitmask, row))
            bitmask[row] &= self._compiled.speakable

    def advance(self, token_id: int) -> bool:
        if self._is_free:
            self._before += 1
            self._is_free = token_id != self._after_token
        elif self._matcher.is_terminated():
            self._behind += 1
        elif self._timed(lambda: self._matcher.accept_token(token_id)):
            self._inside += 1
        else:
            return False
        return True

    def rollback(self, count: int) -> None:
        behind = min(count, self._behind)
        inside = min(count - behind, self._inside)
        before = count - behind - inside
        self._behind -= behind
        self._inside -= inside
        self._before -= before
        if inside:
            self._matcher.rollback(inside)
        if before:
            self._is_free = True

    def _timed(self, work: Callable[[], bool]) -> bool:
        """Does a token's work; a form that takes too long is given up, before it holds up other requests."""
        start = self._clock()
        done = work()
        took = self._clock() - start
        if took > self._compiled.step_seconds:
            self.failure = (
                f"the form of the output takes {took:.2g} s of processor time for a token, more than the "
                f"{self._compiled.step_seconds:g} s allowed: make its pattern or grammar less ambiguous"
            )
        return done
