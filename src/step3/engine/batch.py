"""What one step computes: the tokens of all sequences in one row, without padding.

Its numbers are plain arrays: after a step that filled the caches, making a tensor takes tens of microseconds.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from operator import add

import numpy as np
from torch import Tensor

from step3.engine.pictures import PictureEncoder
from step3.engine.request import Sequence
from step3.engine.scheduler import Scheduled
from step3.kernels.attention import BlockTables, Paging


@dataclass(frozen=True, eq=False)
class Batch:
    """A ragged batch; all whole numbers are int64.

    Attributes:
        tokens: `[tokens]`, their ids.
        paging: where their keys and values go, and which keys each token sees.
        features: rows that pictures fill, `[rows]`, and what they fill them with, `[rows, hidden]`.
        scored: `[scored]`, the rows whose next token is sampled: of each sequence whose last token is among
            its tokens that row, then those of its drafts.
        starts: the row of each sequence's first token.
    """

    tokens: array[int]
    paging: Paging
    features: tuple[tuple[np.ndarray, Tensor], ...]
    scored: array[int]
    starts: array[int]


class BatchBuilder:
    """Makes batches for one lane; keeps its block tables up to date, a row for each seat."""

    def __init__(self, max_num_seqs: int, max_blocks: int, pictures: PictureEncoder | None) -> None:
        """`max_blocks` is the most that one sequence can hold."""
        self._tables = BlockTables(np.zeros((max_num_seqs, max_blocks), np.int64))
        self._pictures = pictures

    def build(self, step: list[Scheduled]) -> Batch:
        """The batch of a step that has at least one sequence; encodes pictures that it needs first."""
        sequences, firsts, counts, lasts = zip(*step, strict=True)
        for sequence in sequences:
            if sequence.num_tabled < len(sequence.blocks):
                self._update_table(sequence)
        if max(counts) == 1 and all(lasts):
            # The common case, in which every sequence decodes: 64 of them cost as little as they can.
            tokens = array("q", [sequence.tokens[-1] for sequence in sequences])
            scored = starts = array("q", range(len(step)))
        else:
            tokens, scored, starts = _gather(step)
        return Batch(
            tokens,
            Paging(
                array("q", counts),
                array("q", map(add, firsts, counts)),
                self._tables,
                array("q", [sequence.seat for sequence in sequences]),
            ),
            self._features(step, starts) if self._pictures is not None else (),
            scored,
            starts,
        )

    def _update_table(self, sequence: Sequence) -> None:
        done, held = sequence.num_tabled, len(sequence.blocks)
        self._tables.blocks[sequence.seat, done:held] = sequence.blocks[done:]
        sequence.num_tabled = held

    def _features(self, step: list[Scheduled], starts: array[int]) -> tuple[tuple[np.ndarray, Tensor], ...]:
        assert self._pictures is not None
        return tuple(
            (places + row, features)
            for (sequence, start, count, _), row in zip(step, starts, strict=True)
            if sequence.request.pictures and start < len(sequence.request.prompt_token_ids)
            for places, features in self._pictures.rows(sequence, start, start + count)
        )


def _gather(step: list[Scheduled]) -> tuple[array[int], array[int], array[int]]:
    """The tokens and drafts of all sequences, the rows to sample from, and the row of each one's first."""
    tokens, scored, starts = array("q"), array("q"), array("q")
    for sequence, start, count, is_last in step:
        starts.append(len(tokens))
        tokens.extend(sequence.tokens[start : start + count])
        tokens.extend(sequence.drafts)
        if is_last:
            scored.extend(range(len(tokens) - 1 - len(sequence.drafts), len(tokens)))
    return tokens, scored, starts
