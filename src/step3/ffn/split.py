"""How every FFN is cut into shards whose outputs sum to the whole."""

from dataclasses import dataclass

from step3.checkpoint import Part, Slice
from step3.checkpoint.config import BLOCK
from step3.checkpoint.layout import Kind

UNCUT = Slice(0, 1)


@dataclass(frozen=True)
class Piece:
    """What one shard holds of every FFN.

    Attributes:
        experts: routed experts, or None for all.
        expert_slice: piece of the routed experts' intermediate size.
        dense_slice: piece of the intermediate size of dense FFNs and shared experts, which every token uses
            and which are therefore cut over all shards, whatever the experts are cut by.
    """

    experts: range | None = None
    expert_slice: Slice = UNCUT
    dense_slice: Slice = UNCUT

    def routed_part(self, layer: int) -> Part:
        """What it holds of a layer's routed experts."""
        layers = range(layer, layer + 1)
        return Part(frozenset({Kind.EXPERTS}), layers, self.experts, self.expert_slice)

    def always_part(self, layer: int, intermediate_size: int) -> Part | None:
        """What it holds of a layer's dense FFN or shared expert, or None if there are more shards than blocks
        of 128 to cut it into and this is one of those that get nothing."""
        piece = self.dense_slice
        if intermediate_size >= BLOCK:
            pieces = min(piece.count, intermediate_size // BLOCK)
            if piece.index >= pieces:
                return None
            piece = Slice(piece.index, pieces)
        kinds = frozenset({Kind.DENSE_FFN, Kind.SHARED_EXPERT})
        return Part(kinds, range(layer, layer + 1), None, piece)


WHOLE = Piece()


def split(num_experts: int, expert_parallel: int, tensor_parallel: int) -> tuple[Piece, ...]:
    """The pieces of `expert_parallel * tensor_parallel` shards; the slices of the first experts come first.

    Args:
        num_experts: routed experts of a layer.
        expert_parallel: parts into which the experts are divided, as evenly as can be.
        tensor_parallel: parts into which each expert's intermediate size is cut.
    """
    shards = expert_parallel * tensor_parallel
    bounds = [num_experts * i // expert_parallel for i in range(expert_parallel + 1)]
    return tuple(
        Piece(
            range(bounds[shard // tensor_parallel], bounds[shard // tensor_parallel + 1]),
            Slice(shard % tensor_parallel, tensor_parallel),
            Slice(shard, shards),
        )
        for shard in range(shards)
    )
