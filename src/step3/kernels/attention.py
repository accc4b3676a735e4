"""Causal attention of a ragged batch over paged keys and values, one key head for all query heads (MFA).

The keys and values of a layer lie in blocks, `[num_blocks, block_size, head_dim]`; a sequence's block table
names its blocks in order, and a token's slot is `block * block_size + offset`. Blocks hold the activations'
dtype or float8_e4m3fn without a scale (values beyond ±448 saturate).

What depends on the batch alone is prepared once a step (`prepare`) and serves every layer (`attend`).

In float32 on a CPU a token's output depends on its own context alone, to the last bit: not on the batch, nor
on where its prompt was cut into chunks. The order of a sum depends on how many keys a product has; so a
token's keys are counted up to the next of few widths (masked beyond its own), and only tokens of one width
are computed together.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from step3.kernels.linear import ROWS, whole_rows

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max

SHORT_QUERY = 16
"""At most this many tokens of a sequence are computed together with equally many of others."""
MAX_MASK = 1 << 24
"""Elements of the largest mask; more sequences or query tokens are computed one after the other."""


class BlockTables:
    """The blocks that sequences hold, in order: a row for each.

    Attributes:
        blocks: `[rows, blocks]` int64; entries beyond a context are not read.
        address: of the first entry. It is asked for once: each time takes microseconds.
        stride: entries from row to row.
    """

    def __init__(self, blocks: np.ndarray) -> None:
        assert blocks.dtype == np.int64
        assert blocks.strides[1] == 8, "a row lies in one piece"
        self.blocks, self.address, self.stride = blocks, blocks.ctypes.data, blocks.strides[0] // 8


@dataclass(frozen=True, eq=False)
class Paging:
    """How the tokens of a ragged batch lie in the cache: sequence by sequence, the last ones of each.

    All numbers are int64 (typecode "q"), so that compiled kernels read them where they are.

    Attributes:
        query_lengths: `[sequences]`, new tokens of each, at least one.
        context_lengths: `[sequences]`, all its tokens that are in the cache, the new ones included.
        tables: whose blocks are where.
        table_rows: `[sequences]`, the row of each.
    """

    query_lengths: array[int]
    context_lengths: array[int]
    tables: BlockTables
    table_rows: array[int]

    def positions(self) -> np.ndarray:
        """`[tokens]` int64, each new token's place in its own sequence."""
        lengths = np.asarray(self.query_lengths)
        ends = lengths.cumsum()
        return np.arange(ends[-1]) + np.repeat(np.asarray(self.context_lengths) - ends, lengths)

    def slots(self, block_size: int) -> np.ndarray:
        """`[tokens]` int64, where each new token's keys and values go."""
        positions = self.positions()
        rows = np.repeat(np.asarray(self.table_rows), np.asarray(self.query_lengths))
        blocks = self.tables.blocks[rows, positions // block_size]
        return blocks * block_size + positions % block_size


@dataclass(frozen=True, eq=False)
class _Together:
    """Equally many new tokens of some sequences: one batched product, query heads as its rows."""

    rows: Tensor | slice
    blocks: Tensor
    sequences: int
    tokens: int
    mask: Tensor


@dataclass(frozen=True, eq=False)
class _Alone:
    """Some of the new tokens of one sequence, with the context that they see."""

    rows: slice
    blocks: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """What `attend` needs to know of a batch, the same for every layer."""

    together: tuple[_Together, ...]
    alone: tuple[_Alone, ...]


@dataclass(frozen=True, eq=False)
class _Runs:
    """Successive new tokens of one sequence whose keys are counted alike; all `[runs]` int64.

    Attributes:
        start, tokens: their rows.
        seen: keys that the last of them sees.
        width: blocks that each of them reads.
        table_row: the sequence's row of the block tables.
    """

    start: np.ndarray
    tokens: np.ndarray
    seen: np.ndarray
    width: np.ndarray
    table_row: np.ndarray


def _widths(blocks: np.ndarray) -> np.ndarray:
    """The next power of two, or one and a half times a power of two."""
    power = 1 << (np.frexp(blocks)[1].astype(np.int64) - 1)
    return np.where(blocks == power, power, np.where(2 * blocks <= 3 * power, 3 * power // 2, 2 * power))


def _runs(paging: Paging, block_size: int) -> _Runs:
    lengths = np.asarray(paging.query_lengths)
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    seen = paging.positions() + 1
    width = _widths(-(-seen // block_size))
    begins = (np.diff(sequence, prepend=-1) != 0) | (np.diff(width, prepend=0) != 0)
    start = np.flatnonzero(begins)
    tokens = np.diff(start, append=len(sequence))
    rows = np.asarray(paging.table_rows)[sequence[start]]
    return _Runs(start, tokens, seen[start + tokens - 1], width[start], rows)


def prepare(paging: Paging, block_size: int, heads: int, device: torch.device) -> AttentionPlan:
    """Decides which tokens are computed together, and makes their indices and masks."""
    runs = _runs(paging, block_size)
    mask_rows = np.where(runs.tokens > 1, runs.tokens * heads, 1)
    width = runs.width * block_size
    is_short = (runs.tokens <= SHORT_QUERY) & (mask_rows * width <= MAX_MASK)
    alike = runs.tokens * (1 << 32) + runs.width
    together: list[_Together] = []
    for kind in np.unique(alike[is_short]):
        group = np.flatnonzero(is_short & (alike == kind))
        most = max(1, MAX_MASK // int(mask_rows[group[0]] * width[group[0]]))
        for begin in range(0, len(group), most):
            together.append(_together(paging, runs, group[begin : begin + most], block_size, heads, device))
    alone = [
        part
        for run in np.flatnonzero(~is_short).tolist()
        for part in _alone(paging, runs, run, block_size, device)
    ]
    return AttentionPlan(tuple(together), tuple(alone))


def _blocks(paging: Paging, runs: _Runs, group: np.ndarray, block_size: int) -> np.ndarray:
    """Blocks that the runs read, `[len(group), width]`."""
    # Beyond what a run sees it reads its last block again, which nobody else writes to.
    columns = np.minimum(np.arange(runs.width[group[0]]), (runs.seen[group, None] - 1) // block_size)
    return paging.tables.blocks[runs.table_row[group, None], columns]


def _together(
    paging: Paging, runs: _Runs, group: np.ndarray, block_size: int, heads: int, device: torch.device
) -> _Together:
    tokens, width = int(runs.tokens[group[0]]), int(runs.width[group[0]]) * block_size
    seen = runs.seen[group, None] - np.arange(tokens - 1, -1, -1)
    visible = np.arange(width) < seen[:, :, None]
    if tokens > 1:
        padding = np.ones((len(group), -tokens * heads % ROWS, width), np.bool_)
        visible = np.concatenate((visible.repeat(heads, 1), padding), 1)
    starts = runs.start[group]
    first, last = int(starts[0]), int(starts[-1])
    rows: Tensor | slice = slice(first, last + tokens)
    if last - first != (len(group) - 1) * tokens:
        rows = torch.from_numpy((starts[:, None] + np.arange(tokens)).ravel()).to(device)
    blocks = torch.from_numpy(_blocks(paging, runs, group, block_size).ravel()).to(device)
    return _Together(rows, blocks, len(group), tokens, torch.from_numpy(visible[:, None]).to(device))


def _alone(paging: Paging, runs: _Runs, run: int, block_size: int, device: torch.device) -> Iterator[_Alone]:
    blocks = torch.from_numpy(_blocks(paging, runs, np.array([run]), block_size)[0]).to(device)
    start, tokens = int(runs.start[run]), int(runs.tokens[run])
    width, first = int(runs.width[run]) * block_size, int(runs.seen[run]) - tokens
    tile = max(1, MAX_MASK // width)
    for begin in range(0, tokens, tile):
        end = min(tokens, begin + tile)
        padded = -(-(end - begin) // ROWS) * ROWS
        mask = np.arange(width) <= first + np.arange(begin, begin + padded)[:, None]
        yield _Alone(slice(start + begin, start + end), blocks, torch.from_numpy(mask).to(device))


def write(keys: Tensor, values: Tensor, slots: Tensor, key: Tensor, value: Tensor) -> None:
    """Puts new tokens into a layer's blocks.

    Args:
        keys, values: `[num_blocks, block_size, head_dim]`, changed in place, of any float dtype.
        slots: `[tokens]` int64.
        key, value: `[tokens, head_dim]`.
    """
    for cache, new in ((keys, key), (values, value)):
        rows = cache.view(-1, cache.shape[-1])
        if cache.dtype == FP8:
            rows, new = rows.view(torch.uint8), new.clamp(-FP8_MAX, FP8_MAX).to(FP8).view(torch.uint8)
        rows.index_copy_(0, slots, new.to(rows.dtype))


def attend_reference(query: Tensor, keys: Tensor, values: Tensor, paging: Paging, scale: float) -> Tensor:
    """Attention written out, token by token, in float32.

    Args:
        query: `[tokens, heads, head_dim]`.
        keys, values: `[num_blocks, block_size, head_dim]`, the new tokens written.
        scale: factor of the scores.

    Returns:
        `[tokens, heads, head_dim]` in the dtype of `query`.
    """
    outputs = []
    row = 0
    lengths = zip(paging.query_lengths, paging.context_lengths, paging.table_rows, strict=True)
    for length, context, table_row in lengths:
        used = torch.tensor(paging.tables.blocks[table_row, : -(-context // keys.shape[1])])
        key, value = keys[used].float().flatten(0, 1), values[used].float().flatten(0, 1)
        for seen in range(context - length + 1, context + 1):
            scores = query[row].float() @ key[:seen].T * scale
            outputs.append(scores.softmax(-1) @ value[:seen])
            row += 1
    return torch.stack(outputs).to(query.dtype)


def attend(query: Tensor, keys: Tensor, values: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """`attend_reference` for a prepared batch, fast."""
    output = torch.empty_like(query)
    heads, head_dim = query.shape[1:]
    for part in plan.together:
        lead = (part.sequences, 1)
        mixed = F.scaled_dot_product_attention(
            whole_rows(query[part.rows].reshape(*lead, part.tokens * heads, head_dim)),
            _gather(keys, part.blocks, query.dtype).view(*lead, -1, head_dim),
            _gather(values, part.blocks, query.dtype).view(*lead, -1, head_dim),
            attn_mask=part.mask,
            scale=scale,
        )
        output[part.rows] = mixed[:, :, : part.tokens * heads].reshape(-1, heads, head_dim)
    for chunk in plan.alone:
        key = _gather(keys, chunk.blocks, query.dtype).view(-1, head_dim)
        value = _gather(values, chunk.blocks, query.dtype).view(-1, head_dim)
        mixed = F.scaled_dot_product_attention(
            whole_rows(query[chunk.rows].transpose(0, 1)[None]),
            key.expand(1, heads, -1, -1),
            value.expand(1, heads, -1, -1),
            attn_mask=chunk.mask,
            scale=scale,
        )
        output[chunk.rows] = mixed[0, :, : chunk.rows.stop - chunk.rows.start].transpose(0, 1)
    return output


def _gather(cache: Tensor, blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """Whole blocks, one after the other: `[blocks, block_size * head_dim]`."""
    rows = cache.view(cache.shape[0], -1)
    if cache.dtype == FP8:
        return rows.view(torch.uint8).index_select(0, blocks).view(FP8).to(dtype)
    return rows.index_select(0, blocks).to(dtype)
