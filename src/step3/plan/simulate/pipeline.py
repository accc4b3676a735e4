"""Calls of all lanes on their way through attention, wire and FFN, layer after layer.

Every attention instance computes for one lane at a time and has one link out and one link back; the FFN
computes one call at a time. Each serves in order of arrival; no lane waits for another but for these. The
FFN takes what waits longest, and with it what waits for the same layer (see `Merge`). What the FFN's end of
the links can carry is shared: messages that start at once go side by side and arrive at once, others in
order.
"""

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

from step3.plan.simulate.calls import CallTimes
from step3.plan.simulate.clock import Clock, Order
from step3.plan.simulate.lanes import Instance, Lane, Load, Recorder, Spent
from step3.plan.simulate.worked import Worked


class Merge(str, Enum):
    """Which waiting calls of a layer the FFN computes together."""

    LAYER = "layer"
    """All of them."""
    LANE = "lane"
    """Those of the lane with the same number in every attention instance."""
    ALL = "all"
    """The same, and it waits for those of them that are still to come to this layer in their step."""
    NONE = "none"
    """One call at a time."""


class Pipeline:
    """The lanes' calls, and the resources that they share.

    Args:
        clock: the simulation's time.
        times: seconds of each call.
        instances: the attention instances.
        lanes: lanes of each.
        step_ended: called with a lane at the end of its step; gives its next load, or None if it has none.
        monolith: the attention instances compute the FFN themselves, each for itself.
        merge: which calls the FFN computes together.
        gather: seconds that an idle FFN waits for more calls before it begins.
        ffn_slowness: factor on the FFN's seconds; its slowest card's.
        factors: random factors on all seconds.
        recorder: sees every span of work.
    """

    def __init__(
        self,
        clock: Clock,
        times: CallTimes,
        instances: list[Instance],
        lanes: int,
        step_ended: Callable[[Lane], Load | None],
        monolith: bool = False,
        merge: Merge = Merge.LAYER,
        gather: float = 0.0,
        ffn_slowness: float = 1.0,
        factors: Iterator[float] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.lanes = [Lane(instance, number) for instance in instances for number in range(lanes)]
        self._peers = [self.lanes[number::lanes] for number in range(lanes)]
        self.recorder = recorder
        self.ffn_busy = 0.0
        self.calls = 0
        self.merged_calls = 0
        self._clock, self._times, self._instances = clock, times, instances
        self._step_ended, self._monolith = step_ended, monolith
        self._merge, self._gather = merge, gather
        self._ffn_slowness, self._factors = ffn_slowness, factors
        self._kinds, self._layers = times.kinds, len(times.kinds)
        self._shared = len(instances) > 1 and not monolith
        self._out_free = self._back_free = 0.0
        self._waiting: list[Lane] = []
        self._serving: _Call | None = None
        self._ffn_idle = True
        self._ffn_away = False
        self._replica_load = 1.0
        self._ffn_free = 0.0

    def start(self, lane: Lane, load: Load) -> None:
        """Let an idle lane begin a step now."""
        lane.layer, lane.load = 0, load
        self._ready(lane)

    def _ready(self, lane: Lane) -> None:
        """The lane has what its attention needs: for the layer, or behind the last one for the head."""
        load, instance, now = lane.load, lane.instance, self._clock.now
        assert load is not None
        behind = lane.layer == self._layers
        seconds = load.head if behind else load.attention[self._kinds[lane.layer]]
        seconds *= instance.slowness
        if self._factors is not None:
            seconds *= next(self._factors)
        start = instance.free if instance.free > now else now
        instance.free = end = start + seconds
        instance.busy += seconds
        spent = lane.spent
        spent.wait_attention += start - now
        spent.attention += seconds
        if self.recorder is not None:
            self.recorder.span("head" if behind else "attention", lane, start, seconds, load.total)
        if behind:
            self._clock.at(end, Order.STEP_END, self._end_step, lane)
        else:
            lane.since = end
            self._clock.at(end, Order.SEND, self._send, lane)

    def _end_step(self, lane: Lane) -> None:
        lane.load = self._step_ended(lane)
        lane.layer = 0
        if lane.load is not None:
            self._ready(lane)
        else:
            self._reconsider()

    def _reconsider(self) -> None:
        """Let an idle FFN look again: it may have waited for a lane that has become idle."""
        if self._waiting and self._ffn_idle and not self._ffn_away:
            self._ffn_idle = False
            self._clock.at(self._clock.now, Order.SERVE, self._serve, None)

    def _send(self, lane: Lane | None) -> None:
        """Put on the wire what the attention of one or more instances has just made."""
        clock = self._clock
        now = clock.now
        going: list[Lane] = []
        held: list[Lane] = []
        while lane is not None:
            instance = lane.instance
            if instance.out_free > now or instance.is_sending:
                held.append(lane)
            else:
                going.append(lane)
                instance.is_sending = True
            lane = clock.simultaneous(Order.SEND) if self._shared else None
        if going:
            self._depart(going)
        for lane in held:
            clock.at(lane.instance.out_free, Order.SEND, self._send, lane)

    def _depart(self, lanes: list[Lane]) -> None:
        now, times = self._clock.now, self._times
        total = _total(lanes) * self._replica_load
        if self._shared:
            share = times.out_share(self._kinds[lanes[0].layer], total)
            self._out_free = max(self._out_free, now) + share
        for lane in lanes:
            load, instance = lane.load, lane.instance
            assert load is not None
            seconds = times.out(self._kinds[lane.layer], load.sequences, total) * instance.link_slowness
            if self._factors is not None:
                seconds *= next(self._factors)
            arrival = now + seconds
            if arrival < self._out_free:
                arrival = self._out_free
            instance.is_sending = False
            instance.out_free = arrival
            instance.out_busy += arrival - now
            lane.spent.out += arrival - lane.since
            lane.since = arrival
            if self.recorder is not None:
                self.recorder.span("out", lane, now, arrival - now, load.total)
            self._clock.at(arrival, Order.REACH, self._reach, lane)

    def _reach(self, lane: Lane) -> None:
        """The lane's call is where its FFN is."""
        if self._monolith:
            self._compute_at_home(lane)
            return
        self._waiting.append(lane)
        lane.is_waiting = True
        if self._ffn_idle and not self._ffn_away:
            self._ffn_idle = False
            self._clock.at(self._clock.now + self._gather, Order.SERVE, self._serve, None)

    def _compute_at_home(self, lane: Lane) -> None:
        instance, load = lane.instance, lane.load
        assert load is not None
        seconds = self._times.ffn(self._kinds[lane.layer], load.total) * instance.slowness
        if self._factors is not None:
            seconds *= next(self._factors)
        start = max(instance.free, self._clock.now)
        instance.free = start + seconds
        instance.busy += seconds
        self.calls += 1
        self.merged_calls += 1
        self._clock.at(instance.free, Order.ANSWER, self._answer, _Call([lane], seconds))

    def _serve(self, _: None) -> None:
        """The FFN takes its next call."""
        lanes = self._choose()
        if not lanes:
            self._ffn_idle = True
            return
        for lane in lanes:
            lane.is_waiting = False
        self._waiting = [lane for lane in self._waiting if lane.is_waiting]
        total = _total(lanes) * self._replica_load
        seconds = self._times.ffn(self._kinds[lanes[0].layer], total) * self._ffn_slowness
        if self._factors is not None:
            seconds *= next(self._factors)
        self._ffn_free = self._clock.now + seconds
        self.ffn_busy += seconds
        self.calls += len(lanes)
        self.merged_calls += 1
        self._serving = call = _Call(lanes, seconds)
        self._clock.at(self._ffn_free, Order.ANSWER, self._answer, call)

    def _choose(self) -> list[Lane]:
        """The lanes whose calls the FFN computes next; none if it is to wait."""
        waiting, merge = self._waiting, self._merge
        if merge is Merge.ALL:
            return next((lanes for first in waiting if (lanes := self._complete(first))), [])
        if len(waiting) <= 1:
            return waiting
        first = waiting[0]
        if merge is Merge.LAYER:
            return [lane for lane in waiting if lane.layer == first.layer]
        if merge is Merge.LANE:
            return [lane for lane in waiting if lane.layer == first.layer and lane.number == first.number]
        return [first]

    def _complete(self, first: Lane) -> list[Lane]:
        """The lanes that belong with one that waits, or none while one of them is still to come."""
        lanes = []
        for peer in self._peers[first.number]:
            if peer.load is not None and peer.layer <= first.layer:
                if peer.layer < first.layer or not peer.is_waiting:
                    return []
                lanes.append(peer)
        return lanes

    def _answer(self, call: "_Call") -> None:
        """An FFN call is done: its partial sums go back to every lane that had a part in it."""
        now, lanes, times = self._clock.now, call.lanes, self._times
        start, total = now - call.seconds, _total(lanes)
        if self.recorder is not None and lanes:
            self.recorder.served(lanes, start, call.seconds, total)
        total *= self._replica_load
        if self._shared and lanes:
            share = times.back_share(self._kinds[lanes[0].layer], total)
            self._back_free = max(self._back_free, now) + share
        for lane in lanes:
            load, instance, spent = lane.load, lane.instance, lane.spent
            assert load is not None
            seconds = times.back(self._kinds[lane.layer], load.sequences, total) * instance.link_slowness
            if self._factors is not None:
                seconds *= next(self._factors)
            begin = instance.back_free if instance.back_free > now else now
            arrival = begin + seconds
            if arrival < self._back_free:
                arrival = self._back_free
            instance.back_busy += arrival - begin
            instance.back_free = arrival
            spent.wait_ffn += start - lane.since
            spent.ffn += call.seconds
            spent.back += arrival - now
            if self.recorder is not None:
                self.recorder.span("ffn", lane, start, call.seconds, load.total)
                self.recorder.span("back", lane, begin, arrival - begin, load.total)
            lane.layer += 1
            self._clock.at(arrival, Order.READY, self._ready, lane)
        if not self._monolith:
            self._serving = None
            self._serve(None)

    def stop_ffn(self) -> None:
        """The FFN is away; the call that it had begun is to be computed anew."""
        self._ffn_away = True
        self._clock.drop(lambda action, _: action in (self._answer, self._serve))
        if self._serving is not None:
            self.ffn_busy -= self._ffn_free - self._clock.now
            self._ffn_free = self._clock.now
            self.merged_calls -= 1
            self.calls -= len(self._serving.lanes)
            self._waiting = self._serving.lanes + self._waiting
            for lane in self._serving.lanes:
                lane.is_waiting = True
            self._serving = None
        self._ffn_idle = True

    def resume_ffn(self, replica_load: float) -> None:
        """The FFN serves again, its busiest instance `replica_load` times as many tokens as planned."""
        self._ffn_away = False
        self._replica_load = replica_load
        self._reconsider()

    def abort(self, instance: Instance) -> None:
        """Forget all that an attention instance has under way; its lanes are idle."""
        now = self._clock.now
        gone = {lane for lane in self.lanes if lane.instance is instance}

        def concerns(_: Callable[[Any], None], argument: Any) -> bool:
            if isinstance(argument, _Call):
                argument.lanes = [lane for lane in argument.lanes if lane not in gone]
                return self._monolith and not argument.lanes
            return argument in gone

        self._clock.drop(concerns)
        self._waiting = [lane for lane in self._waiting if lane not in gone]
        for lane in gone:
            lane.load, lane.spent, lane.is_waiting = None, Spent(), False
        instance.busy -= max(instance.free - now, 0.0)
        instance.out_busy -= max(instance.out_free - now, 0.0)
        instance.back_busy -= max(instance.back_free - now, 0.0)
        instance.free = instance.out_free = instance.back_free = now
        self._reconsider()

    def worked(self) -> Worked:
        """What every resource has worked until now."""
        now, count = self._clock.now, len(self._instances)

        def until_now(busy: float, free: float) -> float:
            return busy - max(free - now, 0.0)

        return Worked(
            attention=sum(until_now(each.busy, each.free) for each in self._instances) / count,
            out=sum(until_now(each.out_busy, each.out_free) for each in self._instances) / count,
            ffn=until_now(self.ffn_busy, self._ffn_free),
            back=sum(until_now(each.back_busy, each.back_free) for each in self._instances) / count,
            calls=self.calls,
            merged_calls=self.merged_calls,
        )


class _Call:
    """What the FFN computes at once."""

    __slots__ = ("lanes", "seconds")

    def __init__(self, lanes: list[Lane], seconds: float) -> None:
        self.lanes, self.seconds = lanes, seconds


def _total(lanes: list[Lane]) -> float:
    if len(lanes) == 1:
        return lanes[0].load.total  # type: ignore[union-attr]
    return sum(lane.load.total for lane in lanes if lane.load is not None)
