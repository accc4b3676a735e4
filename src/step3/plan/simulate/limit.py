"""What would have to change for a deployment to make more tokens."""

from dataclasses import dataclass

from step3.plan.simulate.requests import ClosedLoop
from step3.plan.simulate.simulation import Simulation

FULL = 0.9
"""Share of the time from which on a resource counts as what limits the pipeline."""

_NAMES = {
    "attention": "attention",
    "card": "the cards",
    "out": "the wire to the FFN",
    "ffn": "the FFN",
    "back": "the wire back from the FFN",
    "core": "the host's busiest core",
}


@dataclass(frozen=True)
class Busy:
    """Share of the counted time that each resource works, the mean of its instances."""

    attention: float
    """In a monolith the cards, FFN included."""
    out: float
    """The attention instances' links out."""
    ffn: float | None
    """None in a monolith."""
    back: float
    core: float | None = None
    """The busiest core of a host that instances share; None where each has its own cards."""


@dataclass(frozen=True)
class Limit:
    """What would have to change for more tokens."""

    binding: str
    """`attention`, `card`, `out`, `ffn`, `back`, `core`, `round trip` or `arrivals`."""
    words: str


def find_limit(run: Simulation, busy: Busy, seconds: float) -> Limit:
    """What binds: too few requests, a resource that is always busy, or else too few lanes.

    Args:
        run: a simulation that has ended.
        busy: shares of its resources.
        seconds: that were counted.
    """
    scenario = run.scenario
    shares = {"attention": busy.attention, "out": busy.out, "back": busy.back}
    if busy.ffn is None:
        shares["card"] = shares.pop("attention")
    else:
        shares["ffn"] = busy.ffn
    most = max(shares, key=lambda name: shares[name])
    if busy.core is not None and shares[most] < FULL <= busy.core:
        shares["core"], most = busy.core, "core"
    seats = scenario.capacity / scenario.copies
    running = run.tally.running / seconds if seconds else 0.0
    grows = _grows([count for _, count in run.tally.waiting.means()])
    always = isinstance(scenario.arrivals, ClosedLoop)
    if not always and not grows and not run.short_of_cache and running < FULL * seats:
        limit = Limit("arrivals", f"requests: all that come are served ({most} is busy {shares[most]:.0%})")
    elif shares[most] >= FULL:
        limit = Limit(most, f"{_NAMES[most]}, busy {shares[most]:.0%} of the time")
    else:
        limit = Limit(
            "round trip",
            f"the round trip of a lane: no resource is always busy ({most} most, {shares[most]:.0%}), so "
            "that another lane would find room",
        )
    notes = ""
    if run.short_of_cache and running < 0.98 * seats:
        notes += (
            f"; the KV cache, not the seats, ends the batch ({running / seats:.0%} of the seats are taken)"
        )
    if not always and grows:
        notes += "; more requests come than are served, and the queue grows"
    return Limit(limit.binding, limit.words + notes)


def _grows(queue: list[float]) -> bool:
    """Whether a queue is much longer in the last quarter of the time than in the one before the middle."""
    quarter = len(queue) // 4
    if not quarter:
        return False
    return sum(queue[-quarter:]) > 1.5 * sum(queue[quarter : 2 * quarter]) + 10 * quarter
