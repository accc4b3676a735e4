"""How FFNs are divided among shards."""

from step3.checkpoint import Slice
from step3.ffn.split import WHOLE, Piece, split


def test_one_shard_holds_everything() -> None:
    assert split(48, 1, 1) == (Piece(range(48), Slice(0, 1), Slice(0, 1)),)
    assert WHOLE.experts is None


def test_experts_are_divided_as_evenly_as_can_be() -> None:
    pieces = split(10, 4, 1)
    assert [len(piece.experts or ()) for piece in pieces] == [2, 3, 2, 3]
    assert [expert for piece in pieces for expert in piece.experts or ()] == list(range(10))


def test_what_every_token_uses_is_cut_over_all_shards() -> None:
    assert [piece.dense_slice for piece in split(48, 2, 2)] == [Slice(i, 4) for i in range(4)]


def test_both_ways_of_cutting_cover_each_expert_once() -> None:
    held = [(expert, piece.expert_slice) for piece in split(6, 2, 3) for expert in piece.experts or ()]
    assert len(set(held)) == len(held) == 6 * 3


def test_a_size_with_fewer_blocks_than_shards_is_cut_over_the_first() -> None:
    parts = [piece.always_part(0, 256) for piece in split(48, 3, 1)]
    assert [part and part.slice for part in parts] == [Slice(0, 2), Slice(1, 2), None]
