"""What a lane asks of a decoder, whatever computes it."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple, Protocol

from torch import Tensor

from step3.engine.batch import Batch
from step3.ffn.call import FFNCall


class Decoded(NamedTuple):
    """What a batch gives.

    Attributes:
        logits: of the scored rows, `[scored, vocabulary]` float32, to be overwritten; None where no row is
            scored, or where tokens are told instead.
        tokens: the likeliest of each scored row, the first of equals, or `NO_TOKEN` where the best logit is
            no finite number; None unless they are told.
        hidden: after the final norm, `[tokens, hidden]`; None unless asked for.
    """

    logits: Tensor | None
    tokens: list[int] | None = None
    hidden: Tensor | None = None


class StepDecoder(Protocol):
    """Embedding, attention layers, router, final norm and head."""

    def decode(
        self, batch: Batch, *, is_greedy: bool = False, keeps_hidden: bool = False
    ) -> Generator[FFNCall, Tensor, Decoded]:
        """Runs a batch through all layers.

        Yields each layer's FFN and is resumed with its output `[tokens, hidden]`. Who drives it decides
        where FFNs are computed, and what is computed meanwhile.

        Args:
            is_greedy: each row's likeliest token is all that matters of its logits: it may be told instead.
            keeps_hidden: the hidden states are asked for.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """`[rows, vocabulary]` float32 of hidden states `[rows, hidden]` after the final norm."""
        ...
