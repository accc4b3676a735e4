"""An FFN instance's loop: serve what has arrived, all calls that wait for a layer in one product."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from step3.engine.timeline import Stage, Timeline
from step3.ffn import FFNCall, FFNShard
from step3.wire import FFNEndpoint, Group

log = logging.getLogger("step3.cluster")

LOOK_AROUND = 0.2
"""Seconds after which a server without calls looks whether it should stop."""


@dataclass
class ServedCounts:
    """What a server did since its start.

    Attributes:
        seconds: computing.
        products: groups of calls that were computed in one.
        tokens: rows of all calls.
    """

    seconds: float = 0.0
    products: int = 0
    calls: int = 0
    tokens: int = 0


class FFNServer:
    """Answers calls with a shard; keeps nothing between them.

    Attributes:
        counts: what it did.
        timeline: lane 0 is its own time.
    """

    def __init__(
        self,
        endpoint: FFNEndpoint,
        shard: FFNShard,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        max_tokens: int | None = None,
    ) -> None:
        """
        Args:
            dtype: in which activations are computed.
            max_tokens: of a product; more that wait come in the next.
        """
        self._endpoint, self._shard = endpoint, shard
        self._dtype, self._device, self._max_tokens = dtype, torch.device(device), max_tokens
        self.counts = ServedCounts()
        self.timeline = Timeline(1)

    @torch.inference_mode()
    def run(self, is_running: Callable[[], bool]) -> None:
        """Serves until told to stop; `FFNEndpoint.wake` makes it look at once."""
        while is_running():
            group = self._endpoint.serve(LOOK_AROUND, self._max_tokens)
            self._endpoint.events()
            if group is not None:
                self._answer(group)

    def _answer(self, group: Group) -> None:
        began = time.monotonic_ns()
        try:
            partial = self._shard.forward(self._call(group))
        except Exception as error:
            # One call that cannot be computed, say for want of memory, must not end all others.
            log.exception("layer %d of %d tokens could not be computed", group.layer, group.tokens)
            self._endpoint.fail(group, f"{type(error).__name__}: {error}"[:500])
            return
        self._endpoint.reply(group, partial)
        ended = time.monotonic_ns()
        self.counts.seconds += (ended - began) * 1e-9
        self.counts.products += 1
        self.counts.calls += len(group.calls)
        self.counts.tokens += group.tokens
        self.timeline.add(0, Stage.FFN, group.layer, began, ended, group.tokens)

    def _call(self, group: Group) -> FFNCall:
        wanted = torch.bfloat16 if self._dtype is torch.bfloat16 else torch.float32
        x = group.x(wanted).to(self._device, self._dtype)
        if group.expert_ids is None or group.expert_weights is None:
            return FFNCall(group.layer, x)
        ids, weights = group.expert_ids.to(self._device), group.expert_weights.to(self._device)
        return FFNCall(group.layer, x, ids, weights)
