"""Causal attention of a ragged batch over paged keys and values, one key head for all query heads (MFA).

The keys and values of a layer lie in blocks, `[num_blocks, block_size, head_dim]`; a sequence's block table
names its blocks in order, and a token's slot is `block * block_size + offset`. Blocks hold the activations'
dtype or float8_e4m3fn without a scale (values beyond ±448 saturate).

What depends on the batch alone is prepared once a step (`prepare`) and serves every layer (`attend`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max

SHORT_QUERY = 16
"""Sequences with at most this many new tokens are computed together, padded to the longest context."""
MIN_FILL = 0.7
"""A sequence joins others only if its context is at least this part of their longest."""
MAX_MASK = 1 << 24
"""Elements of the largest mask; more sequences or query tokens are computed one after the other."""


@dataclass(frozen=True, eq=False)
class Paging:
    """How the tokens of a ragged batch, `[tokens]` sequence by sequence, lie in the cache; all int64.

    Attributes:
        query_lengths: `[sequences]`, new tokens of each, at least one.
        context_lengths: `[sequences]`, all its tokens that are in the cache, the new ones included.
        block_tables: `[rows, blocks]`; entries beyond a context are not read.
        table_rows: `[sequences]`, the row of each.
    """

    query_lengths: np.ndarray
    context_lengths: np.ndarray
    block_tables: np.ndarray
    table_rows: np.ndarray


@dataclass(frozen=True, eq=False)
class _Together:
    """Sequences with equally many new tokens: one batched product, query heads as its rows."""

    rows: Tensor | slice
    blocks: Tensor
    sequences: int
    tokens: int
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class _Alone:
    """Some of the new tokens of one sequence, with the context that they see."""

    rows: slice
    blocks: Tensor
    context: int
    mask: Tensor | None
    is_causal: bool


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """What `attend` needs to know of a batch, the same for every layer."""

    together: tuple[_Together, ...]
    alone: tuple[_Alone, ...]


def prepare(paging: Paging, block_size: int, heads: int, device: torch.device) -> AttentionPlan:
    """Decides which sequences are computed together, and makes their indices and masks."""
    lengths, contexts = paging.query_lengths, paging.context_lengths
    starts = lengths.cumsum() - lengths
    if starts[-1] == len(starts) - 1 and lengths[-1] == 1:
        decodes = _similar(contexts, np.arange(len(contexts)), 1)
        return AttentionPlan(
            tuple(_together(paging, group, 1, starts, block_size, heads, device) for group in decodes), ()
        )
    together: list[_Together] = []
    is_short = (lengths == 1) | ((lengths <= SHORT_QUERY) & (lengths * heads * contexts <= MAX_MASK))
    for tokens in np.unique(lengths[is_short]).tolist():
        sequences = np.flatnonzero(is_short & (lengths == tokens))
        together += [
            _together(paging, group, tokens, starts, block_size, heads, device)
            for group in _similar(contexts, sequences, tokens * heads if tokens > 1 else 1)
        ]
    alone = [
        part
        for sequence in np.flatnonzero(~is_short).tolist()
        for part in _alone(paging, sequence, int(starts[sequence]), block_size, device)
    ]
    return AttentionPlan(tuple(together), tuple(alone))


def _similar(contexts: np.ndarray, sequences: np.ndarray, mask_rows: int) -> Iterator[np.ndarray]:
    """Groups of sequences whose contexts are of like length, and whose mask is not too large."""
    own = contexts[sequences]
    longest = own.max()
    if own.min() >= MIN_FILL * longest and len(own) * mask_rows * longest <= MAX_MASK:
        yield sequences
        return
    order = np.argsort(-own, kind="stable")
    by_context = own[order].tolist()
    begin = 0
    for i in range(1, len(by_context) + 1):
        longest = by_context[begin]
        if (
            i == len(by_context)
            or by_context[i] < MIN_FILL * longest
            or (i - begin + 1) * mask_rows * longest > MAX_MASK
        ):
            # Within a group the order is that of the batch: rows that lie side by side need no gathering.
            yield np.sort(sequences[order[begin:i]])
            begin = i


def _together(
    paging: Paging,
    group: np.ndarray,
    tokens: int,
    starts: np.ndarray,
    block_size: int,
    heads: int,
    device: torch.device,
) -> _Together:
    contexts = paging.context_lengths[group, None]
    width = -(-int(contexts.max()) // block_size)
    # Beyond its context a sequence reads its own last block again, which nobody else writes to.
    columns = np.minimum(np.arange(width), (contexts - 1) // block_size)
    blocks = paging.block_tables[paging.table_rows[group, None], columns]
    mask = None
    if tokens > 1 or (contexts != width * block_size).any():
        seen = contexts - np.arange(tokens - 1, -1, -1)
        visible = np.arange(width * block_size) < seen[:, :, None]
        if tokens > 1:
            visible = visible.repeat(heads, 1)
        mask = torch.from_numpy(visible[:, None]).to(device)
    first, last = int(starts[group[0]]), int(starts[group[-1]])
    rows: Tensor | slice = slice(first, last + tokens)
    if last - first != (len(group) - 1) * tokens:
        rows = torch.from_numpy((starts[group, None] + np.arange(tokens)).ravel()).to(device)
    return _Together(rows, torch.from_numpy(blocks.ravel()).to(device), len(group), tokens, mask)


def _alone(
    paging: Paging, sequence: int, start: int, block_size: int, device: torch.device
) -> Iterator[_Alone]:
    length, context = int(paging.query_lengths[sequence]), int(paging.context_lengths[sequence])
    first = context - length
    table = paging.block_tables[paging.table_rows[sequence], : -(-context // block_size)]
    blocks = torch.tensor(table, device=device)
    if first == 0:
        yield _Alone(slice(start, start + length), blocks, context, None, True)
        return
    tile = max(1, MAX_MASK // context)
    for begin in range(0, length, tile):
        end = min(length, begin + tile)
        seen = first + end
        mask = np.arange(seen) <= np.arange(first + begin, seen)[:, None]
        yield _Alone(
            slice(start + begin, start + end),
            blocks[: -(-seen // block_size)],
            seen,
            torch.from_numpy(mask).to(device),
            False,
        )


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
        used = torch.tensor(paging.block_tables[table_row, : -(-context // keys.shape[1])])
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
            query[part.rows].reshape(*lead, part.tokens * heads, head_dim),
            _gather(keys, part.blocks, query.dtype).view(*lead, -1, head_dim),
            _gather(values, part.blocks, query.dtype).view(*lead, -1, head_dim),
            attn_mask=part.mask,
            scale=scale,
        )
        output[part.rows] = mixed.view(-1, heads, head_dim)
    for chunk in plan.alone:
        key = _gather(keys, chunk.blocks, query.dtype).view(-1, head_dim)[: chunk.context]
        value = _gather(values, chunk.blocks, query.dtype).view(-1, head_dim)[: chunk.context]
        mixed = F.scaled_dot_product_attention(
            query[chunk.rows].transpose(0, 1)[None],
            key.expand(1, heads, -1, -1),
            value.expand(1, heads, -1, -1),
            attn_mask=chunk.mask,
            is_causal=chunk.is_causal,
            scale=scale,
        )
        output[chunk.rows] = mixed[0].transpose(0, 1)
    return output


def _gather(cache: Tensor, blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """Whole blocks, one after the other: `[blocks, block_size * head_dim]`."""
    rows = cache.view(cache.shape[0], -1)
    if cache.dtype == FP8:
        return rows.view(torch.uint8).index_select(0, blocks).view(FP8).to(dtype)
    return rows.index_select(0, blocks).to(dtype)
