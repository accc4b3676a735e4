from dataclasses import replace

import pytest
from checkpoints import GOLDEN, PUBLISHED

from step3.checkpoint.config import BlockFp8, read_config
from step3.checkpoint.errors import CheckpointError
from step3.checkpoint.layout import Kind, layout
from step3.checkpoint.part import ATTENTION_SIDE, EVERYTHING, FFN_SIDE, VISION_SIDE, Part, Slice, scale_box

STEP3 = layout(replace(read_config(PUBLISHED), quantisation=BlockFp8()))
GATE, UP, DOWN = (STEP3[f"model.layers.4.moe.{name}_proj.weight"] for name in ("gate", "up", "down"))


def test_the_sides_share_nothing_and_leave_nothing_out():
    assert ATTENTION_SIDE | FFN_SIDE | VISION_SIDE == EVERYTHING
    assert len(ATTENTION_SIDE) + len(FFN_SIDE) + len(VISION_SIDE) == len(EVERYTHING)


def test_everything_is_every_tensor_whole():
    for spec in STEP3.values():
        assert Part().box(spec) == tuple(range(size) for size in spec.shape)


def test_layers_choose_among_layers_and_leave_the_rest():
    part = Part(layers=range(4, 6))
    chosen = [spec for spec in STEP3.values() if part.box(spec)]
    assert {spec.layer for spec in chosen} == {4, 5, None}
    assert part.box(STEP3["model.embed_tokens.weight"]) is not None


def test_experts_cut_only_the_experts():
    part = Part(experts=range(12, 24))
    assert part.box(GATE) == (range(12, 24), range(5120), range(7168))
    assert part.box(STEP3["model.layers.4.moe.gate.weight"]) == (range(48), range(7168))
    assert part.box(STEP3["model.layers.4.share_expert.up_proj.weight"]) == (range(5120), range(7168))


@pytest.mark.parametrize("experts", [range(40, 49), range(-1, 3), range(0, 4, 2)])
def test_experts_that_do_not_exist_are_refused(experts):
    with pytest.raises(CheckpointError, match=r"moe.gate_proj.weight: expected experts within 0..47"):
        Part(experts=experts).box(GATE)


def test_no_experts_is_none_of_the_tensor():
    assert Part(experts=range(3, 3)).box(GATE) is None


def test_a_slice_cuts_rows_of_gate_and_up_and_columns_of_down():
    part = Part(slice=Slice(1, 2))
    assert part.box(GATE) == part.box(UP) == (range(48), range(2560, 5120), range(7168))
    assert part.box(DOWN) == (range(48), range(7168), range(2560, 5120))
    dense = STEP3["model.layers.0.mlp.down_proj.weight"]
    assert part.box(dense) == (range(7168), range(9216, 18432))


def test_a_slice_leaves_attention_whole():
    spec = STEP3["model.layers.0.self_attn.o_proj.weight"]
    assert Part(slice=Slice(1, 4)).box(spec) == (range(7168), range(16384))


@pytest.mark.parametrize("size", [1, 64, 127, 128, 129, 640, 5120, 18432])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 16, 40, 64])
def test_pieces_cover_a_size_once_in_order_and_cut_between_blocks(size, count):
    pieces = [Slice(i, count).of(size) for i in range(count)]
    assert [n for piece in pieces for n in piece] == list(range(size))
    if size >= 128 * count:
        assert all(piece.start % 128 == 0 for piece in pieces)
        assert max(map(len, pieces)) - min(map(len, pieces)) <= 128


def test_a_piece_of_blocks_has_whole_scales():
    box = Part(experts=range(2), slice=Slice(3, 8)).box(DOWN)
    assert box is not None
    assert scale_box(box) == (range(2), range(56), range(15, 20))


def test_a_cut_through_a_block_of_a_quantised_weight_is_refused():
    with pytest.raises(CheckpointError, match="5120 cannot be cut into 48 pieces between blocks of 128"):
        Part(slice=Slice(1, 48)).box(GATE)
    assert Part(slice=Slice(1, 48)).box(replace(GATE, quantised=False)) is not None


def test_a_cut_within_one_block_is_possible():
    spec = layout(read_config(GOLDEN / "text-fp8"))["model.layers.1.moe.down_proj.weight"]
    box = Part(slice=Slice(1, 2)).box(spec)
    assert box == (range(8), range(128), range(32, 64))
    assert scale_box(box) == (range(8), range(1), range(1))


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_a_slice_that_is_none_is_refused(index, count):
    with pytest.raises(CheckpointError, match="expected 0 <= index < count"):
        Slice(index, count)


def test_kinds_combine_with_layers():
    part = Part(frozenset({Kind.EXPERTS}), layers=range(4, 5))
    assert [spec.name for spec in STEP3.values() if part.box(spec)] == [GATE.name, UP.name, DOWN.name]
