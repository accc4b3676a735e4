"""What the attention side asks of the FFN side: one layer's FFN of one batch."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class FFNCall:
    """The FFN of one layer for some tokens; the answer is a partial sum `[tokens, hidden]`.

    Attributes:
        layer: decoder layer.
        x: `[tokens, hidden]`, normed.
        expert_ids: `[tokens, k]` int64, or None in a layer without experts.
        expert_weights: `[tokens, k]` float32, or None.
    """

    layer: int
    x: Tensor
    expert_ids: Tensor | None = None
    expert_weights: Tensor | None = None
