"""Everything that a simulation is told, checked once."""

import math
from dataclasses import dataclass, field

from step3.plan.simulate.cache import CacheRoom
from step3.plan.simulate.calls import PrefillCore
from step3.plan.simulate.cores import Host
from step3.plan.simulate.errors import SimulationError
from step3.plan.simulate.faults import Faults
from step3.plan.simulate.pipeline import Merge
from step3.plan.simulate.requests import Arrivals, ClosedLoop, Lengths
from step3.plan.stages import TimeModel
from step3.plan.topology import Topology

MAX_LANES = 64
MAX_SIMULATED = 16
"""Attention instances that are simulated one by one unless more are asked for."""


@dataclass(frozen=True)
class Cards:
    """The accelerators of a deployment.

    Raises:
        SimulationError: a count or the price is out of its range.
    """

    attention: int
    """Of one attention instance, each serving sequences of its own, all in step."""
    ffn: int
    """Of one FFN instance; 0 in the monolith."""
    usd_per_second: float | None = None
    """Price of all cards of one pod; None if nobody asks."""

    def __post_init__(self) -> None:
        if not 1 <= self.attention <= 1024 or not 0 <= self.ffn <= 1024:
            raise SimulationError(
                f"an instance has from 1 to 1024 cards, not {self.attention} for attention and "
                f"{self.ffn} for the FFN"
            )


@dataclass(frozen=True)
class Scenario:
    """One simulation.

    Raises:
        SimulationError: a value is out of its range, or two contradict each other; it is named.
    """

    topology: Topology
    cards: Cards
    times: TimeModel
    prefill_core: PrefillCore
    arrivals: Arrivals
    lengths: Lengths
    lanes: int = 3
    seats: int = 128
    """Most sequences of one lane on one attention card."""
    room: CacheRoom = field(default_factory=CacheRoom)
    headroom: float = 0.01
    """Share of a card's cache that stays free when a request is taken, for others to grow into."""
    prefills: bool = False
    """Prompts are computed here, in chunks between the decodes; else they come with their cache."""
    chunk: int = 512
    """Prompt tokens that a card computes in a lane's step, also to compute anew what was lost."""
    step_tokens: int | None = None
    """Tokens of a lane's step on a card at most, decoded ones first; prompts get what they leave."""
    width: int = 1
    """Tokens that a step computes for each sequence: 1 and its drafts."""
    tokens_per_step: float = 1.0
    """Tokens that a step yields for each sequence, on average."""
    merge: Merge = Merge.LAYER
    gather: float = 0.0
    """Seconds that an idle FFN waits for more calls before it begins."""
    jitter: float = 0.0
    """Standard deviation over mean of every call's time."""
    faults: Faults = field(default_factory=Faults)
    host: Host | None = None
    """Whose cores all instances share; None where each has cards of its own."""
    simulate_instances: int | None = None
    """Attention instances simulated one by one, each standing for as many others; None chooses."""
    pods: int = 1
    """Deployments like this one, among which requests are spread at random."""
    steady: bool = True
    """A closed loop begins with requests in the middle of their decoding; else with none."""
    seed: int = 0
    warmup: float = 5.0
    """Seconds before anything is counted."""
    duration: float | None = 20.0
    """Seconds that are counted; None runs until every request has ended."""
    requests: int | None = None
    """After so many requests (of one pod) no more come; None sets no end."""

    def __post_init__(self) -> None:
        self._check("lanes", 1, MAX_LANES)
        self._check("seats", 1, 1 << 20)
        self._check("chunk", 1, 1 << 20)
        if self.step_tokens is not None:
            self._check("step_tokens", 1, 1 << 20)
        self._check("width", 1, 64)
        self._check("tokens_per_step", 1e-3, self.width)
        self._check("headroom", 0, 0.9)
        self._check("gather", 0, 1)
        self._check("jitter", 0, 10)
        self._check("pods", 1, 1_000_000)
        self._check("seed", 0, (1 << 63) - 1)
        self._check("warmup", 0, 1e9)
        if self.duration is not None:
            self._check("duration", 1e-6, 1e9)
        if self.requests is not None:
            self._check("requests", 1, 1_000_000_000)
        if self.duration is None and self.requests is None and not hasattr(self.arrivals, "path"):
            raise SimulationError("without --duration the requests must end: give --requests")
        if self.duration is None and self.warmup:
            raise SimulationError(
                "a simulation that runs until every request has ended has no --warmup: give 0"
            )
        if self.topology.is_monolith != (self.cards.ffn == 0):
            raise SimulationError(
                f"{self.topology} with {self.cards.ffn} cards an FFN instance: a monolith has 0, others "
                "have 1 or more"
            )
        instances = self.topology.attention
        if self.simulate_instances is not None and (
            self.simulate_instances < 1 or instances % self.simulate_instances
        ):
            raise SimulationError(
                f"simulate_instances must divide the {instances} attention instances, and "
                f"{self.simulate_instances} does not"
            )
        self.faults.check(self.topology, self.simulated)
        if self.host is not None:
            self._check_hosted()
        if isinstance(self.arrivals, ClosedLoop) and self.arrivals.concurrency < self.copies * self.pods:
            raise SimulationError(
                f"a concurrency of {self.arrivals.concurrency} leaves some of {self.copies * self.pods} "
                "instances or pods that are taken as equal without a request"
            )

    def _check_hosted(self) -> None:
        """On a shared host instances are processes, and each is simulated by itself."""
        if self.faults.failures:
            raise SimulationError("instances that share a host's cores cannot --fail in a simulation yet")
        if self.merge is not Merge.LAYER or self.gather:
            raise SimulationError("instances that share a host's cores --merge by layer, without --gather")
        if self.cards.attention != 1 or self.cards.ffn > 1:
            raise SimulationError("instances that share a host's cores have one card each")
        if self.simulated != self.topology.attention:
            raise SimulationError(
                f"instances that share a host's cores are simulated one by one: all {self.topology.attention}"
            )

    def _check(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if not (math.isfinite(value) and least <= value <= most):
            raise SimulationError(
                f"{name.replace('_', ' ')} must be from {least:g} to {most:g}, not {value:g}"
            )

    @property
    def simulated(self) -> int:
        """Attention instances that are simulated one by one.

        As chosen, or all of them up to `MAX_SIMULATED`, or the largest divisor below, or all where one of
        them is to fail or be slow.
        """
        instances = self.topology.attention
        if self.simulate_instances is not None:
            return self.simulate_instances
        if instances <= MAX_SIMULATED or self.faults.single_out_attention or self.host is not None:
            return instances
        return max(n for n in range(1, MAX_SIMULATED + 1) if instances % n == 0)

    @property
    def copies(self) -> int:
        """Attention instances for which one that is simulated stands."""
        return self.topology.attention // self.simulated

    @property
    def all_cards(self) -> int:
        """Cards of all pods."""
        pod = self.topology.attention * self.cards.attention + self.topology.ffn * self.cards.ffn
        return pod * self.pods

    @property
    def capacity(self) -> int:
        """Sequences that the seats of one pod hold."""
        return self.topology.attention * self.cards.attention * self.lanes * self.seats
