"""An instance's process: joins a deployment, does its part, joins again when it has lost it.

The coordinator starts its own; `step3 attention` and `step3 ffn` run the same by hand.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from step3.cluster import control
from step3.cluster.config import host_key
from step3.cluster.control import Channel, ControlError
from step3.cluster.processes import use_cores
from step3.cluster.registry import Role
from step3.cluster.tls import TLSFiles
from step3.errors import Step3Error

if TYPE_CHECKING:
    from step3.cluster.deployment import Deployment

log = logging.getLogger("step3.cluster")

BEATS_PER_LEASE = 8
FIRST_RETRY, LONGEST_RETRY = 0.2, 3.0


class RefusedError(Step3Error):
    """The coordinator does not take this instance."""


@dataclass(frozen=True)
class InstanceSettings:
    """What an instance needs to know before it has joined.

    Attributes:
        join: the coordinator's address.
        model: a checkpoint's folder or name; None for the bundled model.
        device: where to compute, as torch names it; None for what the deployment says.
        threads: torch's; None leaves them to torch.
        cores: to be bound to; None for any.
        advertise: host under which this instance is reached from other hosts; None for that of the address
            from which it reaches the coordinator.
        ticket: proves to the coordinator which of its processes this is.
        is_child: started by the coordinator, and ends with it.
        tls: what connections to other hosts are encrypted with; None for nothing.
    """

    role: Role
    join: str
    secret: bytes
    model: str | None = None
    device: str | None = None
    threads: int | None = None
    cores: tuple[int, ...] | None = None
    advertise: str | None = None
    ticket: str | None = None
    is_child: bool = False
    tls: TLSFiles | None = None


@dataclass(frozen=True, eq=False)
class Membership:
    """What joining has given.

    Attributes:
        instance: this one's number.
        shard: which part of every FFN it holds.
        host: names the coordinator's host.
    """

    channel: Channel
    deployment: Deployment
    instance: int
    shard: int
    epoch: int
    host: str


class Part(Protocol):
    """What an instance does as long as it is a member."""

    def prepare(self, membership: Membership) -> dict[str, Any]:
        """Loads what is missing and begins to work; on a thread of its own.

        Returns:
            What the coordinator is told.
        """

    def take(self, message: Mapping[str, Any]) -> None:
        """Does what the coordinator asks."""

    def tell(self) -> dict[str, Any]:
        """What a heartbeat carries."""

    @property
    def is_alive(self) -> bool:
        """Whether it can go on."""

    async def leave(self) -> None:
        """Ends its work: it is no member any more."""


def fingerprint(folder: Path) -> str:
    """What instances with the same checkpoint have in common."""
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors.index.json"):
        file = folder / name
        digest.update(file.read_bytes() if file.is_file() else b"-")
    return digest.hexdigest()


async def run(settings: InstanceSettings, part: Part) -> None:
    """Is an instance until the coordinator refuses it, or, for its child, is gone.

    Raises:
        RefusedError: it does not take this instance.
    """
    retry = FIRST_RETRY
    while True:
        try:
            membership = await _join(settings)
        except ControlError as error:
            if settings.is_child:
                raise
            log.warning("%s; trying again in %g s", error, retry)
            await asyncio.sleep(retry)
            retry = min(2 * retry, LONGEST_RETRY)
            continue
        retry = FIRST_RETRY
        has_left = await _be_member(membership, part)
        await part.leave()
        if has_left or settings.is_child or not part.is_alive:
            return
        log.warning("the coordinator was lost; joining again")


async def _join(settings: InstanceSettings) -> Membership:
    from step3.cluster.deployment import Deployment
    from step3.engine.config import EngineConfig, find_model

    folder = await asyncio.to_thread(find_model, EngineConfig(model=settings.model))
    # The coordinator's own children reach it within the host.
    tls = None if settings.tls is None or settings.is_child else settings.tls.connecting()
    channel = await control.connect(settings.join, settings.secret, tls)
    host = host_key()
    channel.send(
        {
            "type": "join",
            "role": settings.role,
            "host": host,
            "pid": os.getpid(),
            "ticket": settings.ticket,
            "model": fingerprint(folder),
        }
    )
    answer = await channel.receive()
    if answer["type"] == "refused":
        channel.close()
        raise RefusedError(f"the coordinator refuses: {answer['reason']}")
    return Membership(
        channel,
        Deployment.unpack(answer["deployment"]),
        answer["instance"],
        answer["shard"],
        answer["epoch"],
        answer["host"],
    )


async def _be_member(membership: Membership, part: Part) -> bool:
    """Works until the connection ends; whether that is because it was told to leave."""
    own = _Member(membership, part)
    tasks = {asyncio.create_task(work()) for work in (own.prepare, own.listen, own.beat)}
    ending = tasks
    try:
        while True:
            done, ending = await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                verdict = task.result()
                if verdict is not None:
                    return verdict
    except ControlError as error:
        log.warning("%s", error)
        return False
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        membership.channel.close()


class _Member:
    """The three things that a member does beside its work: load, listen, and show that it lives."""

    def __init__(self, membership: Membership, part: Part) -> None:
        self._membership, self._channel, self._part = membership, membership.channel, part
        self._heard = time.monotonic()
        self._is_ready = False
        self._clock: dict[str, int] = {}

    async def prepare(self) -> None:
        try:
            told = await asyncio.to_thread(self._part.prepare, self._membership)
        except Step3Error as error:
            self._channel.send({"type": "cannot_load", "reason": str(error)})
            await self._channel.flush()
            raise
        self._channel.send({"type": "ready", **told})
        self._is_ready = True

    async def listen(self) -> bool:
        """Takes messages until one says to leave."""
        while True:
            message = await self._channel.receive()
            self._heard = time.monotonic()
            match message["type"]:
                case "leave":
                    self._channel.send({"type": "left"})
                    return True
                case "beat":
                    self._clock = _read_clock(message)
                case _:
                    self._part.take(message)

    async def beat(self) -> bool:
        """Shows that this instance lives until it does not, or the coordinator does not."""
        lease = self._membership.deployment.lease
        while self._part.is_alive:
            if time.monotonic() - self._heard > lease:
                raise ControlError(f"nothing was heard of the coordinator for {lease:g} s")
            told = self._part.tell() if self._is_ready else {}
            self._channel.send({"type": "beat", "sent_ns": time.monotonic_ns(), **self._clock, **told})
            await asyncio.sleep(lease / BEATS_PER_LEASE)
        return False


def _read_clock(message: Mapping[str, Any]) -> dict[str, int]:
    """What the coordinator's clock is ahead of this one, by a heartbeat and its echo."""
    now = time.monotonic_ns()
    sent, answered = message["sent_ns"], message["now_ns"]
    return {"ahead_ns": answered - (sent + now) // 2, "round_trip_ns": now - sent}


def run_instance(settings: InstanceSettings) -> None:
    """Runs an instance in this process.

    Raises:
        Step3Error: it is refused, or cannot load.
    """
    use_cores(settings.cores)
    import torch

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    part: Part
    if settings.role == "attention":
        from step3.cluster.attention_instance import AttentionPart

        part = AttentionPart(settings)
    else:
        from step3.cluster.ffn_instance import FFNPart

        part = FFNPart(settings)
    asyncio.run(run(settings, part))


def run_child(given: Mapping[str, Any]) -> int:
    """Runs an instance that the coordinator has started; returns the exit status."""
    logging.basicConfig(
        format=f"%(asctime)s %(levelname)s {given['role']} %(process)d: %(message)s", level=logging.WARNING
    )
    settings = InstanceSettings(
        role=given["role"],
        join=given["join"],
        secret=bytes.fromhex(given["secret"]),
        model=given["model"],
        device=given["device"],
        threads=given["threads"],
        cores=None if given["cores"] is None else tuple(given["cores"]),
        advertise=given["advertise"],
        ticket=given["ticket"],
        is_child=True,
        tls=None if given["tls"] is None else TLSFiles(**given["tls"]),
    )
    try:
        run_instance(settings)
    except Step3Error as error:
        log.error("%s", error)
        return 1
    return 0
