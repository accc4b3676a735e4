"""A step in one call and by turns, over ragged batches of every kind; and what it begins and ends with."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from step3.kernels.attention import BlockTables, Paging
from step3.kernels.cpu import Library
from step3.kernels.cpu.attention import AttentionShape, PackedAttention, PackedStep, packed_linear
from step3.kernels.cpu.decoder import PackedNetwork
from step3.kernels.cpu.ffn import CpuSwiGLU, PackedFFN
from step3.kernels.cpu.weights import Packing, Placement, Workspace
from step3.kernels.rotary import cos_sin

HIDDEN, INNER, EXPERTS, VOCABULARY, BLOCK, FACTOR = 64, 48, 4, 300, 32, 1.25
SHAPE = AttentionShape(HIDDEN, 32, 4, 16, 1e-5, torch.bfloat16, BLOCK, EXPERTS, 2, True)
FREQUENCIES = 500000.0 ** -(torch.arange(8) / 8)
BATCHES = {
    "one token": [(1, 1)],
    "decodes": [(1, 3), (1, 70), (1, 32), (1, 33), (1, 600)],
    "a whole prompt": [(40, 40)],
    "chunks and decodes": [(1, 9), (50, 50), (1, 520), (20, 641), (3, 12), (90, 100)],
}
Features = Sequence[tuple[np.ndarray, Tensor]]


def matrix(rows: int, columns: int) -> Tensor:
    return (torch.randn(rows, columns) / columns**0.5).bfloat16()


def swiglu(placement: Placement, *stack: int) -> CpuSwiGLU:
    gate, up = ((torch.randn(*stack, INNER, HIDDEN) / 8).bfloat16() for _ in range(2))
    return CpuSwiGLU.take(placement, gate, up, (torch.randn(*stack, HIDDEN, INNER) / 7).bfloat16())


class Small:
    """A network of a dense layer and one of experts, with random weights and the keys of random tokens."""

    def __init__(self, library: Library) -> None:
        placement, self.workspace = Packing(library), Workspace(library)
        self.ffns = [
            PackedFFN(self.workspace, swiglu(placement)),
            PackedFFN(self.workspace, swiglu(placement), swiglu(placement, EXPERTS)),
        ]
        self.norm = torch.rand(HIDDEN) + 0.5
        routers = (None, torch.randn(EXPERTS, HIDDEN))
        self.head = placement.take((matrix(VOCABULARY, HIDDEN),))
        self.pages = [tuple(torch.zeros(80, BLOCK, 16).bfloat16() for _ in range(2)) for _ in range(2)]
        self.network = PackedNetwork(
            SHAPE,
            self.workspace,
            [self._layer(placement, router) for router in routers],
            self.ffns,
            self.pages,  # type: ignore[arg-type]
            embedding=torch.randn(VOCABULARY, HIDDEN),
            angles=(FREQUENCIES, FACTOR),
            norm=self.norm,
            head=self.head,
        )

    def _layer(self, placement: Placement, router: Tensor | None) -> PackedAttention:
        return PackedAttention(
            placement,
            (matrix(32, HIDDEN), matrix(16, HIDDEN), matrix(16, HIDDEN)),
            matrix(64, 32),
            matrix(HIDDEN, 64),
            (torch.rand(HIDDEN) + 0.5, torch.rand(32) + 0.5, torch.rand(HIDDEN) + 0.5),
            router,
        )

    def at_once(
        self, step: PackedStep, *, keeps_hidden: bool = False
    ) -> tuple[Tensor, array[int], Tensor | None]:
        """Logits, likeliest tokens and, if asked for, hidden states of a step in one call."""
        self._forget()
        logits, tokens, hidden = outputs(step)
        kept = hidden if keeps_hidden else None
        self.network.run(step, kept, logits, tokens)
        return logits, tokens, kept

    def by_turns(self, step: PackedStep) -> tuple[Tensor, array[int], Tensor]:
        """The same with a call for each part."""
        self._forget()
        self.network.begin(step)
        answer = None
        for index, ffn in enumerate(self.ffns):
            answer = ffn.forward(*self.network.attend(index, step, answer))
        assert answer is not None
        logits, tokens, hidden = outputs(step)
        self.network.end(step, answer, hidden, logits, tokens)
        return logits, tokens, hidden

    def _forget(self) -> None:
        generator = torch.Generator().manual_seed(1)
        for pages in self.pages:
            for part in pages:
                part.copy_(torch.randn(part.shape, generator=generator))


def outputs(step: PackedStep) -> tuple[Tensor, array[int], Tensor]:
    logits = torch.full((step.num_scored, VOCABULARY), torch.nan)
    hidden = torch.full((step.tokens, HIDDEN), torch.nan, dtype=torch.bfloat16)
    return logits, array("q", [-7]) * step.num_scored, hidden


def paging_of(lengths: list[tuple[int, int]]) -> Paging:
    """The sequences' blocks lie in random order, and their rows of the table in another than theirs."""
    widths = [-(-context // BLOCK) for _, context in lengths]
    order = torch.randperm(80).numpy()
    tables = np.full((len(lengths), max(widths) + 1), -1)
    for row, width in enumerate(widths):
        tables[row, :width], order = order[:width], order[width:]
    rows = array("q", range(len(lengths))[::-1])
    queries, contexts = zip(*lengths, strict=True)
    return Paging(array("q", queries), array("q", contexts), BlockTables(tables[::-1].copy()), rows)


def step_of(
    lengths: list[tuple[int, int]], scored: Sequence[int] | None = None, features: Features = ()
) -> PackedStep:
    """Random tokens; the last one of each sequence is scored if nothing else is asked for."""
    paging = paging_of(lengths)
    ends = np.cumsum(paging.query_lengths)
    ids = torch.randint(0, VOCABULARY, (int(ends[-1]),)).tolist()
    chosen = (ends - 1).tolist() if scored is None else scored
    return PackedStep(array("q", ids), paging, array("q", chosen), features)


@pytest.fixture
def small(library: Library) -> Small:
    return Small(library)


@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
def test_one_call_gives_what_many_give(small: Small, lengths: list[tuple[int, int]]) -> None:
    step = step_of(lengths)
    logits, tokens, hidden = small.at_once(step, keeps_hidden=True)
    by_turns = small.by_turns(step)
    assert hidden is not None
    assert torch.equal(logits, by_turns[0])
    assert tokens == by_turns[1]
    assert torch.equal(hidden, by_turns[2])
    assert logits.isfinite().all()


def test_prompts_of_many_tokens_give_what_their_chunks_give(small: Small) -> None:
    # So many that each thread prepares some of them for attention by itself.
    whole = step_of([(301, 301), (333, 333)], scored=range(634))
    ids, paging = whole.ids.tolist(), whole.paging
    small.network.run(whole, None, logits := outputs(whole)[0], None)
    chunks: list[list[Tensor]] = [[], []]
    for begin in range(0, 333, 50):
        ends = [min(begin + 50, 301), min(begin + 50, 333)]
        some = [ids[begin : ends[0]], ids[301 + begin : 301 + ends[1]]]
        chunk = PackedStep(
            array("q", some[0] + some[1]),
            Paging(array("q", map(len, some)), array("q", ends), paging.tables, paging.table_rows),
            array("q", range(len(some[0] + some[1]))),
        )
        small.network.run(chunk, None, part := outputs(chunk)[0], None)
        for own, rows in zip(chunks, part.split([len(one) for one in some]), strict=True):
            own.append(rows)
    assert torch.equal(logits, torch.cat(chunks[0] + chunks[1]))


@pytest.mark.parametrize("scored", [[], [4], [0, 60], [60, 3, 61, 3]])
def test_only_scored_rows_go_through_the_head(small: Small, scored: list[int]) -> None:
    step = step_of(BATCHES["chunks and decodes"], scored)
    logits, _, hidden = small.by_turns(step)
    assert torch.equal(logits, packed_linear(hidden[scored], small.head, small.workspace))
    assert torch.equal(small.at_once(step)[0], logits)


@pytest.mark.parametrize("lengths", [[(1, 9), (50, 50)], [(700, 700), (1, 9)]], ids=["few", "many"])
@pytest.mark.parametrize("scored", [[], [49], [9, 40]])
def test_keys_are_kept_of_tokens_that_are_not_scored(
    small: Small, lengths: list[tuple[int, int]], scored: list[int]
) -> None:
    step = step_of(lengths, scored)
    small.by_turns(step)
    expected = [part.clone() for pages in small.pages for part in pages]
    small.at_once(step)
    found = [part for pages in small.pages for part in pages]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_likeliest_are_told_without_logits(small: Small) -> None:
    step = step_of(BATCHES["chunks and decodes"])
    logits, _, _ = small.at_once(step)
    tokens = array("q", bytes(8 * step.num_scored))
    small.network.run(step, None, None, tokens)
    assert tokens.tolist() == logits.numpy().argmax(-1).tolist()


def test_of_equals_the_first_is_the_likeliest(library: Library) -> None:
    small = Small(library)
    small.norm.zero_()
    logits, tokens, _ = small.at_once(step_of(BATCHES["decodes"]))
    assert not logits.any()
    assert tokens.tolist() == [0] * 5


def test_rows_that_are_no_numbers_have_no_likeliest_token(small: Small) -> None:
    step = step_of(BATCHES["decodes"])
    expected, tokens, _ = small.at_once(step)
    small.network.embedding[step.ids[2]] = torch.nan
    logits, found, _ = small.at_once(step)
    assert logits[2].isnan().all()
    assert found[2] == -1
    others = [0, 1, 3, 4]
    assert torch.equal(logits[others], expected[others])
    assert [found[row] for row in others] == [tokens[row] for row in others]


def test_pictures_fill_their_rows(small: Small) -> None:
    first, second = torch.randn(2, HIDDEN).bfloat16(), torch.randn(40, 2 * HIDDEN)[:, :HIDDEN]
    rows = np.array([3, 8]), np.arange(60, 100)
    step = step_of([(20, 33), (90, 100)], features=list(zip(rows, (first, second), strict=True)))
    small.network.begin(step)
    assert torch.equal(step.hidden[[3, 8]], first.float())
    assert torch.equal(step.hidden[60:100], second)
    others = [row for row in range(step.tokens) if row not in {3, 8, *range(60, 100)}]
    ids = torch.tensor(step.ids)
    assert torch.equal(step.hidden[others], small.network.embedding[ids[others]].float())
    assert torch.equal(small.at_once(step)[0], small.by_turns(step)[0])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
def test_begins_with_slots_angles_and_embeddings(
    small: Small, lengths: list[tuple[int, int]], threads: int
) -> None:
    step, before = step_of(lengths), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        small.network.begin(step)
    finally:
        torch.set_num_threads(before)
    assert step.slots.tolist() == step.paging.slots(BLOCK).tolist()
    assert torch.equal(step.hidden, small.network.embedding[torch.tensor(step.ids)].float())
    expected = cos_sin(torch.from_numpy(step.paging.positions()), FREQUENCIES, FACTOR)
    torch.testing.assert_close(step.cos, expected[0], rtol=0, atol=3e-7)
    torch.testing.assert_close(step.sin, expected[1], rtol=0, atol=3e-7)


def test_angles_of_far_positions(library: Library) -> None:
    small = Small(library)
    tables = BlockTables(np.zeros((1, 131072 // BLOCK), np.int64))
    for context in torch.randint(1, 131072, (50,)).tolist():
        paging = Paging(array("q", [1]), array("q", [context]), tables, array("q", [0]))
        step = PackedStep(array("q", [1]), paging, array("q"))
        small.network.begin(step)
        expected = cos_sin(torch.tensor([context - 1]), FREQUENCIES, FACTOR)
        torch.testing.assert_close(step.cos, expected[0], rtol=0, atol=3e-7)
        torch.testing.assert_close(step.sin, expected[1], rtol=0, atol=3e-7)


def test_angles_do_not_depend_on_the_batch(small: Small) -> None:
    together, alone = step_of([(200, 200)]), step_of([(1, 78)])
    small.network.begin(together)
    small.network.begin(alone)
    assert torch.equal(together.cos[77], alone.cos[0])
    assert torch.equal(together.sin[77], alone.sin[0])
