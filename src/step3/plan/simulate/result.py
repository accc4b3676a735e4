"""What a simulation found, as data."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from step3.plan.simulate.histogram import Histogram
from step3.plan.simulate.lanes import Recorder, Spent
from step3.plan.simulate.limit import Busy, Limit, find_limit
from step3.plan.simulate.scenario import Scenario
from step3.plan.simulate.simulation import Progress, Simulation
from step3.plan.simulate.timeline import Timeline


@dataclass(frozen=True)
class Spread:
    """Seconds of many events: mean and greatest exact, percentiles within 0.25 %; None without events."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    greatest: float | None
    count: float

    @classmethod
    def of(cls, histogram: Histogram) -> "Spread":
        """The spread of what a histogram holds."""
        p50, p90, p99 = (histogram.percentile(share) for share in (0.5, 0.9, 0.99))
        return cls(histogram.mean, p50, p90, p99, histogram.greatest, histogram.count)


@dataclass(frozen=True)
class Result:
    """What a simulation found. Seconds, tokens and requests; counts are those of all pods and instances."""

    cards: int
    simulated_instances: int
    copies: int
    """Attention instances for which one that was simulated stands, over all pods."""
    seconds: float
    """Simulated and counted."""
    tokens: float
    """Output tokens in that time."""
    first_token: Spread
    """TTFT: from arrival to first token."""
    token: Spread
    """TPOT of each token: from one to the next."""
    request_mean: Spread
    """TPOT of each request that finished: its mean."""
    whole: Spread
    """From arrival to last token."""
    step: Spread
    """A lane's step."""
    busy: Busy
    per_token: Spent
    """Where the time from one token to the next goes, in seconds of the mean."""
    merging: float
    """Calls that the FFN answers with one computation, on average."""
    running: float
    """Requests in lanes, on average."""
    in_system: float
    """Requests under way, on average: running and waiting."""
    arrived: int
    """In the whole run; those met in the middle at its beginning included."""
    finished: int
    rejected: int
    """Too long for a card's cache even alone."""
    left_running: int
    left_waiting: int
    preempted: int
    """How often a request gave up its cache and was computed anew, in the whole run."""
    recomputed_tokens: float
    """Tokens whose cache was lost with an instance."""
    limit: Limit
    usd_per_million: float | None
    output_rate: list[tuple[float, float]]
    """(seconds, tokens a second)."""
    cache_share: list[tuple[float, float]]
    """(seconds, share of the cache taken)."""
    queue: list[tuple[float, float]]
    """(seconds, requests that wait)."""
    events: int
    """Events that were simulated."""

    @property
    def tokens_per_second(self) -> float:
        """Output tokens a second of the whole deployment."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tgs(self) -> float:
        """Output tokens for each card and second."""
        return self.tokens_per_second / self.cards

    def as_json(self) -> dict[str, Any]:
        """All of it, in seconds and tokens."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {
            name: asdict(value) if hasattr(value, "__dataclass_fields__") else value
            for name, value in values.items()
        }
        return {"tgs": self.tgs, "tokens_per_second": self.tokens_per_second, **plain}


def simulate(
    scenario: Scenario,
    progress: Progress | None = None,
    recorder: Recorder | None = None,
    record_from: float = 0.0,
    record_until: float = 0.0,
) -> Result:
    """Run a scenario.

    Args:
        scenario: what is simulated.
        progress: called with the share that is done, now and then.
        recorder: sees every span of work that begins between `record_from` and `record_until`.
        record_from, record_until: seconds since the simulation began.

    Raises:
        SimulationError: a trace is wrong.
    """
    run = Simulation(scenario, recorder, record_from, record_until)
    run.run(progress)
    return _result(run)


def _result(run: Simulation) -> Result:
    scenario, tally, worked = run.scenario, run.tally, run.worked
    seconds = max(run.clock.now - tally.since, 0.0) if tally.counting else 0.0
    scale = scenario.copies * scenario.pods
    tokens = tally.tokens * scale
    monolith = scenario.topology.is_monolith

    def share(value: float) -> float:
        return min(max(value / seconds, 0.0), 1.0) if seconds else 0.0

    busy = Busy(
        share(worked.attention),
        share(worked.out),
        None if monolith else share(worked.ffn),
        share(worked.back),
        share(max(worked.cores)) if worked.cores else None,
    )
    usd = scenario.cards.usd_per_second
    requests = tally.requests
    return Result(
        cards=scenario.all_cards,
        simulated_instances=scenario.simulated,
        copies=scale,
        seconds=seconds,
        tokens=tokens,
        first_token=Spread.of(tally.first_token),
        token=Spread.of(tally.token),
        request_mean=Spread.of(tally.request_mean),
        whole=Spread.of(tally.whole),
        step=Spread.of(tally.step),
        busy=busy,
        per_token=_mean_spent(tally.spent, tally.spent_tokens),
        merging=worked.calls / worked.merged_calls if worked.merged_calls else 0.0,
        running=tally.running / seconds * scale if seconds else 0.0,
        in_system=tally.in_system / seconds * scale if seconds else 0.0,
        arrived=requests.arrived * scale,
        finished=requests.finished * scale,
        rejected=requests.rejected * scale,
        left_running=run.running * scale,
        left_waiting=run.waiting * scale,
        preempted=run.preempted * scale,
        recomputed_tokens=tally.recomputed * scale,
        limit=find_limit(run, busy, seconds),
        usd_per_million=usd * scenario.pods * seconds / tokens * 1e6 if usd is not None and tokens else None,
        output_rate=[(at, rate * scale) for at, rate in tally.output.rates(run.clock.now)],
        cache_share=tally.cache.means(),
        queue=_scaled(tally.waiting, scale),
        events=run.clock.events,
    )


def _scaled(timeline: Timeline, scale: float) -> list[tuple[float, float]]:
    return [(at, value * scale) for at, value in timeline.means()]


def _mean_spent(spent: Spent, tokens: float) -> Spent:
    names = [field.name for field in fields(Spent)]
    return Spent(*(getattr(spent, name) / tokens if tokens else 0.0 for name in names))
