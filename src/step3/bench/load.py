"""Loads: so many requests under way at any time, so many a second, or as a trace has them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from random import Random

import numpy as np

from step3.bench.prompts import Asking
from step3.bench.stream import Endpoint, Sample, stream
from step3.plan.simulate.requests import ClosedLoop, Lengths, OpenLoop, Request, Trace

MOST_IN_FLIGHT = 4096
"""Requests of an open loop at once; one that would be more is an error and is counted as one."""

Load = ClosedLoop | OpenLoop | Trace


@dataclass
class Run:
    """What a load came to.

    Attributes:
        samples: one for each request, in the order of their sending.
        seconds: from the first request's sending to the last one's end.
        late: most seconds that a request was sent after its time: much more than a few milliseconds says that
            this client, not only the server, was at its limit.
        processor_seconds: that this client computed.
    """

    load: Load
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0
    late: float = 0.0
    processor_seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What is sent, beside how often.

    Attributes:
        lengths: of prompts and answers; None takes a trace's own.
        count: requests of a load.
        longest_seconds: after which no more are sent.
        timeout: seconds that an answer may take.
    """

    endpoint: Endpoint
    asking: Asking
    lengths: Lengths | None
    count: int
    longest_seconds: float
    timeout: float
    seed: int


async def run(plan: Plan, load: Load, on_done: Callable[[], None] = lambda: None) -> Run:
    """Puts a load on the server and waits for all answers.

    Args:
        on_done: called after each of them.
    """
    result, rng = Run(load), Random(plan.seed)
    begin, processor = time.perf_counter(), time.process_time()

    async def send(request: Request) -> None:
        body = plan.asking.body(request.prompt, request.output, rng)
        sample = await stream(plan.endpoint, body, plan.timeout)
        result.samples.append(sample)
        on_done()

    if isinstance(load, ClosedLoop):
        await _closed(load.concurrency, _requests(plan, load), send, begin + plan.longest_seconds)
    else:
        await _open(_due(_requests(plan, load), begin, plan.longest_seconds, result), send, result)
    result.processor_seconds = time.process_time() - processor
    result.samples.sort(key=lambda sample: sample.started)
    if result.samples:
        ends = max(sample.ended for sample in result.samples)
        result.seconds = ends - result.samples[0].started
    return result


def _requests(plan: Plan, load: Load) -> Iterator[Request]:
    """The requests of a load, with the seconds at which they are due."""
    if isinstance(load, Trace):
        yield from islice(load.requests(), plan.count)
        return
    assert plan.lengths is not None
    generator = np.random.default_rng(plan.seed)
    times = load.times(generator) if isinstance(load, OpenLoop) else iter(lambda: 0.0, None)
    # Lengths do not depend on the load: every load is given the same work.
    draws = plan.lengths.draws(np.random.default_rng([plan.seed, 1]))
    for (prompt, output), due in islice(zip(draws, times, strict=False), plan.count):
        yield Request(due, prompt, output)


async def _closed(
    concurrency: int, requests: Iterator[Request], send: Callable[[Request], Awaitable[None]], until: float
) -> None:
    async def client() -> None:
        for request in requests:
            if time.perf_counter() >= until:
                return
            await send(request)

    await asyncio.gather(*(client() for _ in range(concurrency)))


async def _due(
    requests: Iterator[Request], begin: float, longest_seconds: float, result: Run
) -> AsyncIterator[Request]:
    """Each request at its time."""
    for request in requests:
        if request.arrival >= longest_seconds:
            return
        wait = begin + request.arrival - time.perf_counter()
        # Also when late: without a pause nothing that is under way would go on.
        await asyncio.sleep(max(0.0, wait))
        result.late = max(result.late, time.perf_counter() - begin - request.arrival)
        yield request


async def _open(due: AsyncIterator[Request], send: Callable[[Request], Awaitable[None]], result: Run) -> None:
    under_way: set[asyncio.Future[None]] = set()
    async for request in due:
        if len(under_way) >= MOST_IN_FLIGHT:
            now = time.perf_counter()
            result.samples.append(
                Sample(now, ended=now, error=f"not sent: {MOST_IN_FLIGHT:,} were under way already")
            )
            continue
        task = asyncio.ensure_future(send(request))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
