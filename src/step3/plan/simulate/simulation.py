"""A deployment serving requests, event by event."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from step3.plan.simulate.batching import Batching, LaneBatch, Sequence
from step3.plan.simulate.calls import CallTimes
from step3.plan.simulate.clock import Clock, Order
from step3.plan.simulate.faults import Failure, ReplicaHealth
from step3.plan.simulate.hosted import HostedPipeline
from step3.plan.simulate.jitter import random_factors
from step3.plan.simulate.lanes import Instance, Lane, Load, Recorder, Spent
from step3.plan.simulate.pipeline import Pipeline
from step3.plan.simulate.requests import ClosedLoop, OpenLoop, Request, Trace
from step3.plan.simulate.scenario import Scenario
from step3.plan.simulate.tally import Tally
from step3.plan.simulate.worked import Worked

Progress = Callable[[float], None]

SLICES = 200
"""A run reports its progress so often."""

MAX_REPLACEMENTS = 64
"""Requests that a closed loop tries in the place of one that is too long for any card."""


class Simulation:
    """One run of a scenario.

    Args:
        scenario: what is simulated.
        recorder: sees every span of work between `record_from` and `record_until`.
        record_from, record_until: seconds since the simulation began.

    Attributes:
        tally: what has been counted.
        clock: simulated time.
    """

    def __init__(
        self,
        scenario: Scenario,
        recorder: Recorder | None = None,
        record_from: float = 0.0,
        record_until: float = 0.0,
    ) -> None:
        self.scenario = scenario
        self.clock = Clock()
        whole = scenario.warmup + (scenario.duration or 1.0)
        self.tally = Tally(span=whole / 200)
        times = CallTimes(
            scenario.times, scenario.lengths.decoding_contexts(), scenario.prefill_core, scenario.width
        )
        faults = scenario.faults
        self._batching = [
            Batching(
                scenario.cards.attention,
                scenario.lanes,
                scenario.seats,
                scenario.room,
                times,
                scenario.chunk,
                scenario.tokens_per_step,
                scenario.copies,
                scenario.headroom,
                scenario.step_tokens,
            )
            for _ in range(scenario.simulated)
        ]
        instances = [
            Instance(number, faults.slowness("attention", number), faults.slowness("wire", number))
            for number in range(scenario.simulated)
        ]
        self.pipeline = self._make_pipeline(times, instances)
        self._lanes = [
            self.pipeline.lanes[i : i + scenario.lanes]
            for i in range(0, len(self.pipeline.lanes), scenario.lanes)
        ]
        self._health = ReplicaHealth(scenario.topology)
        self._deaths = [0] * scenario.simulated
        self._lost: list[list[Sequence]] = [[] for _ in instances]
        self._nowhere: list[Sequence] = []
        self._next_look = 0.0
        self._waking = [False] * scenario.simulated
        self._worked_before: Worked | None = None
        self._lengths = scenario.lengths.draws(np.random.default_rng([scenario.seed, 1]))
        self._coming = self._arrivals()
        for failure in faults.failures:
            act = self._attention_dies if failure.role == "attention" else self._ffn_dies
            self.clock.at(failure.seconds, Order.FAULT, act, failure)
        if recorder is not None:
            self.clock.at(record_from, Order.FAULT, self._record, recorder)
            self.clock.at(record_until, Order.FAULT, self._record, None)
        self.clock.at(scenario.warmup, Order.FAULT, self._begin, None)
        if isinstance(scenario.arrivals, ClosedLoop):
            self._fill(scenario.arrivals.concurrency // (scenario.copies * scenario.pods))
        self._expect_next()

    def _make_pipeline(self, times: CallTimes, instances: list[Instance]) -> Pipeline | HostedPipeline:
        scenario, faults = self.scenario, self.scenario.faults
        factors = random_factors(scenario.jitter, scenario.seed) if scenario.jitter else None
        if scenario.host is not None:
            return HostedPipeline(
                self.clock,
                times,
                scenario.topology,
                scenario.host,
                instances,
                scenario.lanes,
                self._step_ended,
                ffn_slowness=lambda number: faults.slowness("ffn", number),
                factors=factors,
            )
        return Pipeline(
            self.clock,
            times,
            instances,
            scenario.lanes,
            self._step_ended,
            monolith=scenario.topology.is_monolith,
            merge=scenario.merge,
            gather=scenario.gather,
            ffn_slowness=faults.ffn_slowness(),
            factors=factors,
        )

    def run(self, progress: Progress | None = None) -> None:
        """Simulate to the end.

        Args:
            progress: called with the share that is done, now and then.
        """
        scenario = self.scenario
        if scenario.duration is not None:
            end = scenario.warmup + scenario.duration
            for i in range(1, SLICES + 1):
                if not self.clock.run(end * i / SLICES):
                    break
                if progress is not None:
                    progress(i / SLICES)
            self.clock.run(end)
        else:
            horizon = self.tally.span
            while self.clock.run(self.clock.now + horizon):
                horizon = self.tally.output.width
                if progress is not None and scenario.requests:
                    progress(self.tally.requests.finished / scenario.requests)
        self._close()

    def _close(self) -> None:
        """Count up to now what is under way."""
        now, tally = self.clock.now, self.tally
        tally.advance(now)
        if tally.counting:
            for lane in self.pipeline.lanes:
                if lane.load is not None:
                    batch = self._batch(lane)
                    tally.running += batch.size * (now - max(batch.since, tally.since))

    @property
    def worked(self) -> Worked:
        """What every resource worked since the counting began."""
        now, before = self.pipeline.worked(), self._worked_before
        return now if before is None else now.since(before)

    @property
    def waiting(self) -> int:
        """Requests that wait for a place in a lane."""
        lost = sum(map(len, self._lost))
        return sum(len(each.waiting) for each in self._batching) + len(self._nowhere) + lost

    @property
    def running(self) -> int:
        """Requests in lanes."""
        return sum(each.size for each in self._batching)

    @property
    def preempted(self) -> int:
        """How often a request lost its cache to others, in the whole run."""
        return sum(each.preempted for each in self._batching)

    @property
    def short_of_cache(self) -> int:
        """How often a request had to wait for cache though there was a seat, in the whole run."""
        return sum(each.short_of_cache for each in self._batching)

    def _record(self, recorder: Recorder | None) -> None:
        self.pipeline.recorder = recorder

    def _begin(self, _: None) -> None:
        self._worked_before = self.pipeline.worked()
        self.tally.begin(self.clock.now)

    def _arrivals(self) -> Iterator[Request]:
        """Requests that come by themselves, those of one pod and of the instances that are simulated."""
        scenario, arrivals = self.scenario, self.scenario.arrivals
        generator = np.random.default_rng([scenario.seed, 2])
        share = 1 / (scenario.copies * scenario.pods)
        if isinstance(arrivals, OpenLoop):
            for seconds in replace(arrivals, rate=arrivals.rate * share).times(generator):
                prompt, output = next(self._lengths)
                yield Request(seconds, prompt, output)
        elif isinstance(arrivals, Trace):
            for request in arrivals.requests():
                if share == 1 or generator.random() < share:
                    yield request

    def _may_come(self) -> bool:
        most = self.scenario.requests
        return most is None or self.tally.requests.arrived < most

    def _expect_next(self) -> None:
        request = next(self._coming, None) if self._may_come() else None
        if request is not None:
            self.clock.at(request.arrival, Order.ARRIVAL, self._arrive, request)

    def _arrive(self, request: Request) -> None:
        self._accept(request)
        self._expect_next()

    def _accept(self, request: Request) -> bool:
        tally = self.tally
        tally.advance(self.clock.now)
        tally.requests.arrived += 1
        if self._batching[0].ever_fits(request):
            self._route(Sequence(request, self.scenario.prefills))
            return True
        tally.requests.rejected += 1
        return False

    def _fill(self, count: int) -> None:
        """Put the first requests of a closed loop in place."""
        places = [
            (batching, batch)
            for lanes in zip(*(each.lanes for each in self._batching), strict=True)
            for batching, batch in zip(self._batching, lanes, strict=True)
        ]
        met = self.scenario.lengths.in_decoding(np.random.default_rng([self.scenario.seed, 4]))
        for number in range(count):
            if not self._may_come():
                break
            prompt, output, made = next(met)
            batching, batch = places[number % len(places)]
            request = Request(0.0, prompt, output)
            if self.scenario.steady and batching.ever_fits(request):
                sequence = Sequence(request, must_prefill=False, made=made)
                if batching.place(sequence, batch):
                    self.tally.requests.arrived += 1
                    continue
            self._replace(0.0)
        for number in range(len(self._batching)):
            self._wake_soon(number)

    def _route(self, sequence: Sequence, first: bool = False) -> None:
        """Send a request to the attention instance that is least full."""
        open_ = [number for number, each in enumerate(self._batching) if each.available]
        if not open_:
            self._nowhere.append(sequence)
            return
        number = min(open_, key=lambda n: self._batching[n].load) if len(open_) > 1 else open_[0]
        self._batching[number].enqueue(sequence, first)
        self._wake_soon(number)

    def _wake_soon(self, number: int) -> None:
        if not self._waking[number]:
            self._waking[number] = True
            self.clock.at(self.clock.now, Order.WAKE, self._wake, number)

    def _wake(self, number: int) -> None:
        """Let idle lanes of an instance begin."""
        self._waking[number] = False
        for lane in self._lanes[number]:
            if lane.load is None:
                batch = self._batch(lane)
                load = self._batching[number].next_load(batch)
                if load is not None:
                    batch.since = self.clock.now
                    self.pipeline.start(lane, load)

    def _batch(self, lane: Lane) -> LaneBatch:
        return self._batching[lane.instance.number].lanes[lane.number]

    def _step_ended(self, lane: Lane) -> Load | None:
        now, tally, scenario = self.clock.now, self.tally, self.scenario
        batching, batch = self._batching[lane.instance.number], self._batch(lane)
        size, since = batch.size, batch.since
        seconds = now - since
        outcome = batching.end_step(batch)
        if isinstance(self.pipeline, HostedPipeline):
            self.pipeline.deliver(outcome.tokens)
        batch.since = now
        tally.output.spread(since, now, outcome.tokens)
        if tally.counting:
            tally.tokens += outcome.tokens
            tally.step.add(seconds)
            tally.running += size * (now - max(since, tally.since))
            tally.token.add(seconds / scenario.tokens_per_step, outcome.steady)
            tally.spend(lane.spent, 1 / scenario.tokens_per_step, outcome.steady)
        lane.spent = Spent()
        for sequence in outcome.started:
            self._first_token(sequence)
        for sequence in outcome.finished:
            self._finish(sequence)
        load = batching.next_load(batch)
        if now >= self._next_look:
            self._look()
        return load

    def _look(self) -> None:
        """Note what the timelines show, a few times in each of their spans."""
        now, tally = self.clock.now, self.tally
        self._next_look = now + tally.waiting.width / 4
        tally.cache.add(now, sum(each.cache_share for each in self._batching) / len(self._batching))
        tally.waiting.add(now, self.waiting)

    def _first_token(self, sequence: Sequence) -> None:
        now, tally = self.clock.now, self.tally
        if sequence.first is not None:
            if tally.counting and sequence.last is not None:
                tally.token.add(now - sequence.last)
            return
        sequence.first = now
        sequence.first_made = max(sequence.made, sequence.first_made + 1)
        if tally.counting and sequence.is_whole:
            tally.first_token.add(now - sequence.arrival)

    def _finish(self, sequence: Sequence) -> None:
        now, tally = self.clock.now, self.tally
        tally.advance(now)
        tally.requests.finished += 1
        if tally.counting:
            tally.finished += 1
            if sequence.is_whole:
                tally.whole.add(now - sequence.arrival)
            later = sequence.output - sequence.first_made
            if later > 0 and sequence.first is not None:
                tally.request_mean.add((now - sequence.first) / later)
        if isinstance(self.scenario.arrivals, ClosedLoop):
            self._replace(now)

    def _replace(self, now: float) -> None:
        """The next request of a closed loop; another one for each that cannot be served at all."""
        for _ in range(MAX_REPLACEMENTS):
            if not self._may_come():
                return
            prompt, output = next(self._lengths)
            if self._accept(Request(now, prompt, output)):
                return

    def _attention_dies(self, failure: Failure) -> None:
        number, now, faults = failure.instance, self.clock.now, self.scenario.faults
        batching = self._batching[number]
        self._deaths[number] += 1
        if not batching.stopped:
            self._own_cards.abort(self._lanes[number][0].instance)
            self._lost[number] += batching.lose()
            batching.stopped = True
            self.tally.recomputed += sum(sequence.tokens for sequence in self._lost[number])
        self.clock.at(now + faults.detection, Order.FAULT, self._attention_missed, number)
        self.clock.at(now + faults.restart, Order.FAULT, self._attention_returns, number)

    def _attention_missed(self, number: int) -> None:
        """Everyone knows now that the instance is dead: its requests go on elsewhere."""
        batching = self._batching[number]
        batching.available = False
        homeless = self._lost[number] + batching.take_waiting()
        self._lost[number] = []
        for sequence in reversed(homeless):
            self._route(sequence, first=True)

    def _attention_returns(self, number: int) -> None:
        """The instance serves again, and takes its part of what waits elsewhere."""
        self._deaths[number] -= 1
        if self._deaths[number]:
            return
        back = self._batching[number]
        back.available, back.stopped = True, False
        homeless, self._nowhere = self._nowhere, []
        for batching in self._batching:
            homeless += batching.take_waiting()
        for sequence in sorted(homeless, key=lambda sequence: sequence.arrival):
            self._route(sequence)
        self._wake_soon(number)

    def _ffn_dies(self, failure: Failure) -> None:
        now, faults = self.clock.now, self.scenario.faults
        self._health.died(failure.instance)
        self._own_cards.stop_ffn()
        self.clock.at(now + faults.detection, Order.FAULT, self._ffn_missed, failure.instance)
        self.clock.at(now + faults.restart, Order.FAULT, self._ffn_returns, failure.instance)

    def _ffn_missed(self, _: int) -> None:
        """Everyone knows now that the instance is dead: its replicas take its calls, if it has any."""
        self._health.detecting -= 1
        self._resume_ffn()

    def _ffn_returns(self, instance: int) -> None:
        self._health.returned(instance)
        self._resume_ffn()

    def _resume_ffn(self) -> None:
        load = self._health.replica_load
        if load is not None:
            self._own_cards.resume_ffn(load)

    @property
    def _own_cards(self) -> Pipeline:
        """The pipeline where instances have cards of their own, the only one whose instances can fail."""
        assert isinstance(self.pipeline, Pipeline)
        return self.pipeline
