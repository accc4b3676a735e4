"""Calls of all lanes where the instances share a host's cores, as `pipeline` has them with a card each.

Here every FFN instance is simulated by itself: those on a core with others fall behind. A call goes to one
replica of every shard, the one that has the fewest calls of the caller, and the lane goes on when all have
answered. An FFN instance takes what waits longest, and with it all that waits for the same layer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from step3.plan.simulate.calls import CallTimes
from step3.plan.simulate.clock import Clock, Order
from step3.plan.simulate.cores import Cores, Host, Thread
from step3.plan.simulate.lanes import Instance, Lane, Load, Recorder
from step3.plan.simulate.worked import Worked
from step3.plan.topology import Topology


@dataclass(eq=False)
class _Part:
    """A shard's part of a lane's call."""

    lane: Lane
    server: "_Server"


@dataclass(eq=False)
class _Server:
    """An FFN instance.

    Attributes:
        waiting: parts of calls that have come.
        owing: parts that are on their way, wait or are computed, by attention instance.
    """

    number: int
    thread: Thread
    slowness: float
    waiting: list[_Part] = field(default_factory=list)
    owing: dict[int, int] = field(default_factory=dict)
    is_serving: bool = False


class HostedPipeline:
    """The lanes' calls, and the cores that they share.

    Args:
        clock: the simulation's time.
        times: seconds of each call; `ffn` is what an instance takes for its shard.
        topology: attention instances, shards and replicas.
        host: whose cores they share.
        instances: the attention instances.
        lanes: lanes of each.
        step_ended: called with a lane at the end of its step; gives its next load, or None if it has none.
        ffn_slowness: factor on the seconds of each FFN instance.
        factors: random factors on all seconds.
        recorder: sees every span of work.
    """

    def __init__(
        self,
        clock: Clock,
        times: CallTimes,
        topology: Topology,
        host: Host,
        instances: list[Instance],
        lanes: int,
        step_ended: Callable[[Lane], Load | None],
        ffn_slowness: Callable[[int], float] = lambda _: 1.0,
        factors: Iterator[float] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.lanes = [Lane(instance, number) for instance in instances for number in range(lanes)]
        self.recorder = recorder
        self._clock, self._times, self._host = clock, times, host
        self._step_ended, self._factors = step_ended, factors
        self._cores = Cores(clock, host.cores)
        self._layers = len(times.kinds)

        def thread(number: int, contention: float) -> Thread:
            return Thread(number % host.cores if host.is_bound else None, contention, host.wake)

        self._instances = instances
        self._attention = [thread(number, host.attention_contention) for number in range(len(instances))]
        self._front = Thread(None, host.attention_contention)
        self._shards: dict[tuple[int, int], list[_Server]] = {}
        self._servers: list[_Server] = []
        for number in range(topology.ffn):
            own = thread(len(instances) + number, host.ffn_contention)
            server = _Server(number, own, ffn_slowness(number))
            placement = topology.placement(number)
            self._shards.setdefault((placement.expert, placement.tensor), []).append(server)
            self._servers.append(server)
        self._owed: dict[Lane, int] = {}
        self._calls = self._products = 0
        self._out = self._back = 0.0

    def start(self, lane: Lane, load: Load) -> None:
        """Let an idle lane begin a step now."""
        lane.layer, lane.load = 0, load
        self._ready(lane)

    def deliver(self, tokens: float) -> None:
        """The process in front of all instances gets tokens for its clients."""
        seconds = self._host.front * tokens
        if seconds:
            self._cores.submit(self._front, lambda: seconds, _nothing)

    def worked(self) -> Worked:
        """What every resource has worked until now; FFN and links as the mean of their instances."""
        now, count = self._clock.now, len(self._instances)

        def busy(threads: list[Thread]) -> float:
            done = sum(one.busy + (0.0 if one.began is None else now - one.began) for one in threads)
            return done / len(threads) if threads else 0.0

        return Worked(
            busy(self._attention),
            self._out / count,
            busy([server.thread for server in self._servers]),
            self._back / count,
            self._calls,
            self._products,
            tuple(self._cores.busy),
        )

    def _ready(self, lane: Lane) -> None:
        """The lane has what its attention needs: for the layer, or behind the last one for the head."""
        load, came = lane.load, self._clock.now
        assert load is not None
        behind = lane.layer == self._layers
        seconds = load.head if behind else load.attention[self._times.kinds[lane.layer]]
        seconds *= lane.instance.slowness * self._factor()

        def done(began: float) -> None:
            now = self._clock.now
            lane.spent.wait_attention += began - came
            lane.spent.attention += now - began
            if self.recorder is not None:
                stage = "head" if behind else "attention"
                self.recorder.span(stage, lane, began, now - began, load.total)
            if behind:
                self._end_step(lane)
            elif self._servers:
                self._send(lane)
            else:
                self._compute_at_home(lane)

        self._cores.submit(self._attention[lane.instance.number], lambda: seconds, done)

    def _end_step(self, lane: Lane) -> None:
        lane.load = self._step_ended(lane)
        lane.layer = 0
        if lane.load is not None:
            self._ready(lane)

    def _compute_at_home(self, lane: Lane) -> None:
        load, came = lane.load, self._clock.now
        assert load is not None
        seconds = self._times.ffn(self._times.kinds[lane.layer], load.total)
        seconds *= lane.instance.slowness * self._factor()

        def done(began: float) -> None:
            now = self._clock.now
            lane.spent.wait_attention += began - came
            lane.spent.ffn += now - began
            if self.recorder is not None:
                self.recorder.span("ffn", lane, began, now - began, load.total)
            self._calls += 1
            self._products += 1
            lane.layer += 1
            self._ready(lane)

        self._cores.submit(self._attention[lane.instance.number], lambda: seconds, done)

    def _send(self, lane: Lane) -> None:
        load, now = lane.load, self._clock.now
        assert load is not None
        kind, instance = self._times.kinds[lane.layer], lane.instance
        seconds = self._times.out(kind, load.sequences, load.total)
        seconds *= instance.link_slowness * self._factor()
        begin = max(now, instance.out_free)
        instance.out_free = arrival = begin + seconds
        self._out += seconds
        if self.recorder is not None:
            self.recorder.span("out", lane, begin, seconds, load.total)
        self._owed[lane] = len(self._shards)
        lane.since = arrival
        lane.spent.out += arrival - now
        for replicas in self._shards.values():
            server = min(replicas, key=lambda one: (one.owing.get(instance.number, 0), one.number))
            server.owing[instance.number] = server.owing.get(instance.number, 0) + 1
            self._clock.at(arrival, Order.REACH, self._reach, _Part(lane, server))

    def _reach(self, part: _Part) -> None:
        part.server.waiting.append(part)
        self._serve(part.server)

    def _serve(self, server: _Server) -> None:
        """Let an FFN instance begin with what waits, if it does nothing yet."""
        if server.is_serving or not server.waiting:
            return
        server.is_serving = True
        taken: list[_Part] = []

        def begin() -> float:
            layer = server.waiting[0].lane.layer
            taken.extend(part for part in server.waiting if part.lane.layer == layer)
            server.waiting = [part for part in server.waiting if part.lane.layer != layer]
            kind, total = self._times.kinds[layer], _total(taken)
            return self._times.ffn(kind, total) * server.slowness * self._factor()

        def done(began: float) -> None:
            server.is_serving = False
            self._answer(server, taken, began)
            self._serve(server)

        self._cores.submit(server.thread, begin, done)

    def _answer(self, server: _Server, parts: list[_Part], began: float) -> None:
        now, total = self._clock.now, _total(parts)
        self._calls += len(parts)
        self._products += 1
        if self.recorder is not None:
            lanes = [part.lane for part in parts]
            self.recorder.served(lanes, began, now - began, total, server.number)
        for part in parts:
            lane, instance = part.lane, part.lane.instance
            assert lane.load is not None
            server.owing[instance.number] -= 1
            seconds = self._times.back(self._times.kinds[lane.layer], lane.load.sequences, total)
            seconds *= instance.link_slowness * self._factor()
            begin = max(now, instance.back_free)
            instance.back_free = arrival = begin + seconds
            self._back += seconds
            self._owed[lane] -= 1
            if self._owed[lane]:
                continue
            # The last shard's times are those of the lane: it has waited for no other.
            lane.spent.wait_ffn += began - lane.since
            lane.spent.ffn += now - began
            lane.spent.back += arrival - now
            if self.recorder is not None:
                self.recorder.span("ffn", lane, began, now - began, lane.load.total)
                self.recorder.span("back", lane, begin, seconds, lane.load.total)
            lane.layer += 1
            self._clock.at(arrival, Order.READY, self._ready, lane)

    def _factor(self) -> float:
        return 1.0 if self._factors is None else next(self._factors)


def _total(parts: list[_Part]) -> float:
    return sum(part.lane.load.total for part in parts if part.lane.load is not None)


def _nothing(_: float) -> None:
    return None
