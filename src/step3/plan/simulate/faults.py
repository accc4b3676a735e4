"""What goes wrong: slow cards, and instances that die and come back."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from step3.plan.simulate.errors import SimulationError
from step3.plan.topology import Topology

MAX_FACTOR = 1000.0
MAX_SECONDS = 1e9

_STRAGGLER = re.compile(r"(attention|wire|ffn)(?::(\d{1,6}))?=(\S{1,20})", re.IGNORECASE)
_FAILURE = re.compile(r"(attention|ffn)(?::(\d{1,6}))?@(\S{1,20})", re.IGNORECASE)


@dataclass(frozen=True)
class Straggler:
    """One card, or one attention instance's links, slower than the rest."""

    role: str
    """`attention`, `wire` or `ffn`."""
    instance: int
    factor: float
    """On the seconds of every call; the instance waits for its slowest card."""


@dataclass(frozen=True)
class Failure:
    """An instance that dies."""

    role: str
    """`attention` or `ffn`."""
    instance: int
    seconds: float
    """When."""


@dataclass(frozen=True)
class Faults:
    """All that goes wrong in a simulation."""

    stragglers: tuple[Straggler, ...] = ()
    failures: tuple[Failure, ...] = ()
    detection: float = 0.3
    """Seconds until the others know that an instance is dead."""
    restart: float = 60.0
    """Seconds from an instance's death until its next process serves."""

    def __post_init__(self) -> None:
        if not 0 <= self.detection <= self.restart <= MAX_SECONDS:
            raise SimulationError(
                f"--detect ({self.detection:g} s) must be at least 0 and at most --restart "
                f"({self.restart:g} s): an instance that has restarted is known to have died"
            )

    def check(self, topology: Topology, simulated: int) -> None:
        """Refuse faults of instances that the topology does not have.

        Args:
            topology: the deployment's.
            simulated: attention instances that are simulated one by one.

        Raises:
            SimulationError: an instance does not exist, or stands for several.
        """
        faults: list[Straggler | Failure] = [*self.stragglers, *self.failures]
        for fault in faults:
            counts = {"attention": topology.attention, "wire": topology.attention, "ffn": topology.ffn}
            count = counts[fault.role]
            if fault.instance >= count:
                known = f"{fault.role} has none" if not count else f"they count from 0 to {count - 1}"
                raise SimulationError(f"{topology} has no {fault.role} instance {fault.instance}: {known}")
            if fault.role != "ffn" and simulated < topology.attention:
                raise SimulationError(
                    f"a fault of one attention instance needs all {topology.attention} simulated one by one: "
                    f"--simulate-instances {topology.attention}"
                )

    @property
    def single_out_attention(self) -> bool:
        """Whether one attention instance fares other than the rest."""
        faults: list[Straggler | Failure] = [*self.stragglers, *self.failures]
        return any(fault.role != "ffn" for fault in faults)

    def slowness(self, role: str, instance: int) -> float:
        """Factor of an instance's seconds."""
        factors = (each.factor for each in self.stragglers if (each.role, each.instance) == (role, instance))
        return math.prod(factors)

    def ffn_slowness(self) -> float:
        """Factor of the FFN's seconds: every call waits for its slowest shard."""
        by_instance: dict[int, float] = {}
        for each in self.stragglers:
            if each.role == "ffn":
                by_instance[each.instance] = by_instance.get(each.instance, 1.0) * each.factor
        return max(1.0, *by_instance.values()) if by_instance else 1.0


@dataclass
class ReplicaHealth:
    """How many replicas of every FFN shard are alive.

    Args:
        topology: says which instance holds which shard.
    """

    topology: Topology
    dead: dict[int, int] = field(default_factory=dict)
    """Deaths of an instance from which it has not come back."""
    detecting: int = 0
    """Deaths that nobody has noticed yet."""

    def died(self, instance: int) -> None:
        """An instance died just now."""
        self.dead[instance] = self.dead.get(instance, 0) + 1
        self.detecting += 1

    def returned(self, instance: int) -> None:
        """An instance serves again."""
        self.dead[instance] -= 1
        if not self.dead[instance]:
            del self.dead[instance]

    @property
    def replica_load(self) -> float | None:
        """Times its planned share that the busiest instance takes; None if the FFN cannot serve at all."""
        replicas = self.topology.replicas
        lost: dict[tuple[int, int], int] = {}
        for instance in self.dead:
            placement = self.topology.placement(instance)
            shard = (placement.expert, placement.tensor)
            lost[shard] = lost.get(shard, 0) + 1
        alive = replicas - max(lost.values(), default=0)
        if self.detecting or not alive:
            return None
        return replicas / alive


def parse_stragglers(texts: Iterable[str]) -> tuple[Straggler, ...]:
    """Read `ffn=1.3`, `attention:1=1.2`, `wire:0=2`.

    Raises:
        SimulationError: a text is no straggler.
    """
    found = []
    for text in texts:
        match = _STRAGGLER.fullmatch(text.strip())
        factor = _number(match[3]) if match else math.nan
        if match is None or not 1 <= factor <= MAX_FACTOR:
            raise SimulationError(
                f"--straggler {text[:60]!r}: write attention:0=1.2, wire:0=2 or ffn:1=1.3 (which instance, "
                f"and how many times as long it takes, from 1 to {MAX_FACTOR:g})"
            )
        found.append(Straggler(match[1].lower(), int(match[2] or 0), factor))
    return tuple(found)


def parse_failures(texts: Iterable[str]) -> tuple[Failure, ...]:
    """Read `ffn@10`, `attention:1@12.5`: which instance dies, and after how many seconds.

    Raises:
        SimulationError: a text is no failure.
    """
    found = []
    for text in texts:
        match = _FAILURE.fullmatch(text.strip())
        seconds = _number(match[3].rstrip("s")) if match else math.nan
        if match is None or not 0 <= seconds <= MAX_SECONDS:
            raise SimulationError(
                f"--fail {text[:60]!r}: write ffn:0@10 or attention:1@12.5 (which instance dies, and at "
                "which second)"
            )
        found.append(Failure(match[1].lower(), int(match[2] or 0), seconds))
    return tuple(found)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
