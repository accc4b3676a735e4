"""A layer's FFN on the CPU kernels: the routed experts, and what every token uses."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from step3.kernels.cpu.library import FFN, Matrix, num_threads
from step3.kernels.cpu.weights import CpuWeight, Placement, Workspace
from step3.kernels.linear import Weight


@dataclass(frozen=True, eq=False)
class CpuSwiGLU:
    """`SwiGLU` for the kernels: gate and up strip by strip beside each other, and down."""

    gate_up: CpuWeight
    down: CpuWeight

    @classmethod
    def take(
        cls, placement: Placement, gate: Weight, up: Weight, down: Weight, *, mapped: bool = False
    ) -> CpuSwiGLU:
        """Of one FFN, or of a stack of experts; see `Placement.take`."""
        gate_up = placement.take((gate, up), interleave=True, mapped=mapped)
        return cls(gate_up, placement.take((down,), mapped=mapped))

    @property
    def nbytes(self) -> int:
        return self.gate_up.nbytes + self.down.nbytes


class PackedFFN:
    """The FFN of a layer, or a shard's part of it.

    Args:
        always: dense FFN or shared expert, or None.
        experts: routed experts, or None.
        first: number of the first of `experts`.
    """

    def __init__(
        self,
        workspace: Workspace,
        always: CpuSwiGLU | None,
        experts: CpuSwiGLU | None = None,
        first: int = 0,
    ) -> None:
        self._held = [ffn for ffn in (always, experts) if ffn is not None]
        self._has_experts = experts is not None
        self._workspace = workspace
        nothing = Matrix()
        hidden = self._held[0].gate_up.columns if self._held else 0
        self._struct = FFN(
            always.gate_up.matrix if always else nothing,
            always.down.matrix if always else nothing,
            experts.gate_up.matrix if experts else nothing,
            experts.down.matrix if experts else nothing,
            first,
            experts.down.experts if experts else 0,
            hidden,
        )
        self._reference = ctypes.byref(self._struct)

    @property
    def address(self) -> int:
        """Of the struct that the kernels take."""
        return ctypes.addressof(self._struct)

    @property
    def nbytes(self) -> int:
        return sum(ffn.nbytes for ffn in self._held)

    def forward(self, x: Tensor, ids: Tensor | None, weights: Tensor | None) -> Tensor:
        """The part of the layer's output that these weights give.

        Args:
            x: `[tokens, hidden]`; multiplied in bfloat16.
            ids: `[tokens, k]` int64, counted over all experts, or None.
            weights: `[tokens, k]` float32, or None.

        Returns:
            `[tokens, hidden]` in the dtype of `x`.
        """
        if not self._held or (ids is None and len(self._held) == self._has_experts) or not len(x):
            return torch.zeros_like(x)
        # What came over a wire may be of another dtype; what is in place already costs nothing.
        asked, x = x.dtype, x.to(torch.bfloat16).contiguous()
        out = torch.empty_like(x)
        chosen = weighed = None
        top_k = 0
        if ids is not None and weights is not None and self._has_experts:
            ids, weights = ids.to(torch.int64).contiguous(), weights.to(torch.float32).contiguous()
            chosen, weighed, top_k = ids.data_ptr(), weights.data_ptr(), ids.shape[1]
        self._held[0].gate_up.library.c.step3_ffn_forward(
            self._workspace.pointer,
            num_threads(),
            self._reference,
            x.data_ptr(),
            x.shape[0],
            chosen,
            weighed,
            top_k,
            out.data_ptr(),
        )
        return out.to(asked)
