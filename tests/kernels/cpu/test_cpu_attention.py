"""Attention over packed pages against attention written out, over ragged batches and all head sizes."""

import ctypes
from array import array

import pytest
import torch
from torch import Tensor

from step3.kernels.attention import FP8, FP8_MAX, BlockTables, Paging, attend_reference
from step3.kernels.cpu import Library
from step3.kernels.cpu.attention import AttentionShape, PackedStep
from step3.kernels.cpu.weights import Workspace

BATCHES = {
    "one token": [(1, 1)],
    "decodes of any length": [(1, 3), (1, 50), (1, 16), (1, 17), (1, 49)],
    "a decode that is cut": [(1, 513), (1, 1500), (1, 1024)],
    "a whole prompt": [(40, 40)],
    "a later chunk": [(30, 375)],
    "drafts": [(4, 30), (4, 9), (2, 21), (4, 4)],
    "all together": [(1, 9), (33, 33), (1, 600), (20, 341), (3, 12), (1, 64), (3, 60)],
}


class Cache:
    """Keys and values of random sequences, in packed blocks that lie in random order, and plain."""

    def __init__(self, library: Library, shape: AttentionShape, lengths: list[tuple[int, int]]) -> None:
        self.library, self.shape = library, shape
        block, dim = shape.block_size, shape.head_dim
        widths = [-(-context // block) for _, context in lengths]
        order = torch.randperm(sum(widths) + 3)
        self.packed = [torch.zeros(len(order), block, dim, dtype=shape.kv_dtype) for _ in range(2)]
        self.plain = [torch.zeros(len(order), block, dim) for _ in range(2)]
        tables = torch.full((len(lengths), max(widths) + 1), -1)
        slots = []
        for row, (_, context) in enumerate(lengths):
            own, order = order[: widths[row]], order[widths[row] :]
            tables[row, : widths[row]] = own
            places = torch.arange(context)
            slots.append(own[places // block] * block + places % block)
        queries, contexts = zip(*lengths, strict=True)
        # The sequences' rows stand in the table in another order.
        self.paging = Paging(
            array("q", queries),
            array("q", contexts),
            BlockTables(tables.flip(0).numpy()),
            array("q", range(len(lengths))[::-1]),
        )
        self.fill(torch.cat(slots))

    def fill(self, slots: Tensor) -> None:
        new = [torch.randn(len(slots), self.shape.head_dim) for _ in range(2)]
        for plain, values in zip(self.plain, new, strict=True):
            stored = values.clamp(-FP8_MAX, FP8_MAX).to(self.shape.kv_dtype).float()
            plain.view(-1, self.shape.head_dim)[slots] = stored
        self.write(slots, *new)

    def write(self, slots: Tensor, key: Tensor, value: Tensor) -> None:
        struct = self.shape.struct()
        self.library.c.step3_write_kv(
            ctypes.byref(struct),
            len(slots),
            key.data_ptr(),
            value.data_ptr(),
            self.shape.head_dim,
            slots.data_ptr(),
            *(cache.data_ptr() for cache in self.packed),
        )

    def attend(self, query: Tensor, threads: int = 2) -> Tensor:
        step = PackedStep(array("q", bytes(8 * query.shape[0])), self.paging, array("q"))
        out, struct, workspace = torch.empty_like(query), self.shape.struct(), Workspace(self.library)
        self.library.c.step3_attend(
            workspace.pointer,
            threads,
            ctypes.byref(struct),
            step.reference,
            *(cache.data_ptr() for cache in self.packed),
            query.data_ptr(),
            out.data_ptr(),
        )
        return out

    def expected(self, query: Tensor) -> Tensor:
        rounded = query.bfloat16().float()
        return attend_reference(rounded, *self.plain, self.paging, self.shape.head_dim**-0.5)


def shape_of(
    heads: int, dim: int, dtype: torch.dtype = torch.bfloat16, block_size: int = 16
) -> AttentionShape:
    return AttentionShape(64, 64, heads, dim, 1e-5, dtype, block_size)


def query_of(lengths: list[tuple[int, int]], shape: AttentionShape) -> Tensor:
    return torch.randn(sum(length for length, _ in lengths), shape.heads, shape.head_dim)


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8], ids=["bf16", "fp8"])
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
def test_equals_the_reference(library: Library, lengths: list[tuple[int, int]], dtype: torch.dtype) -> None:
    shape = shape_of(16, 64, dtype, block_size=32)
    cache, query = Cache(library, shape, lengths), query_of(lengths, shape)
    torch.testing.assert_close(cache.attend(query), cache.expected(query), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8], ids=["bf16", "fp8"])
@pytest.mark.parametrize(("heads", "dim"), [(1, 16), (4, 32), (5, 48), (64, 128), (3, 256), (130, 32)])
def test_any_number_of_heads_of_any_size(library: Library, heads: int, dim: int, dtype: torch.dtype) -> None:
    shape, lengths = shape_of(heads, dim, dtype), [(1, 70), (9, 40), (1, 700)]
    cache, query = Cache(library, shape, lengths), query_of(lengths, shape)
    torch.testing.assert_close(cache.attend(query), cache.expected(query), rtol=1e-2, atol=1e-2)


def test_a_token_does_not_depend_on_those_beside_it(library: Library) -> None:
    shape, context = shape_of(6, 48), 500
    cache, query = Cache(library, shape, [(300, context)]), torch.randn(300, 6, 48)
    together, paging = cache.attend(query), cache.paging
    for first, last in ((0, 1), (57, 90), (299, 300)):
        end = array("q", [context - 300 + last])
        cache.paging = Paging(array("q", [last - first]), end, paging.tables, paging.table_rows)
        assert torch.equal(cache.attend(query[first:last].contiguous()), together[first:last])


def test_scores_may_grow_from_key_to_key(library: Library) -> None:
    # From page to page by more than a probability's exponent can take.
    shape = shape_of(4, 32)
    cache, query = Cache(library, shape, [(20, 900)]), torch.ones(20, 4, 32)
    slots = (
        torch.from_numpy(cache.paging.tables.blocks[0])[torch.arange(900) // 16] * 16 + torch.arange(900) % 16
    )
    keys, values = torch.arange(900).float()[:, None].expand(-1, 32).contiguous(), torch.randn(900, 32)
    for plain, new in zip(cache.plain, (keys.bfloat16().float(), values.bfloat16().float()), strict=True):
        plain.view(-1, 32)[slots] = new
    cache.write(slots, keys, values)
    torch.testing.assert_close(cache.attend(query), cache.expected(query), rtol=1e-2, atol=1e-2)


def test_does_not_depend_on_the_threads(library: Library) -> None:
    shape, lengths = shape_of(8, 64), BATCHES["all together"]
    cache, query = Cache(library, shape, lengths), query_of(lengths, shape)
    assert torch.equal(cache.attend(query, threads=1), cache.attend(query, threads=3))


def test_large_scores_do_not_overflow(library: Library) -> None:
    shape, lengths = shape_of(2, 32), [(1, 300), (3, 600)]
    cache, query = Cache(library, shape, lengths), query_of(lengths, shape) * 300
    torch.testing.assert_close(cache.attend(query), cache.expected(query), rtol=1e-2, atol=3e-2)


def test_what_lies_behind_a_context_is_not_seen(library: Library) -> None:
    shape, lengths = shape_of(4, 32), [(1, 3), (1, 9), (20, 26)]
    cache, query = Cache(library, shape, lengths), query_of(lengths, shape)
    before = cache.attend(query)
    for row, (_, context) in enumerate(lengths):
        own = torch.from_numpy(cache.paging.tables.blocks[cache.paging.table_rows[row]])
        places = torch.arange(context, -(-context // 16) * 16)
        slots = own[places // 16] * 16 + places % 16
        cache.write(slots, *torch.full((2, len(slots), 32), 1e4))
        # Whoever had the block before may have left no numbers.
        cache.write(slots, *torch.full((2, len(slots), 32), torch.nan))
    assert torch.equal(before, cache.attend(query))


def test_fp8_saturates_and_rounds_as_torch_does(library: Library) -> None:
    shape = shape_of(1, 32, FP8)
    cache = Cache(library, shape, [(1, 16)])
    # With one key all of the probability is its own: attention gives back the value.
    value = torch.cat(
        (torch.linspace(-600, 600, 8), torch.tensor([2.0**-9, 2.0**-10, 1.5 * 2**-9, 0.0]), torch.randn(20))
    )
    slot = torch.tensor([int(cache.paging.tables.blocks[0, 0]) * 16])
    cache.write(slot, torch.zeros(1, 32), value[None].contiguous())
    cache.paging.context_lengths[0] = 1
    expected = value.clamp(-FP8_MAX, FP8_MAX).to(FP8).float()
    torch.testing.assert_close(cache.attend(torch.ones(1, 1, 32))[0, 0], expected, rtol=1e-5, atol=1e-7)
