"""Drives the lanes of an engine whose FFNs are elsewhere.

Each lane is at its own layer of its own step. A lane computes until it needs an FFN, its call is sent, and
whichever lane has its answer goes on: there is no barrier between lanes, layers or instances.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from step3.engine.engine import Engine
from step3.engine.lane import StepResult
from step3.engine.timeline import Stage, Timeline
from step3.ffn.call import FFNCall

PATIENCE = 0.05
"""Seconds after which `step` comes back though no lane's step has ended: its caller has to look around."""


@dataclass(frozen=True, eq=False)
class Arrived:
    """An FFN's output has come.

    Attributes:
        output: `[tokens, hidden]`, the sum of all shards' parts.
        release: to be called once the lane has used it.
    """

    lane: int
    output: Tensor
    release: Callable[[], None]


class FFNLink(Protocol):
    """The way to the FFNs; at most one call of a lane is on its way at a time."""

    def send(self, lane: int, call: FFNCall) -> None:
        """Asks for an FFN; returns at once."""

    def wait(self, timeout: float | None) -> list[Arrived]:
        """The outputs that have come since; waits for one at most `timeout` seconds, or until `wake`."""

    def wake(self) -> None:
        """Makes `wait` return; from any thread."""

    def close(self) -> None:
        """Says goodbye to the FFNs."""


@dataclass(eq=False)
class _Step:
    """A step that is under way.

    Attributes:
        layer: whose FFN was asked for last.
        tokens: of its batch.
    """

    work: Generator[FFNCall, Tensor, StepResult]
    layer: int = -1
    tokens: int = 0


class LaneDriver:
    """Steps all lanes of an engine at once.

    Attributes:
        timeline: where the lanes' time goes.
    """

    def __init__(self, engine: Engine, link: FFNLink, timeline: Timeline | None = None) -> None:
        self._engine, self._link = engine, link
        self._steps: dict[int, _Step] = {}
        self.timeline = timeline or Timeline(len(engine.lanes))

    def step(self) -> StepResult:
        """Goes on until a lane's step has ended; returns what came of those that did.

        Whoever steps does so within `torch.inference_mode()`, as with `Engine.step`.

        The result is empty if none did within `PATIENCE` seconds, if there is nothing to compute, or if
        `wake` was called. Steps that have not ended go on in the next call.
        """
        result = self._engine.poll()
        ended = [result] if result.advanced else []
        for lane in range(len(self._engine.lanes)):
            if lane not in self._steps:
                self._steps[lane] = _Step(self._engine.lanes[lane].step())
                self._resume(lane, None, ended)
        until = time.monotonic() + PATIENCE
        while self._steps and not ended and (left := until - time.monotonic()) > 0:
            began = time.monotonic()
            arrived = self._link.wait(left)
            self.timeline.idle_seconds += time.monotonic() - began
            if not arrived:
                break
            self._go_on(arrived, ended)
        # What has come meanwhile is sent on its way before the caller does anything else.
        if ended and self._steps:
            self._go_on(self._link.wait(0), ended)
        return ended[0] if len(ended) == 1 else StepResult.merged(ended)

    def rest(self, seconds: float = 1.0) -> None:
        """Lets the link do what it has to while there is nothing to compute, until `wake`."""
        self._link.wait(seconds)

    def wake(self) -> None:
        """Makes `step` and `rest` return soon; from any thread."""
        self._link.wake()

    def close(self) -> None:
        """Gives up the steps that are under way."""
        for step in self._steps.values():
            step.work.close()
        self._steps.clear()
        self._link.close()

    def _go_on(self, arrived: list[Arrived], ended: list[StepResult]) -> None:
        for one in arrived:
            self._resume(one.lane, one, ended)

    def _resume(self, lane: int, arrived: Arrived | None, ended: list[StepResult]) -> None:
        """Lets a lane compute up to its next call, or to the end of its step."""
        step, times = self._steps[lane], self.timeline.lanes[lane]
        began = time.monotonic_ns()
        try:
            call = next(step.work) if arrived is None else step.work.send(arrived.output)
        except StopIteration as end:
            del self._steps[lane]
            if step.layer >= 0:
                times.steps += 1
                times.tokens += step.tokens
                self.timeline.add(lane, Stage.ATTENTION, -1, began, time.monotonic_ns(), step.tokens)
            result = self._engine.settle(end.value)
            if result.advanced or step.layer >= 0:
                ended.append(result)
            return
        finally:
            if arrived is not None:
                arrived.release()
        step.layer, step.tokens = call.layer, call.x.shape[0]
        times.calls += 1
        self._link.send(lane, call)
        self.timeline.add(lane, Stage.ATTENTION, call.layer, began, time.monotonic_ns(), step.tokens)
