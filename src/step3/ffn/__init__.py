"""One FFN instance: which experts and slices it holds, and activations to partial sums. It keeps no state."""

from step3.ffn.call import FFNCall
from step3.ffn.shard import FFNShard
from step3.ffn.split import Piece, split

__all__ = ["FFNCall", "FFNShard", "Piece", "split"]
