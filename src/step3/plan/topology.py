"""The one notation of a deployment: how many attention and FFN instances, and how the FFN is cut.

`3A4F:ep2xtp2` reads: three attention instances, four FFN instances, the experts in two ranges and the
intermediate size in two slices. `2A2F` alone means expert parallel (`2A2F:ep2`). Replicas are one more
factor, `2A4F:ep2xr2`: two shards, each held twice. The factors multiply to the number of FFN instances.
`1A0F` is the monolith, whose attention instance computes the FFN itself.
"""

import math
import re
from dataclasses import dataclass

from step3.errors import Step3Error

MAX_INSTANCES = 10_000
"""The most instances of one role that a topology may name."""

_TOPOLOGY = re.compile(r"(\d{1,6})A(\d{1,6})F(?::([a-z0-9]{1,40}))?", re.IGNORECASE)
_FACTOR = re.compile(r"(ep|tp|r)(\d{1,6})?", re.IGNORECASE)
_SHAPE = "write it like 2A2F, 3A2F:tp2, 4A4F:ep2xtp2 or 2A4F:ep2xr2"


class TopologyError(Step3Error):
    """A topology that cannot be read or cannot exist."""


@dataclass(frozen=True)
class Placement:
    """Which part of every FFN one FFN instance holds, all counted from 0."""

    expert: int
    """Which of the `expert_parallel` ranges of experts."""
    tensor: int
    """Which of the `tensor_parallel` slices of the intermediate size."""
    replica: int
    """Which of the `replicas` copies of that shard."""


@dataclass(frozen=True)
class Topology:
    """Instances by role, and how the FFN instances share every FFN.

    Raises:
        TopologyError: a count is out of range, or the factors do not multiply to `ffn`.
    """

    attention: int
    """Attention instances, at least 1."""
    ffn: int
    """FFN instances of all shards and replicas together; 0 is the monolith."""
    expert_parallel: int = 1
    tensor_parallel: int = 1
    replicas: int = 1

    def __post_init__(self) -> None:
        for name in ("attention", "ffn", "expert_parallel", "tensor_parallel", "replicas"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int):
                raise TopologyError(f"a topology's {name} must be a whole number, not {count!r}")
            least = 0 if name == "ffn" else 1
            if not least <= count <= MAX_INSTANCES:
                raise TopologyError(
                    f"a topology's {name} must be from {least} to {MAX_INSTANCES}, not {count}"
                )
        product = self.shards * self.replicas
        if product != max(self.ffn, 1):
            raise TopologyError(
                f"{self.attention}A{self.ffn}F cannot be {format_sharding(self)}: its factors multiply to "
                f"{product}, and there {'are' if self.ffn != 1 else 'is'} {self.ffn} FFN "
                f"instance{'' if self.ffn == 1 else 's'}"
            )

    @property
    def shards(self) -> int:
        """Different shards of every FFN: the partial sums that one layer's answer is added from."""
        return self.expert_parallel * self.tensor_parallel

    @property
    def is_monolith(self) -> bool:
        """Whether attention instances compute the FFN themselves."""
        return self.ffn == 0

    def placement(self, ffn_instance: int) -> Placement:
        """What FFN instance `ffn_instance` (counted from 0) holds: slices, then experts, then replicas."""
        if not 0 <= ffn_instance < self.ffn:
            raise TopologyError(
                f"{self} has no FFN instance {ffn_instance}: they count from 0 to {self.ffn - 1}"
            )
        replica, shard = divmod(ffn_instance, self.shards)
        expert, tensor = divmod(shard, self.tensor_parallel)
        return Placement(expert, tensor, replica)

    def __str__(self) -> str:
        """The notation, without what it would mean anyway: `2A2F` for `2A2F:ep2`."""
        head = f"{self.attention}A{self.ffn}F"
        if self.expert_parallel == max(self.ffn, 1):
            return head
        return f"{head}:{format_sharding(self)}"


def parse_topology(text: str) -> Topology:
    """Read `2A2F`, `3A2F:tp2`, `4A8F:ep2xtp2xr2` (upper or lower case).

    Raises:
        TopologyError: the text is no topology, or names one that cannot exist.
    """
    match = _TOPOLOGY.fullmatch(text.strip())
    if match is None:
        raise TopologyError(f"{text[:60]!r} is not a topology: {_SHAPE}")
    attention, ffn, sharding = match.groups()
    return make_topology(int(attention), int(ffn), sharding)


def make_topology(
    attention: int, ffn: int, sharding: str | None = None, replicas: int | None = None
) -> Topology:
    """A topology from its parts, as the flags of `step3 serve` give them.

    Args:
        attention: attention instances.
        ffn: FFN instances of all shards and replicas together.
        sharding: `ep` or `tp` (as many ways as are left), `ep2`, `tp2`, `ep2xtp2`, with `xr2` for replicas;
            None is `ep`.
        replicas: copies of each shard; None leaves it to `sharding`, or 1.

    Raises:
        TopologyError: the parts cannot be read or contradict each other.
    """
    ways: dict[str, int] = {}
    open_ways: list[str] = []
    for factor in (sharding or "ep").lower().split("x"):
        match = _FACTOR.fullmatch(factor)
        if match is None or (match[1] == "r" and match[2] is None):
            raise TopologyError(f"{sharding!r} does not say how to cut the FFN: {_SHAPE}")
        if match[1] in ways or match[1] in open_ways:
            raise TopologyError(f"{sharding!r} gives {match[1]} twice")
        if match[2]:
            ways[match[1]] = int(match[2])
        else:
            open_ways.append(match[1])
    if replicas is not None and ways.get("r", replicas) != replicas:
        raise TopologyError(f"{sharding!r} and {replicas} replicas contradict each other")
    copies = ways.pop("r", replicas)
    copies = 1 if copies is None else copies
    if not ways and not open_ways:
        open_ways = ["ep"]
    if len(open_ways) > 1:
        raise TopologyError(f"{sharding!r} leaves open how many ways each: write the numbers, like ep2xtp2")
    for way in open_ways:
        given = copies * math.prod(ways.values())
        if given < 1 or max(ffn, 1) % given:
            raise TopologyError(
                f"{ffn} FFN instances cannot be shared by {sharding or 'ep'} with {copies} replicas"
            )
        ways[way] = max(ffn, 1) // given
    return Topology(attention, ffn, ways.get("ep", 1), ways.get("tp", 1), copies)


def format_sharding(topology: Topology) -> str:
    """How the FFN is cut, every factor above 1 written out: `ep2xtp2`, `tp2xr2`, `ep1`."""
    factors = [
        f"{name}{count}"
        for name, count in (
            ("ep", topology.expert_parallel),
            ("tp", topology.tensor_parallel),
            ("r", topology.replicas),
        )
        if count > 1
    ]
    return "x".join(factors) or "ep1"


def serve_arguments(topology: Topology) -> list[str]:
    """The flags of `step3 serve` that start this topology."""
    arguments = ["--attention-instances", str(topology.attention), "--ffn-instances", str(topology.ffn)]
    if topology.shards > 1:
        cut = [("ep", topology.expert_parallel), ("tp", topology.tensor_parallel)]
        arguments += ["--ffn-parallel", "x".join(f"{name}{count}" for name, count in cut if count > 1)]
    if topology.replicas > 1:
        arguments += ["--ffn-replicas", str(topology.replicas)]
    return arguments
