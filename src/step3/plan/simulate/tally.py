"""What is counted while a simulation runs, in memory that does not grow with its length."""

from dataclasses import dataclass, field

from step3.plan.simulate.histogram import Histogram
from step3.plan.simulate.lanes import Spent
from step3.plan.simulate.timeline import Timeline


@dataclass
class Requests:
    """Where the requests are; `arrived` is the sum of the others."""

    arrived: int = 0
    finished: int = 0
    rejected: int = 0
    """Too long for a card's cache even alone."""

    @property
    def under_way(self) -> int:
        """Arrived, and neither finished nor rejected."""
        return self.arrived - self.finished - self.rejected


@dataclass
class Tally:
    """Counts over the window in which a simulation is measured; `requests` and timelines over all of it."""

    span: float
    """Seconds that a timeline's spans begin with."""
    counting: bool = False
    since: float = 0.0
    """When the window began."""
    requests: Requests = field(default_factory=Requests)
    first_token: Histogram = field(default_factory=Histogram)
    token: Histogram = field(default_factory=Histogram)
    """Seconds from each token to the next."""
    request_mean: Histogram = field(default_factory=Histogram)
    """The same, as the mean of each request that finished."""
    whole: Histogram = field(default_factory=Histogram)
    """From arrival to last token."""
    step: Histogram = field(default_factory=Histogram)
    """A lane's steps."""
    tokens: float = 0.0
    spent: Spent = field(default_factory=Spent)
    """Seconds of every token but a request's first, added up."""
    spent_tokens: float = 0.0
    finished: int = 0
    recomputed: float = 0.0
    """Tokens whose cache was computed anew."""
    in_system: float = 0.0
    """Requests under way, integrated over time."""
    running: float = 0.0
    """Sequences in steps, integrated over time."""
    _changed: float = 0.0

    def __post_init__(self) -> None:
        self.output = Timeline(self.span)
        self.cache = Timeline(self.span)
        self.waiting = Timeline(self.span)

    def begin(self, now: float) -> None:
        """From now on everything counts."""
        self.advance(now)
        self.counting, self.since = True, now

    def advance(self, now: float) -> None:
        """Integrate up to now; before any change in how many requests are under way."""
        if self.counting:
            self.in_system += self.requests.under_way * (now - self._changed)
        self._changed = now

    def spend(self, spent: Spent, per_token: float, tokens: float) -> None:
        """Note where the seconds of a step went, for so many tokens; `per_token` is steps for each."""
        total = self.spent
        weight = tokens * per_token
        total.attention += spent.attention * weight
        total.out += spent.out * weight
        total.ffn += spent.ffn * weight
        total.back += spent.back * weight
        total.wait_attention += spent.wait_attention * weight
        total.wait_ffn += spent.wait_ffn * weight
        self.spent_tokens += tokens
