"""The decoder on packed weights: a step in one call, or layer by layer where the FFNs are elsewhere."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from step3.kernels.cpu.attention import AttentionShape, PackedAttention, PackedStep
from step3.kernels.cpu.ffn import PackedFFN
from step3.kernels.cpu.library import Layer, Network, num_threads
from step3.kernels.cpu.weights import CpuWeight, Workspace


class PackedNetwork:
    """All that a step goes through, from tokens to logits.

    In one call no interpreter runs between its parts. After a step little of what Python and torch need is
    left in the caches, and each operation of theirs takes tens of microseconds.
    """

    def __init__(
        self,
        shape: AttentionShape,
        workspace: Workspace,
        layers: Sequence[PackedAttention],
        ffns: Sequence[PackedFFN] | None,
        pages: Sequence[tuple[Tensor, Tensor]],
        *,
        embedding: Tensor,
        angles: tuple[Tensor, float],
        norm: Tensor,
        head: CpuWeight,
    ) -> None:
        """
        Args:
            ffns: of all layers, or None where they are elsewhere: then there is no `run`.
            pages: keys and values of each layer, which calls change; they are laid out as attention.h says.
            embedding: `[vocabulary, hidden]` bfloat16.
            angles: frequencies `[head_dim / 2]` float32, and the factor of cosines and sines.
            norm: the final one, `[hidden]` float32.
            head: `[vocabulary, hidden]`.
        """
        self.shape, self._workspace, self._library = shape, workspace, workspace.library
        self.embedding = embedding.to(torch.bfloat16).contiguous()
        frequencies = angles[0].float().contiguous()
        self._layers = tuple(layers)
        addresses = [None] * len(layers) if ffns is None else [ffn.address for ffn in ffns]
        self._structs = (Layer * len(layers))(
            *(
                Layer(layer.address, ffn, keys.data_ptr(), values.data_ptr())
                for layer, ffn, (keys, values) in zip(layers, addresses, pages, strict=True)
            )
        )
        self._kept = (frequencies, norm, head, ffns, tuple(pages))
        self._struct = Network(
            shape.struct(),
            self._structs,
            len(layers),
            self.embedding.data_ptr(),
            frequencies.data_ptr(),
            angles[1],
            norm.data_ptr(),
            head.matrix,
        )
        self._reference = ctypes.byref(self._struct)
        self._shape = ctypes.byref(self._struct.shape)

    def run(
        self, step: PackedStep, normed: Tensor | None, logits: Tensor | None, likeliest: array[int] | None
    ) -> None:
        """Computes a step; what it gives goes to the memory that `end` describes."""
        self._library.c.step3_step(
            self._workspace.pointer,
            num_threads(),
            self._reference,
            step.reference,
            None if normed is None else normed.data_ptr(),
            None if logits is None else logits.data_ptr(),
            None if likeliest is None else likeliest.buffer_info()[0],
        )

    def begin(self, step: PackedStep) -> None:
        """What comes before the first layer; the step keeps it."""
        step.give_memory(self.shape.hidden, self.shape.head_dim // 2)
        self._library.c.step3_begin(num_threads(), self._reference, step.reference)

    def attend(
        self, index: int, step: PackedStep, answer: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Adds the last layer's FFN and this one's attention to the hidden states, and routes.

        Args:
            answer: `[tokens, hidden]` bfloat16, or None before the first layer.

        Returns:
            What the FFN gets: normed activations `[tokens, hidden]` bfloat16, expert ids `[tokens, k]` int64
            and weights float32, or None in a layer without experts.
        """
        layer, struct = self._layers[index], self._structs[index]
        x = torch.empty(step.tokens, self.shape.hidden, dtype=torch.bfloat16)
        ids = weights = None
        if layer.router is not None:
            ids = torch.empty(step.tokens, self.shape.top_k, dtype=torch.int64)
            weights = torch.empty(step.tokens, self.shape.top_k, dtype=torch.float32)
        self._library.c.step3_attend_layer(
            self._workspace.pointer,
            num_threads(),
            self._shape,
            layer.reference,
            step.reference,
            struct.keys,
            struct.values,
            None if answer is None else answer.data_ptr(),
            x.data_ptr(),
            None if ids is None else ids.data_ptr(),
            None if weights is None else weights.data_ptr(),
        )
        return x, ids, weights

    def end(
        self,
        step: PackedStep,
        answer: Tensor,
        normed: Tensor | None,
        logits: Tensor | None,
        likeliest: array[int] | None,
    ) -> None:
        """What comes behind the last layer.

        Args:
            answer: of the last layer's FFN, `[tokens, hidden]` bfloat16.
            normed: takes the hidden states after the final norm, `[tokens, hidden]` bfloat16; or None.
            logits: takes those of the scored rows, `[scored, vocabulary]` float32; or None.
            likeliest: takes the best token of each scored row, `[scored]` int64, the first of equals, or -1
                where the best logit is no finite number; or None.
        """
        self._library.c.step3_end(
            self._workspace.pointer,
            num_threads(),
            self._reference,
            step.reference,
            answer.data_ptr(),
            None if normed is None else normed.data_ptr(),
            None if logits is None else logits.data_ptr(),
            None if likeliest is None else likeliest.buffer_info()[0],
        )
