"""From logits to tokens, for a whole batch of sequences with parameters of their own.

The order of what happens to a row is vLLM's: grammar, log-probabilities to tell, allowed ids, bad words,
min_tokens, logit bias, repetition, frequency and presence penalty; then the likeliest token, or temperature,
min-p, top-k, top-p and a draw.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, islice, zip_longest
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from step3.engine.sampling.adjustments import Row, adjust, mask_by_bits
from step3.engine.sampling.drawing import Draws, draw
from step3.engine.sampling.logprobs import TokenLogprobs, rank_tokens
from step3.engine.sampling.state import SamplingState
from step3.kernels.cpu import open_library
from step3.kernels.cpu.draw import likeliest

NO_TOKEN = -1
"""Stands for a token where none is allowed, or where the logits are no numbers."""


@dataclass(frozen=True)
class Sampled:
    """What a step gave each sequence of a batch, in its order.

    Attributes:
        token_ids: the drafts that proved right and one token more; without drafts, one token.
        logprobs: for each of those tokens what was likely there, where the request asks for it.
    """

    token_ids: list[list[int]]
    logprobs: list[list[TokenLogprobs] | None]


class SamplingBatch:
    """Sequences that are sampled together, and what stays the same from step to step.

    Args:
        states: in the order of their rows.
        device: the logits' device.

    Attributes:
        is_greedy: each row's likeliest token is all that matters of the logits.
    """

    def __init__(self, states: Sequence[SamplingState], device: torch.device | str = "cpu") -> None:
        self.states = list(states)
        self.adjusted = self._where(lambda state: state.adjusted)
        self.constrained = self._where(lambda state: state.constraint is not None)
        self.told = self._where(lambda state: state.params.logprobs is not None)
        self.drawn = self._where(lambda state: not state.params.greedy)
        self.is_greedy = not (self.adjusted or self.constrained or self.told or self.drawn)
        self._device = device

    @cached_property
    def draws(self) -> Draws:
        """Of the sequences that are drawn."""
        drawn = [self.states[i] for i in self.drawn]

        def column(values: list[Any], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=self._device)

        return Draws(
            temperature=column([state.params.temperature for state in drawn], torch.float32),
            top_k=column([state.params.top_k for state in drawn], torch.int64),
            top_p=column([state.params.top_p for state in drawn], torch.float64),
            min_p=column([state.params.min_p for state in drawn], torch.float32),
            seed=column([state.seed for state in drawn], torch.int64),
            choice=column([state.choice for state in drawn], torch.int64),
            position=column([state.position for state in drawn], torch.int64),
            filtered=any(state.params.filtered for state in drawn),
        )

    def _where(self, holds: Callable[[SamplingState], bool]) -> list[int]:
        return [i for i, state in enumerate(self.states) if holds(state)]


class _Rows:
    """Which rows of the logits are whose.

    Attributes:
        first: the row behind each sequence's output; one behind each of its drafts follows.
        drafts: of each sequence.
    """

    def __init__(self, sequences: int, drafts: Sequence[Sequence[int]] | None) -> None:
        self.one_each = drafts is None or not any(drafts)
        self.drafts: Sequence[Sequence[int]] = drafts if drafts is not None else ((),) * sequences
        self.first: Sequence[int] = range(sequences)
        if not self.one_each:
            self.first = list(accumulate((1 + len(own) for own in self.drafts), initial=0))[:-1]

    def of(self, sequence: int) -> range:
        first = self.first[sequence]
        return range(first, first + 1 + len(self.drafts[sequence]))

    def adjusted(self, sequence: int, state: SamplingState) -> list[Row]:
        drafts = self.drafts[sequence]
        return [Row(number, state, drafts[:ahead]) for ahead, number in enumerate(self.of(sequence))]


def sample(logits: Tensor, batch: SamplingBatch, drafts: Sequence[Sequence[int]] | None = None) -> Sampled:
    """Chooses the next token of each sequence, or the next ones where drafts prove right.

    Drafts are right as long as they are what is chosen anyway: a token's draw depends on its position alone,
    so that an output is the same token by token with and without drafts, greedy or not.

    Args:
        logits: `[rows, vocab]` float32, overwritten. Without drafts, a row for each sequence.
        drafts: for each sequence the tokens that its further rows were computed behind, maybe none; its rows
            stand together, the first behind its output, then one behind each draft.

    Returns:
        The tokens, which the caller appends to the states as far as the sequences go on.
    """
    rows = _Rows(len(batch.states), drafts)
    with torch.no_grad():
        _constrain(logits, batch, rows)
        told = [row for i in batch.told for row in rows.of(i)]
        logprobs = torch.log_softmax(logits[told], dim=-1) if told else None
        if batch.adjusted:
            adjust(logits, [row for i in batch.adjusted for row in rows.adjusted(i, batch.states[i])])
        best, tokens = _choose(logits, batch, rows)
        chosen = [
            token if isfinite(top) else NO_TOKEN
            for token, top in zip(tokens.tolist(), best.tolist(), strict=True)
        ]
        kept = _kept(chosen, rows)
        return Sampled(kept, _tell(batch, rows, told, logprobs, chosen, kept))


def sample_likeliest(tokens: list[int], drafts: Sequence[Sequence[int]] | None = None) -> Sampled:
    """As `sample` of a batch that is greedy, where the rows' likeliest tokens are known.

    Args:
        tokens: of each row; `NO_TOKEN` where the best logit is no finite number.
    """
    kept = [[token] for token in tokens] if drafts is None else _kept(tokens, _Rows(len(drafts), drafts))
    return Sampled(kept, [None] * len(kept))


def _constrain(logits: Tensor, batch: SamplingBatch, rows: _Rows) -> None:
    """Rules out what the constraints of the sequences do, behind the output and behind each draft."""
    if not batch.constrained:
        return
    masked: list[int] = []
    bitmask = torch.empty(
        sum(len(rows.of(i)) for i in batch.constrained), -(-logits.shape[-1] // 32), dtype=torch.int32
    )
    for i in batch.constrained:
        constraint = batch.states[i].constraint
        assert constraint is not None
        advanced = 0
        for row, draft in zip_longest(rows.of(i), rows.drafts[i]):
            if constraint.active:
                constraint.fill(bitmask, len(masked))
                masked.append(row)
            # Rows behind a draft that is not allowed cannot be reached: its own row rules it out.
            if draft is None or not constraint.advance(draft):
                break
            advanced += 1
        constraint.rollback(advanced)
    if masked:
        mask_by_bits(logits, masked, bitmask[: len(masked)])


def _choose(logits: Tensor, batch: SamplingBatch, rows: _Rows) -> tuple[Tensor, Tensor]:
    """The best logit of each row, and each row's token."""
    if not batch.drawn:
        return _likeliest(logits)
    draws = batch.draws
    if rows.one_each:
        positions = [batch.states[i].position for i in batch.drawn]
    else:
        positions = [
            batch.states[i].position + ahead for i in batch.drawn for ahead in range(len(rows.of(i)))
        ]
        draws = draws.of(torch.tensor([n for n, i in enumerate(batch.drawn) for _ in rows.of(i)]))
    draws = replace(draws, position=torch.tensor(positions, device=logits.device))
    if len(batch.drawn) == len(batch.states):
        best = logits.amax(dim=-1)
        return best, draw(logits, best, draws)
    best, tokens = _likeliest(logits)
    drawn = torch.tensor([row for i in batch.drawn for row in rows.of(i)], device=logits.device)
    tokens[drawn] = draw(logits[drawn], best[drawn], draws)
    return best, tokens


def _likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The best logit of each row and its token, the first of equals; NaN where the row has one."""
    if logits.device.type != "cpu":
        best, tokens = logits.max(dim=-1)
        return best, tokens
    if (library := open_library()) is not None:
        return likeliest(library, logits)
    # numpy's argmax is vectorised and torch's is not: 15 to 20 times the time at any width.
    tokens = torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.gather(-1, tokens[:, None])[:, 0], tokens


def _kept(chosen: list[int], rows: _Rows) -> list[list[int]]:
    """What each sequence takes of its rows' tokens."""
    if rows.one_each:
        return [[token] for token in chosen]
    return [_right(chosen, rows.of(i), drafts) for i, drafts in enumerate(rows.drafts)]


def _right(chosen: list[int], rows: range, drafts: Sequence[int]) -> list[int]:
    """The chosen tokens up to the first that is not the draft, that one included."""
    right = 0
    while right < len(drafts) and chosen[rows[right]] == drafts[right]:
        right += 1
    return chosen[rows.start : rows.start + right + 1]


def _tell(
    batch: SamplingBatch,
    rows: _Rows,
    told: list[int],
    logprobs: Tensor | None,
    chosen: list[int],
    kept: list[list[int]],
) -> list[list[TokenLogprobs] | None]:
    results: list[list[TokenLogprobs] | None] = [None] * len(batch.states)
    if logprobs is None:
        return results
    counts = [batch.states[i].params.logprobs or 0 for i in batch.told for _ in rows.of(i)]
    tokens = torch.tensor([max(0, chosen[row]) for row in told], device=logprobs.device)
    ranked = iter(rank_tokens(logprobs, tokens, counts))
    for i in batch.told:
        results[i] = list(islice(ranked, len(rows.of(i))))[: len(kept[i])]
    return results
