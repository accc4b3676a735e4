"""Places for the processes of this host: each is filled, and filled again when its process dies."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from step3.cluster import processes
from step3.cluster.config import ClusterConfig, ClusterError
from step3.cluster.control import split_address
from step3.cluster.processes import BackOff, Nursery, Process
from step3.cluster.registry import Member, Registry, Role, State

log = logging.getLogger("step3.cluster")

MOST_DEATHS_AT_START = 5


@dataclass(eq=False)
class Slot:
    """A place for a process of this host, which is filled again when the process dies.

    Attributes:
        ticket: by which the process is known when it joins.
        is_wanted: whether it is to be filled.
        failure: why it could not load.
        deaths: of its processes.
    """

    role: Role
    instance: int
    cores: list[int] | None
    ticket: str = field(default_factory=lambda: secrets.token_hex(16))
    process: Process | None = None
    member: Member | None = None
    back_off: BackOff = field(default_factory=BackOff)
    started: float = 0.0
    is_wanted: bool = True
    failure: str | None = None
    deaths: int = 0


class Slots:
    """All slots of this host; every method is called on the event loop's thread.

    Attributes:
        restarts: dead processes that were replaced, by role.
    """

    def __init__(
        self,
        config: ClusterConfig,
        model: str | None,
        device: str | None,
        address: str,
        registry: Registry,
        lose: Callable[[Member, str], None],
        changed: Callable[[], None],
    ) -> None:
        """
        Args:
            address: where the processes join.
            registry: of all instances, also of other hosts.
            lose: called with a member whose process has ended, and that as the reason.
            changed: called when a process has died.
        """
        self._config, self._model, self._device, self._address = config, model, device, address
        self._registry, self._lose, self._changed = registry, lose, changed
        self._slots: list[Slot] = []
        self._nursery = Nursery()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self.restarts: Counter[str] = Counter()

    async def warm_up(self) -> None:
        """Begins to get ready to start processes."""
        launched = zip(("ffn", "attention"), reversed(self._config.launches), strict=True)
        await self._nursery.open([role for role, count in launched if count])

    def launch(self) -> None:
        """Starts what this host has from the beginning."""
        attention, ffn = self._config.launches
        cores: list[Any] = [None] * (attention + ffn)
        if self._config.bind_cores:
            cores = list(processes.share_cores(attention + ffn))
        for number in range(ffn):
            self.fill(Slot("ffn", number, cores[attention + number]))
        for number in range(attention):
            self.fill(Slot("attention", number, cores[number]))

    def fill(self, slot: Slot) -> None:
        """Starts a process for a slot, which may be a new one."""
        if slot not in self._slots:
            self._slots.append(slot)
        attention, ffn = self._config.launches
        threads = self._config.threads or max(1, len(processes.usable_cores()) // max(1, attention + ffn))
        settings = {
            "role": slot.role,
            "join": self._address,
            "secret": self._config.secret.hex(),
            "model": self._model,
            "device": self._device,
            "threads": threads,
            "cores": slot.cores,
            "advertise": self._advertised,
            "ticket": slot.ticket,
            "tls": None if self._config.tls is None else asdict(self._config.tls),
        }
        slot.started = time.monotonic()
        self._spawn(self._start_process(slot, settings))

    @property
    def are_ready(self) -> bool:
        return all(slot.member is not None and slot.member.state is State.READY for slot in self._slots)

    def taken(self, role: Role) -> set[int]:
        """Numbers of the instances that are there or will be again."""
        return {slot.instance for slot in self._slots if slot.role == role and slot.is_wanted}

    def of(self, member: Member) -> Slot | None:
        return next((slot for slot in self._slots if slot.member is member), None)

    def with_ticket(self, ticket: object) -> Slot | None:
        return next((slot for slot in self._slots if slot.ticket == ticket), None)

    def raise_failures(self) -> None:
        """
        Raises:
            ClusterError: a process could not load, or dies again and again.
        """
        for slot in self._slots:
            if slot.failure is not None:
                raise ClusterError(slot.failure)
            if slot.deaths >= MOST_DEATHS_AT_START:
                raise ClusterError(
                    f"{slot.role} instance {slot.instance} has died {slot.deaths} times before it was ready: "
                    "see the log above; is there enough memory?"
                )

    def give_up(self) -> None:
        """Fills no slot from now on."""
        self._is_stopping = True
        for task in list(self._tasks):
            task.cancel()
        for slot in self._slots:
            slot.is_wanted = False

    async def end(self) -> None:
        """Waits until all processes have ended, and kills those that do not."""
        running = [slot.process for slot in self._slots if slot.process is not None]
        until = time.monotonic() + 2.0
        while not all(one.has_ended for one in running) and time.monotonic() < until:
            await asyncio.sleep(0.02)
        for process in running:
            process.kill()
        while not all(one.has_ended for one in running):
            await asyncio.sleep(0.01)
        self._nursery.close()

    async def _start_process(self, slot: Slot, settings: Mapping[str, Any]) -> None:
        try:
            slot.process = await self._nursery.start(settings, lambda: self._refill(slot))
        except ProcessLookupError:
            self._refill(slot)

    def _refill(self, slot: Slot) -> None:
        """A process has ended: what it had goes on elsewhere, and another one takes its place."""
        slot.process = None
        if slot.member is not None:
            self._lose(slot.member, "its process ended")
        if self._is_stopping:
            return
        if not slot.is_wanted:
            self._slots.remove(slot)
            return
        lived = time.monotonic() - slot.started
        wait = slot.back_off.next(lived, self._has_stand_in(slot))
        log.warning("%s instance %d starts again in %g s", slot.role, slot.instance, wait)
        slot.deaths += 1
        self.restarts[slot.role] += 1
        self._spawn(self._fill_later(slot, wait))
        self._changed()

    def _has_stand_in(self, slot: Slot) -> bool:
        """Whether another instance can do what one of this host's did."""
        shards = self._config.topology.shards if slot.role == "ffn" else 1
        ready = self._registry.members(slot.role, State.READY)
        return any((one.instance - slot.instance) % shards == 0 for one in ready)

    async def _fill_later(self, slot: Slot, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if slot.is_wanted and not self._is_stopping:
            self.fill(slot)

    @property
    def _advertised(self) -> str | None:
        """The host under which others reach this one's FFN instances; None if no others can join."""
        if self._config.listen is None:
            return None
        return self._config.advertise or split_address(self._config.listen)[0]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
