"""Which tensors, and which slice of them, an instance holds: a part of a checkpoint, as data.

An attention instance takes `Part(ATTENTION_SIDE)`, an FFN shard some experts and a slice of the
intermediate size, a pipeline stage a range of layers; the fields combine freely.
"""

from dataclasses import dataclass

from step3.checkpoint.config import BLOCK
from step3.checkpoint.errors import CheckpointError
from step3.checkpoint.layout import Cut, Kind, TensorSpec

ATTENTION_SIDE = frozenset({Kind.EMBEDDING, Kind.ATTENTION, Kind.ROUTER, Kind.NORM, Kind.LM_HEAD})
"""What an attention instance holds, without the vision side."""
FFN_SIDE = frozenset({Kind.DENSE_FFN, Kind.EXPERTS, Kind.SHARED_EXPERT})
"""What the FFN instances hold between them."""
VISION_SIDE = frozenset({Kind.VISION_TOWER, Kind.PROJECTOR})
EVERYTHING = frozenset(Kind)


@dataclass(frozen=True)
class Slice:
    """Piece `index` of `count` pieces into which every FFN's intermediate size is cut."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise CheckpointError(f"slice {self.index} of {self.count}: expected 0 <= index < count")

    def of(self, size: int) -> range:
        """This piece of `size` rows or columns.

        Cuts lie between blocks of 128, so that the pieces of a bf16 and of a block-fp8 checkpoint are the
        same and a piece's scales are whole; only a size with fewer blocks than pieces is cut anywhere.
        """
        unit = BLOCK if size >= BLOCK * self.count else 1
        units = -(-size // unit)
        start, stop = (min(size, units * i // self.count * unit) for i in (self.index, self.index + 1))
        return range(start, stop)


@dataclass(frozen=True)
class Part:
    """A part of a checkpoint; None means all of them."""

    kinds: frozenset[Kind] = EVERYTHING
    layers: range | None = None
    """Decoder layers. What lies outside the layers is chosen by `kinds` alone."""
    experts: range | None = None
    """Routed experts; the router keeps a row for each expert all the same."""
    slice: Slice | None = None
    """Piece of the intermediate size of every FFN weight: rows of gate and up, columns of down."""

    def box(self, spec: TensorSpec) -> tuple[range, ...] | None:
        """The wanted range of each dimension of a tensor, or None where the part has nothing of it.

        Raises:
            CheckpointError: experts that the tensor does not have, or a cut through a block-fp8 block.
        """
        if spec.kind not in self.kinds:
            return None
        if self.layers is not None and spec.layer is not None and spec.layer not in self.layers:
            return None
        box = [range(size) for size in spec.shape]
        if self.experts is not None and spec.kind is Kind.EXPERTS:
            if self.experts.step != 1 or not 0 <= self.experts.start <= self.experts.stop <= spec.shape[0]:
                raise CheckpointError(
                    f"{spec.name}: expected experts within 0..{spec.shape[0] - 1}, found {self.experts}"
                )
            box[0] = self.experts
        if self.slice is not None and spec.cut is not None:
            box[spec.cut.value] = self._cut(self.slice, spec, spec.cut)
        return tuple(box) if all(box) else None

    def _cut(self, piece: Slice, spec: TensorSpec, cut: Cut) -> range:
        wanted = piece.of(spec.shape[cut.value])
        if spec.quantised and wanted and wanted.start % BLOCK and wanted[-1] // BLOCK > wanted.start // BLOCK:
            raise CheckpointError(
                f"{spec.name}: {spec.shape[cut.value]} cannot be cut into {piece.count} pieces between "
                f"blocks of {BLOCK}; use at most {spec.shape[cut.value] // BLOCK}"
            )
        return wanted


def scale_box(box: tuple[range, ...]) -> tuple[range, ...]:
    """The blocks whose scales belong to the weights in `box`."""
    *lead, rows, columns = box
    blocks = (range(r.start // BLOCK, -(-r.stop // BLOCK)) for r in (rows, columns))
    return (*lead, *blocks)
