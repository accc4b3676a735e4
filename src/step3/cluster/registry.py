"""Who is part of a deployment: instances with epochs, alive as long as their leases."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from step3.cluster.config import ClusterError
from step3.plan.topology import Topology

Role = Literal["attention", "ffn"]

EPOCHS_BEGIN = 1_577_836_800
"""2020-01-01, in seconds since 1970: epochs count from there, so that those of a coordinator that was
restarted are larger than those that it gave before."""


class State(Enum):
    """How far an instance is."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    """Finishes what it has and gets nothing new."""


@dataclass(eq=False)
class Member:
    """An instance, from its joining to its end.

    Attributes:
        instance: its number among those of its role.
        shard: which part of every FFN it holds; 0 for attention.
        epoch: larger than that of every instance before it.
        lease_until: alive until then, on the clock of `time.monotonic`.
        host: see `step3.cluster.config.host_key`.
        addresses: where an FFN instance takes calls, by kind ("shm", "tcp").
        told: what it says of itself in its heartbeats.
    """

    role: Role
    instance: int
    shard: int
    epoch: int
    lease_until: float
    host: str
    pid: int
    state: State = State.LOADING
    addresses: dict[str, str] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{'attention' if self.role == 'attention' else 'FFN'} instance {self.instance}"


class Registry:
    """The members of one deployment. Times are given from outside."""

    def __init__(self, topology: Topology, lease: float, first_epoch: int | None = None) -> None:
        """`lease` is in seconds."""
        self.topology, self._lease = topology, lease
        self._epoch = int(time.time()) - EPOCHS_BEGIN if first_epoch is None else first_epoch
        self._members: dict[tuple[Role, int], Member] = {}

    def members(self, role: Role, *states: State) -> list[Member]:
        """Those of a role, in one of some states or in any, by number."""
        found = [
            one
            for (one_role, _), one in self._members.items()
            if one_role == role and (not states or one.state in states)
        ]
        return sorted(found, key=lambda one: one.instance)

    def join(
        self, role: Role, host: str, pid: int, now: float, loading_lease: float, wanted: int | None = None
    ) -> Member:
        """Takes an instance in.

        Args:
            loading_lease: seconds that it may take to load, during which it need not be heard.
            wanted: its number, if it is to have a certain one; the lowest that is free, of the shard that
                has the fewest instances, if not.

        Raises:
            ClusterError: the number is taken, or nothing of that role is needed.
        """
        if role == "ffn" and self.topology.is_monolith:
            raise ClusterError(f"a deployment of {self.topology} has no FFN instances")
        number = self._free(role) if wanted is None else wanted
        if (role, number) in self._members:
            raise ClusterError(f"{self._members[role, number]} is there already")
        self._epoch += 1
        shard = number % self.topology.shards if role == "ffn" else 0
        member = Member(role, number, shard, self._epoch, now + loading_lease, host, pid)
        self._members[role, number] = member
        return member

    def make_ready(self, member: Member, addresses: Mapping[str, str], now: float) -> None:
        member.addresses, member.state = dict(addresses), State.READY
        self.renew(member, now)

    def renew(self, member: Member, now: float) -> None:
        """It was heard. While it loads, its lease is as long as loading may take."""
        if member.state is not State.LOADING:
            member.lease_until = now + self._lease

    def expired(self, now: float) -> list[Member]:
        """Those whose lease has ended; they stay members until they are removed."""
        return [one for one in self._members.values() if one.lease_until < now]

    def holds(self, member: Member) -> bool:
        """Whether it is still a member, and not only one of the same number."""
        return self._members.get((member.role, member.instance)) is member

    def remove(self, member: Member) -> None:
        if self.holds(member):
            del self._members[member.role, member.instance]

    def missing_shards(self) -> list[int]:
        """Shards of which no instance is ready."""
        if self.topology.is_monolith:
            return []
        there = {one.shard for one in self.members("ffn", State.READY)}
        return [shard for shard in range(self.topology.shards) if shard not in there]

    def _free(self, role: Role) -> int:
        taken = {number for one, number in self._members if one == role}
        if role == "attention":
            return next(number for number in range(len(taken) + 1) if number not in taken)
        counts = [0] * self.topology.shards
        for number in taken:
            counts[number % len(counts)] += 1
        neediest = counts.index(min(counts))
        return next(
            number
            for number in range(neediest, len(counts) * (len(taken) + 2), len(counts))
            if number not in taken
        )
