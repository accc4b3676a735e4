"""All layers of the decoder in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from step3.kernels.cpu.attention import AttentionShape, PackedAttention, PackedStep
from step3.kernels.cpu.ffn import PackedFFN
from step3.kernels.cpu.library import Layer, num_threads
from step3.kernels.cpu.weights import Workspace


class WholeDecoder:
    """The layers, where one process holds attention and FFNs.

    Between its layers no interpreter runs, which is a tenth of a step that decodes one sequence of a small
    model.
    """

    def __init__(
        self,
        shape: AttentionShape,
        workspace: Workspace,
        layers: Sequence[PackedAttention],
        ffns: Sequence[PackedFFN],
        pages: Sequence[tuple[Tensor, Tensor]],
        final_norm: Tensor,
    ) -> None:
        """
        Args:
            pages: keys and values of each layer, see `PackedLayers.attend`.
            final_norm: `[hidden]` float32.
        """
        self._kept = (tuple(layers), tuple(ffns), tuple(pages), final_norm)
        self._library, self._workspace = layers[0].library, workspace
        self._shape = ctypes.byref(shape.struct())
        self._layers = (Layer * len(layers))(
            *(
                Layer(layer.address, ffn.address, keys.data_ptr(), values.data_ptr())
                for layer, ffn, (keys, values) in zip(layers, ffns, pages, strict=True)
            )
        )

    def forward(self, step: PackedStep, hidden: Tensor) -> Tensor:
        """The hidden states after the final norm, bfloat16; `hidden` `[tokens, hidden]` float32 changes."""
        out = torch.empty(hidden.shape, dtype=torch.bfloat16)
        self._library.c.step3_decode(
            self._workspace.pointer,
            num_threads(),
            self._shape,
            self._layers,
            len(self._layers),
            self._kept[3].data_ptr(),
            step.reference,
            hidden.data_ptr(),
            out.data_ptr(),
        )
        return out
