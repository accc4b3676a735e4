"""Paged attention against attention written out, over ragged batches of every kind."""

from array import array
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from step3.kernels import attention
from step3.kernels.attention import FP8, BlockTables, Paging, attend, attend_reference, prepare, write

HEADS, HEAD_DIM, BLOCK = 4, 16, 8
CPU = torch.device("cpu")

BATCHES = {
    "one token": [(1, 1)],
    "decodes of equal length": [(1, 24), (1, 24), (1, 24)],
    "decodes of any length": [(1, 3), (1, 50), (1, 16), (1, 17), (1, 49)],
    "a whole prompt": [(40, 40)],
    "a later chunk": [(30, 75)],
    "drafts": [(4, 30), (4, 9), (2, 21), (4, 4)],
    "all together": [(1, 9), (33, 33), (1, 70), (20, 41), (3, 12), (1, 64), (3, 60)],
}


def scatter(lengths: list[tuple[int, int]], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Queries, caches whose blocks lie in random order, and what of them is nobody's is NaN."""
    torch.manual_seed(len(lengths))
    widths = [-(-context // BLOCK) for _, context in lengths]
    order = torch.randperm(sum(widths) + 3)
    keys = torch.full((len(order), BLOCK, HEAD_DIM), torch.nan)
    values = keys.clone()
    tables = torch.full((len(lengths), max(widths) + 1), -1)
    for row, (_, context) in enumerate(lengths):
        own, order = order[: widths[row]], order[widths[row] :]
        tables[row, : widths[row]] = own
        for cache in (keys, values):
            rows = torch.zeros(widths[row] * BLOCK, HEAD_DIM)
            rows[:context] = torch.randn(context, HEAD_DIM)
            cache[own] = rows.view(-1, BLOCK, HEAD_DIM)
    query = torch.randn(sum(length for length, _ in lengths), HEADS, HEAD_DIM)
    return query.to(dtype), keys.to(dtype), values.to(dtype), tables


def paging_of(lengths: list[tuple[int, int]], tables: Tensor) -> Paging:
    """The sequences' rows stand in the table in another order."""
    return listed(lengths, tables.flip(0), range(len(lengths))[::-1])


def listed(lengths: list[tuple[int, int]], tables: Tensor, rows: Sequence[int]) -> Paging:
    queries, contexts = zip(*lengths, strict=True)
    return Paging(array("q", queries), array("q", contexts), BlockTables(tables.numpy()), array("q", rows))


def both(lengths: list[tuple[int, int]], *tensors: Tensor) -> tuple[Tensor, Tensor]:
    query, keys, values, tables = tensors
    paging = paging_of(lengths, tables)
    plan = prepare(paging, BLOCK, HEADS, CPU)
    fast = attend(query, keys, values, plan, HEAD_DIM**-0.5)
    return fast, attend_reference(query, keys, values, paging, HEAD_DIM**-0.5)


@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
def test_equals_the_reference(lengths: list[tuple[int, int]]) -> None:
    torch.testing.assert_close(*both(lengths, *scatter(lengths)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 3, 4])
def test_a_token_does_not_depend_on_the_batch_or_on_the_chunks(heads: int) -> None:
    query, keys, values, tables = scatter([(413, 413), (1, 70), (40, 90)])
    query = query[:, :heads]

    def attended(lengths: list[tuple[int, int]], rows: list[int], *queries: Tensor) -> Tensor:
        plan = prepare(listed(lengths, tables, rows), BLOCK, heads, CPU)
        return attend(torch.cat(queries), keys, values, plan, 0.3)

    whole = attended([(413, 413)], [0], query[:413])
    begin = 0
    for length in [1, 1, 5, 30, 3, 17, 2, 64, 90, 1, 199]:
        chunk = query[begin : begin + length]
        got = attended([(length, begin + length), (1, 70), (40, 90)], [0, 1, 2], chunk, query[413:])
        assert torch.equal(got[:length], whole[begin : begin + length])
        begin += length
    assert begin == 413


@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
def test_equals_the_reference_in_bfloat16(lengths: list[tuple[int, int]]) -> None:
    torch.testing.assert_close(*both(lengths, *scatter(lengths, torch.bfloat16)), rtol=2e-2, atol=2e-2)


def test_a_mask_that_grows_too_large_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MAX_MASK", 300)
    lengths = BATCHES["all together"]
    torch.testing.assert_close(*both(lengths, *scatter(lengths)), rtol=1e-4, atol=1e-5)


def test_no_sequence_reads_what_lies_behind_its_context() -> None:
    lengths = [(1, 3), (1, 9), (20, 26)]
    query, keys, values, tables = scatter(lengths)
    before, _ = both(lengths, query, keys, values, tables)
    for row, (_, context) in enumerate(lengths):
        last = tables[row, (context - 1) // BLOCK]
        keys[last, context % BLOCK or BLOCK :] = 1e4
        values[last, context % BLOCK or BLOCK :] = 1e4
    after, _ = both(lengths, query, keys, values, tables)
    assert torch.equal(before, after)


def test_new_tokens_are_the_last_of_their_sequences() -> None:
    tables = torch.tensor([[7, 2, 9], [4, 5, 0]])
    paging = listed([(3, 10), (1, 1), (2, 17)], tables, [1, 1, 0])
    assert paging.positions().tolist() == [7, 8, 9, 0, 15, 16]
    blocks = [4, 5, 5, 4, 2, 9]
    offsets = [7, 0, 1, 0, 7, 0]
    expected = [block * BLOCK + offset for block, offset in zip(blocks, offsets, strict=True)]
    assert paging.slots(BLOCK).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FP8])
def test_writes_tokens_into_their_slots(dtype: torch.dtype) -> None:
    keys = torch.zeros(3, BLOCK, HEAD_DIM, dtype=dtype)
    values = torch.zeros_like(keys)
    key, value = torch.randn(2, 2, HEAD_DIM)
    write(keys, values, torch.tensor([BLOCK + 2, 0]), key, value)
    assert torch.equal(keys[1, 2].float(), key[0].to(dtype).float())
    assert torch.equal(values[0, 0].float(), value[1].to(dtype).float())
    assert int((keys.float() != 0).any(-1).sum()) == 2


def test_fp8_saturates_instead_of_becoming_nan() -> None:
    keys = torch.zeros(1, BLOCK, HEAD_DIM, dtype=FP8)
    values = torch.zeros_like(keys)
    write(keys, values, torch.tensor([0]), torch.full((1, HEAD_DIM), 1e6), torch.full((1, HEAD_DIM), -1e6))
    assert (keys[0, 0].float() == 448).all()
    assert (values[0, 0].float() == -448).all()


def test_attends_over_fp8_blocks_as_over_their_values() -> None:
    lengths = BATCHES["all together"]
    query, keys, values, tables = scatter(lengths)
    narrow = [cache.nan_to_num(0).to(FP8) for cache in (keys, values)]
    paging = paging_of(lengths, tables)
    plan = prepare(paging, BLOCK, HEADS, CPU)
    got = attend(query, *narrow, plan, 0.25)
    wide = attend_reference(query, *(cache.float() for cache in narrow), paging, 0.25)
    torch.testing.assert_close(got, wide, rtol=1e-4, atol=1e-5)
