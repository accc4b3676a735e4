"""The one that knows all instances: has them started, takes them in, and notices when they die."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from step3.cluster import control
from step3.cluster.config import ClusterConfig, ClusterError, host_key
from step3.cluster.control import Channel, ControlError
from step3.cluster.deployment import Deployment
from step3.cluster.dispatch import Dispatch
from step3.cluster.registry import Member, Registry, Role, State
from step3.cluster.slots import Slot, Slots
from step3.cluster.spans import InstanceSpans
from step3.cluster.totals import retired

log = logging.getLogger("step3.cluster")

CHECKS_PER_LEASE = 6
SPANS_SECONDS = 30.0
"""How long instances may take to send what they recorded."""


class Coordinator:
    """Runs a deployment on one event loop; every method is called on its thread.

    Attributes:
        address: where instances join over the network; None if they cannot.
        restarts: dead processes that were replaced, by role.
        requests: those that are under way.
    """

    def __init__(self, config: ClusterConfig, model: str | None, device: str | None) -> None:
        self._config = config
        self._host = host_key()
        self._local = f"unix:step3-control-{secrets.token_hex(12)}"
        self._servers: list[asyncio.AbstractServer] = []
        self._registry = Registry(config.topology, config.lease)
        self._channels: dict[Member, Channel] = {}
        self._changed = asyncio.Event()
        self._slots = Slots(config, model, device, self._local, self._registry, self._lose, self._changed.set)
        self._lease_watch: asyncio.Task[None] | None = None
        self._spans: dict[Member, asyncio.Future[Any]] = {}
        self._retired: list[Mapping[str, Any]] = []
        self._is_stopping = False
        self._recording = asyncio.Lock()
        self.address: str | None = None
        self.restarts = self._slots.restarts
        self.requests = Dispatch(self._send, self._let_go_if_idle)

    async def warm_up(self) -> None:
        """Begins to get ready to start instances, while others get ready to tell which."""
        await self._slots.warm_up()

    async def start(self, deployment: Deployment) -> None:
        """Starts this host's instances and waits until the deployment can answer.

        Raises:
            ClusterError: an instance cannot load, or not in time; says why.
        """
        self._deployment = deployment
        secret = self._config.secret
        server, _ = await control.listen(self._local, secret, self._serve)
        self._servers.append(server)
        if self._config.listen is not None:
            tls = self._config.tls
            server, self.address = await control.listen(
                self._config.listen, secret, self._serve, None if tls is None else tls.listening()
            )
            self._servers.append(server)
        self._lease_watch = asyncio.create_task(self._watch_leases())
        self._slots.launch()
        deadline = time.monotonic() + self._config.start_seconds
        while not self._is_complete():
            self._changed.clear()
            self._slots.raise_failures()
            left = deadline - time.monotonic()
            # Instances of other hosts come when they come.
            if left <= 0 and self._config.listen is None:
                raise ClusterError(f"the instances did not load within {self._config.start_seconds:g} s")
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.5)

    async def stop(self) -> None:
        """Ends all instances that were started here, and tells the others to leave."""
        self._is_stopping = True
        if self._lease_watch is not None:
            self._lease_watch.cancel()
        self._slots.give_up()
        for channel in self._channels.values():
            channel.send({"type": "leave"})
        for server in self._servers:
            server.close()
        await self._slots.end()
        for channel in list(self._channels.values()):
            channel.close()

    @property
    def is_ready(self) -> bool:
        """Whether requests can be answered now."""
        return bool(self._registry.members("attention", State.READY)) and not self._registry.missing_shards()

    def forget_prefixes(self) -> None:
        for member, channel in self._channels.items():
            if member.role == "attention":
                channel.send({"type": "forget_prefixes"})

    def members(self) -> list[Member]:
        return [*self._registry.members("attention"), *self._registry.members("ffn")]

    def statistics(self) -> list[Mapping[str, Any]]:
        """Of all attention instances, and the last of those that have ended."""
        now = [
            one.told["statistics"] for one in self._registry.members("attention") if "statistics" in one.told
        ]
        return [*now, *self._retired]

    def memory(self) -> Mapping[str, Any]:
        """What an attention instance's memory goes to."""
        return next(
            member.told["memory"] for member in self._registry.members("attention") if "memory" in member.told
        )

    def add(self, role: Role, shard: int = 0) -> str:
        """Starts one more instance on this host: attention, or a replica of a shard.

        Raises:
            ClusterError: there is no such shard.
        """
        shards = self._config.topology.shards
        if role == "ffn" and not 0 <= shard < shards:
            raise ClusterError(f"there is no shard {shard}: they count from 0 to {shards - 1}")
        taken = {one.instance for one in self._registry.members(role)}
        taken |= self._slots.taken(role)
        number, step = (shard, shards) if role == "ffn" else (0, 1)
        while number in taken:
            number += step
        self._slots.fill(Slot(role, number, None))
        return f"{role} {number}"

    def drain(self, role: Role, instance: int) -> None:
        """Lets an instance finish what it has, and leave.

        Raises:
            ClusterError: it is not there, or the last of its kind.
        """
        found = [one for one in self._registry.members(role) if one.instance == instance]
        if not found:
            raise ClusterError(f"there is no {role} instance {instance}")
        [member] = found
        others = [
            one
            for one in self._registry.members(role, State.READY)
            if one is not member and one.shard == member.shard
        ]
        if not others:
            kind = "attention instance" if role == "attention" else f"instance of shard {member.shard}"
            raise ClusterError(f"{member} is the last {kind}: add another one first")
        slot = self._slots.of(member)
        if slot is not None:
            slot.is_wanted = False
        member.state = State.DRAINING
        if role == "ffn":
            self._tell_members()
        self._let_go_if_idle(member)

    async def record(self, seconds: float) -> list[InstanceSpans]:
        """What all instances do for so long; who asks meanwhile waits for a recording of its own."""
        async with self._recording:
            return await self._record(seconds)

    async def _record(self, seconds: float) -> list[InstanceSpans]:
        for channel in self._channels.values():
            channel.send({"type": "record", "seconds": seconds + 1.0})
        await asyncio.sleep(seconds)
        members = [one for one in self.members() if one in self._channels and one.state is not State.LOADING]
        loop = asyncio.get_running_loop()
        for member in members:
            self._spans[member] = loop.create_future()
            self._channels[member].send({"type": "spans"})
        if members:
            await asyncio.wait([self._spans[one] for one in members], timeout=SPANS_SECONDS)
        found = []
        for member in members:
            future = self._spans.pop(member)
            if future.done() and not future.cancelled():
                name = f"{member.role} {member.instance}"
                ahead = int(member.told.get("ahead_ns", 0))
                found.append(InstanceSpans(name, ahead, future.result(), member.role == "attention"))
        return found

    def _is_complete(self) -> bool:
        return self._slots.are_ready and self.is_ready

    async def _serve(self, channel: Channel) -> None:
        """One instance's connection, from its joining to its end."""
        try:
            asked = await channel.receive()
            member, slot = self._take_in(asked)
        except ControlError as error:
            log.warning("dropped a control connection: %s", error)
            return
        except (ClusterError, KeyError, TypeError) as error:
            log.warning("refused an instance: %s", error)
            channel.send({"type": "refused", "reason": str(error)})
            return
        self._channels[member] = channel
        if slot is not None:
            slot.member = member
        channel.send(
            {
                "type": "welcome",
                "deployment": self._deployment.pack(),
                "instance": member.instance,
                "shard": member.shard,
                "epoch": member.epoch,
                "host": self._host,
            }
        )
        if member.role == "attention":
            channel.send(self._members_message())
        reason = "its connection ended"
        try:
            while self._registry.holds(member):
                self._take(member, await channel.receive())
        except ControlError as error:
            reason = str(error)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"it sent what makes no sense ({error!r:.200})"
        self._lose(member, reason)

    def _take_in(self, asked: Mapping[str, Any]) -> tuple[Member, Slot | None]:
        role = asked["role"]
        if asked["type"] != "join" or role not in ("attention", "ffn"):
            raise ClusterError("an instance has to join as attention or ffn first")
        if asked["model"] != self._deployment.model:
            raise ClusterError("it has another checkpoint: give --model the one that this deployment serves")
        slot = None
        if asked.get("ticket") is not None:
            slot = self._slots.with_ticket(asked["ticket"])
            if slot is None:
                raise ClusterError("its ticket is not of this coordinator")
            if slot.member is not None:
                self._lose(slot.member, "its process was replaced")
        wanted = None if slot is None else slot.instance
        member = self._registry.join(
            role,
            str(asked["host"]),
            int(asked["pid"]),
            time.monotonic(),
            self._config.start_seconds,
            wanted,
        )
        return member, slot

    def _take(self, member: Member, message: Mapping[str, Any]) -> None:
        self._registry.renew(member, time.monotonic())
        match message["type"]:
            case "beat":
                echo = {"type": "beat", "sent_ns": message["sent_ns"], "now_ns": time.monotonic_ns()}
                self._channels[member].send(echo)
                member.told = {**member.told, **message}
            case "ready":
                member.told = {**member.told, **message}
                self._make_ready(member, message)
            case "output":
                self.requests.take_output(member, message)
            case "failed":
                self.requests.take_failure(member, message)
            case "spans":
                future = self._spans.get(member)
                if future is not None and not future.done():
                    future.set_result(message["spans"])
            case "cannot_load":
                slot = self._slots.of(member)
                if slot is not None:
                    slot.failure = f"{member} cannot load: {message['reason']}"
                self._changed.set()
            case "left":
                self._lose(member, "it left")

    def _make_ready(self, member: Member, message: Mapping[str, Any]) -> None:
        self._registry.make_ready(member, message["addresses"], time.monotonic())
        log.info("%s is ready", member)
        if member.role == "ffn":
            self._tell_members()
        else:
            memory = message["memory"]
            self.requests.take_in(member, memory["num_blocks"] * memory["block_size"])
        self._changed.set()

    def _lose(self, member: Member, reason: str) -> None:
        """An instance is no member any more; what it had goes on elsewhere."""
        channel = self._channels.pop(member, None)
        if not self._registry.holds(member):
            return
        if not self._is_stopping:
            log.warning("%s is gone: %s", member, reason)
        if channel is not None:
            channel.close()
        self._registry.remove(member)
        slot = self._slots.of(member)
        if slot is not None:
            slot.member = None
            if slot.process is not None and reason != "it left":
                # Whoever does not answer must not go on computing.
                slot.process.kill()
        if member.role == "ffn":
            self._tell_members()
            return
        if "statistics" in member.told:
            self._retired = [retired([*self._retired, member.told["statistics"]])]
        self.requests.lose(member)

    async def _watch_leases(self) -> None:
        while True:
            await asyncio.sleep(self._config.lease / CHECKS_PER_LEASE)
            for member in self._registry.expired(time.monotonic()):
                self._lose(member, f"it was not heard for {self._config.lease:g} s")

    def _members_message(self) -> dict[str, Any]:
        members = [
            [one.instance, one.shard, one.epoch, one.host, one.addresses]
            for one in self._registry.members("ffn", State.READY)
        ]
        return {"type": "members", "members": members}

    def _tell_members(self) -> None:
        message = self._members_message()
        for member, channel in self._channels.items():
            if member.role == "attention":
                channel.send(message)

    def _let_go_if_idle(self, member: Member) -> None:
        if member.state is State.DRAINING and not self.requests.is_with(member):
            self._send(member, {"type": "leave"})

    def _send(self, member: Member, message: Mapping[str, Any]) -> None:
        channel = self._channels.get(member)
        if channel is not None:
            channel.send(message)
