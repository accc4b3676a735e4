"""What sampling knows of one sequence, kept from its first token to its last."""

from collections.abc import Collection, Sequence
from typing import Protocol

from torch import Tensor

from step3.engine.sampling.bad_words import BadWords
from step3.engine.sampling.params import SamplingParams
from step3.engine.sampling.random_numbers import as_int64
from step3.engine.sampling.token_counts import TokenCounts


class Constraint(Protocol):
    """What an output's form allows next (see `grammar.GrammarConstraint`)."""

    @property
    def active(self) -> bool:
        """Whether anything is ruled out; if not, `fill` is not called."""

    @property
    def failure(self) -> str | None:
        """Why it had to be given up, in words; nothing is allowed from then on."""

    def fill(self, bitmask: Tensor, row: int) -> None:
        """Writes what is allowed into a row of `[rows, ceil(vocab / 32)]` int32, a bit for each token."""

    def advance(self, token_id: int) -> bool:
        """Goes on by a token, unless it is not allowed: then nothing changes and False is returned."""

    def rollback(self, count: int) -> None:
        """Takes the last `count` tokens back."""


class SamplingState:
    """The output so far of one sequence, and what its parameters make of it.

    It is a function of its arguments: built again with a longer `output` it continues in the same way.

    Args:
        seed: any 64 bits; `params.seed`, or where that is None one drawn for the request.
        choice: the sequence's number among the request's n.
        prompt: token ids, read only for a repetition penalty.
        output: token ids of an output that is to be continued.
        vocab_size: width of the logits; tokens beyond it cannot appear, and are passed over.
        eos_token_ids: the tokens that end a sequence by themselves.
        bad_words: token sequences, from `bad_word_ids`.
        constraint: the form that the output must have, as it stands at the output's beginning.
        thought_end: the token that ends the reasoning in which the prompt stops; None if it stops in none.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        seed: int,
        choice: int = 0,
        prompt: Sequence[int] = (),
        output: Sequence[int] = (),
        vocab_size: int,
        eos_token_ids: Collection[int] = (),
        bad_words: Sequence[Sequence[int]] = (),
        constraint: Constraint | None = None,
        thought_end: int | None = None,
    ) -> None:
        self.params = params
        self.seed = as_int64(seed)
        self.choice = choice
        self.output: list[int] = []
        stop_ids = {*eos_token_ids, *(params.stop_token_ids or ())}
        self.stop_ids = sorted(token_id for token_id in stop_ids if token_id < vocab_size)
        possible = [ids for ids in bad_words if ids[-1] < vocab_size]
        self.bad_words = BadWords(possible) if possible else None
        self.constraint: Constraint | None = None
        repeats = params.repetition_penalty != 1
        penalised = repeats or params.presence_penalty != 0 or params.frequency_penalty != 0
        in_vocabulary = (token_id for token_id in prompt if token_id < vocab_size)
        self.counts = TokenCounts(in_vocabulary if repeats else ()) if penalised else None
        self._thought_end = None if params.thinking_token_budget is None else thought_end
        for token_id in output:
            self.append(token_id)
        if constraint is not None:
            self.constrain(constraint)

    def constrain(self, constraint: Constraint) -> None:
        """Gives the output a form, which it is held to from its beginning.

        Args:
            constraint: as it stands at the output's beginning; it is moved on by what there is.
        """
        self.constraint = constraint
        for token_id in self.output:
            constraint.advance(token_id)

    @property
    def position(self) -> int:
        """Tokens of output so far, which is the number of the next draw."""
        return len(self.output)

    def append(self, token_id: int) -> None:
        """Takes a token into the output."""
        self.output.append(token_id)
        if token_id == self._thought_end:
            self._thought_end = None
        if self.counts is not None:
            self.counts.add(token_id)
        if self.constraint is not None:
            self.constraint.advance(token_id)

    @property
    def adjusted(self) -> bool:
        """Whether the logits are changed, now or later, by anything but temperature and the filters."""
        return (
            self.counts is not None
            or self.bad_words is not None
            or bool(self.params.logit_bias)
            or self.params.allowed_token_ids is not None
            or self.params.min_tokens > self.position
            or self._thought_end is not None
        )

    @property
    def failure(self) -> str | None:
        """Why no token can be chosen any more, if the form of the output is to blame."""
        return None if self.constraint is None else self.constraint.failure

    def possible(self, drafts: Sequence[int]) -> list[int]:
        """The drafts that can be taken at all: up to where the form rules one out, or the output is full.

        The token that is chosen behind them has its place too.
        """
        most = len(drafts)
        if self.params.max_tokens is not None:
            most = max(0, min(most, self.params.max_tokens - self.position - 1))
        if self.constraint is None:
            return list(drafts[:most])
        taken = 0
        while taken < most and self.constraint.advance(drafts[taken]):
            taken += 1
        self.constraint.rollback(taken)
        return list(drafts[:taken])

    def banned(self, drafts: Sequence[int]) -> list[int]:
        """The ids that bad words and min_tokens rule out behind the output and `drafts`."""
        ids: list[int] = []
        if self.bad_words is not None:
            reach = self.bad_words.reach
            ids += self.bad_words.completions([*self.output[max(0, len(self.output) - reach) :], *drafts])
        if self.position + len(drafts) < self.params.min_tokens:
            ids += self.stop_ids
        return ids

    def forced(self, drafts: Sequence[int]) -> int | None:
        """The one token that may follow the output and `drafts`, if reasoning has used its budget up."""
        budget, end = self.params.thinking_token_budget, self._thought_end
        if budget is None or end is None or self.position + len(drafts) < budget or end in drafts:
            return None
        return end
