"""What one step computes, as tensors: the tokens of all sequences in one row, without padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from step3.engine.pictures import PictureEncoder
from step3.engine.request import Sequence
from step3.engine.scheduler import Scheduled
from step3.kernels.attention import Paging


@dataclass(frozen=True, eq=False)
class Batch:
    """A ragged batch.

    Attributes:
        tokens: `[tokens]` int64.
        positions: `[tokens]` int64, each token's place in its own sequence.
        slots: `[tokens]` int64, where its keys and values go in the cache.
        paging: which keys each token sees.
        features: rows that pictures fill (int64), and what they fill them with, `[rows, hidden]`.
        scored: `[scored]` int64, the rows whose next token is sampled: of each sequence whose last token is
            among its tokens that row, then those of its drafts.
        starts: the row of each sequence's first token.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    paging: Paging
    features: tuple[tuple[Tensor, Tensor], ...]
    scored: Tensor
    starts: list[int]


class BatchBuilder:
    """Makes batches for one lane; keeps its block tables up to date, a row for each seat."""

    def __init__(
        self,
        max_num_seqs: int,
        max_blocks: int,
        block_size: int,
        device: torch.device,
        pictures: PictureEncoder | None,
    ) -> None:
        """`max_blocks` is the most that one sequence can hold."""
        self._tables = np.zeros((max_num_seqs, max_blocks), np.int64)
        self._block_size, self._device = block_size, device
        self._pictures = pictures

    def build(self, step: list[Scheduled]) -> Batch:
        """The batch of a step that has at least one sequence; encodes pictures that it needs first."""
        sequences, start_column, count_column, last_column = zip(*step, strict=True)
        for sequence in sequences:
            if sequence.num_tabled < len(sequence.blocks):
                self._update_table(sequence)
        if max(count_column) == 1 and all(last_column):
            # The common case, in which every sequence decodes: 64 of them cost as little as they can.
            tokens = [sequence.tokens[-1] for sequence in sequences]
            scored = starts = list(range(len(step)))
        else:
            tokens, scored, starts = _gather(step)
        seats = [sequence.seat for sequence in sequences]
        firsts, counts, rows = np.array((start_column, count_column, seats))
        positions, owners = _lay_out(firsts, counts, starts)
        blocks = self._tables[rows[owners], positions // self._block_size]
        slots = blocks * self._block_size + positions % self._block_size
        return Batch(
            tokens=self._tensor(tokens),
            positions=self._tensor(positions),
            slots=self._tensor(slots),
            paging=Paging(counts, firsts + counts, self._tables, rows),
            features=self._features(step, starts),
            scored=self._tensor(scored),
            starts=starts,
        )

    def _update_table(self, sequence: Sequence) -> None:
        done, held = sequence.num_tabled, len(sequence.blocks)
        self._tables[sequence.seat, done:held] = sequence.blocks[done:]
        sequence.num_tabled = held

    def _features(self, step: list[Scheduled], starts: list[int]) -> tuple[tuple[Tensor, Tensor], ...]:
        if self._pictures is None:
            return ()
        return tuple(
            (self._tensor(places + row), features)
            for (sequence, start, count, _), row in zip(step, starts, strict=True)
            if sequence.request.pictures and start < len(sequence.request.prompt_token_ids)
            for places, features in self._pictures.rows(sequence, start, start + count)
        )

    def _tensor(self, values: list[int] | np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.int64)).to(self._device)


def _gather(step: list[Scheduled]) -> tuple[list[int], list[int], list[int]]:
    """The tokens and drafts of all sequences, the rows to sample from, and the row of each one's first."""
    tokens: list[int] = []
    scored: list[int] = []
    starts: list[int] = []
    for sequence, start, count, is_last in step:
        starts.append(len(tokens))
        tokens += sequence.tokens[start : start + count]
        tokens += sequence.drafts
        if is_last:
            scored += range(len(tokens) - 1 - len(sequence.drafts), len(tokens))
    return tokens, scored, starts


def _lay_out(
    firsts: np.ndarray, counts: np.ndarray, starts: list[int]
) -> tuple[np.ndarray, np.ndarray | slice]:
    """Each token's position in its sequence, and the number of its sequence in the batch."""
    if len(counts) == starts[-1] + counts[-1]:
        return firsts, slice(None)
    owners = np.repeat(np.arange(len(counts)), counts)
    shifts = firsts - np.asarray(starts)
    return np.arange(len(owners)) + shifts[owners], owners
