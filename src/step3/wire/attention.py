"""The attention side: push calls, wait for their answers."""

from __future__ import annotations

import logging
import math
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from step3.wire import codec
from step3.wire.codec import Fp8
from step3.wire.connection import Connection, Peer
from step3.wire.endpoint import Endpoint
from step3.wire.errors import FrameError, NoSlotError, WireError
from step3.wire.events import Answer, Event, Failed, Late, Ticket, Times
from step3.wire.formats import BLOCK, DEFAULT_SPIN, Format, Shapes, Timing
from step3.wire.frames import Header, Kind
from step3.wire.handshake import Role
from step3.wire.layout import CallLayout, CallViews, call_layout

log = logging.getLogger("step3.wire")


@dataclass
class _Outstanding:
    ticket: Ticket
    partials: Format
    deadline: float
    forgotten: bool = False


@dataclass
class _Account:
    """The slots of one connection: free, or with a call whose answer has not come, or being read."""

    free: list[int]
    calls: dict[int, _Outstanding] = field(default_factory=dict)


class AttentionEndpoint(Endpoint):
    """Pushes calls to FFN endpoints and takes their partial sums.

    Args:
        activations: format of activations on the way out.
        partials: format of partial sums on the way back; not fp8.

    The others are those of `Endpoint`.
    """

    _takes_all = False

    def __init__(
        self,
        instance: int,
        shapes: Shapes,
        secret: bytes,
        *,
        activations: Format = Format.FP8,
        partials: Format = Format.BFLOAT16,
        epoch: int = 0,
        timing: Timing | None = None,
        tls: ssl.SSLContext | None = None,
        spin: float = DEFAULT_SPIN,
        checksums: bool = False,
    ) -> None:
        if partials is Format.FP8:
            raise WireError("partial sums travel as bfloat16 or float32, not as fp8")
        super().__init__(Role.ATTENTION, instance, shapes, secret, epoch, timing, tls, spin, checksums)
        self._activations, self._partials = activations, partials
        self._accounts: dict[Connection, _Account] = {}
        self._calls = 0

    def push(
        self,
        peers: Sequence[Peer],
        lane: int,
        layer: int,
        x: Tensor | Fp8,
        expert_ids: Tensor | None = None,
        expert_weights: Tensor | None = None,
        timeout: float | None = None,
    ) -> list[Ticket]:
        """Sends one call to some peers, say to a replica of each shard; returns before it has arrived.

        Args:
            lane: a number for the answer to carry.
            x: `[tokens, hidden]`, normed; any float dtype and device, or fp8 that is already encoded if that
                is the endpoint's format. It may be changed as soon as this returns.
            expert_ids: `[tokens, top_k]`, any integer dtype; None in a layer without experts.
            expert_weights: `[tokens, top_k]`.
            timeout: seconds after which a `Late` tells that the answer has not come.

        Returns:
            A ticket for each peer, in their order.

        Raises:
            PeerGoneError: a peer is gone. Nothing was sent to anyone.
            NoSlotError: a peer has no slot left. Nothing was sent to anyone.
            WireError: shapes do not fit those of the endpoint, or a peer is named twice.
        """
        if len(peers) > 1 and len(set(peers)) < len(peers):
            raise WireError("a call is pushed to a peer once")
        connections = [self._connection(peer) for peer in peers]
        self._check_call(lane, layer, x, expert_ids, expert_weights)
        for connection in connections:
            if not self._accounts[connection].free:
                raise NoSlotError(f"all slots of {connection} are taken")
        tokens, hidden = (x.values if isinstance(x, Fp8) else x).shape
        top_k = 0 if expert_ids is None else expert_ids.shape[1]
        layout = call_layout(self._activations, tokens, hidden, top_k)
        parts = _parts(layout, x, expert_ids, expert_weights)
        call, self._calls = self._calls, self._calls + 1
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._check_at = min(self._check_at, deadline)
        written: memoryview | None = None
        tickets = []
        for peer, connection in zip(peers, connections, strict=True):
            account = self._accounts[connection]
            slot = account.free[-1]
            assert connection.slots is not None
            pushed_ns = time.monotonic_ns()
            header = Header(
                Kind.CALL,
                self._activations,
                self._partials,
                instance=self.instance,
                epoch=self.epoch,
                lane=lane,
                layer=layer,
                slot=slot,
                top_k=top_k,
                call=call,
                tokens=tokens,
                hidden=hidden,
                payload_bytes=layout.nbytes,
            )
            # The peer begins with the call while this side does its accounts.
            if parts is not None and connection.rings is not None:
                connection.send_call(header, *parts)
            else:
                if written is None:
                    _write(
                        connection.slots.call(slot, self._activations, tokens, top_k),
                        x,
                        expert_ids,
                        expert_weights,
                    )
                    written = connection.slots.call_bytes(slot, layout.nbytes)
                else:
                    connection.slots.call_bytes(slot, layout.nbytes)[:] = written
                connection.send(header)
            ticket = Ticket(peer, lane, layer, call, slot, tokens, pushed_ns)
            account.calls[account.free.pop()] = _Outstanding(ticket, self._partials, deadline)
            tickets.append(ticket)
        return tickets

    def wait(self, timeout: float | None = None) -> list[Event]:
        """What has happened since, at least one thing unless `timeout` seconds pass or `wake` is called."""
        self._pump(math.inf if timeout is None else time.monotonic() + timeout, lambda: bool(self._events))
        return self._take_events()

    def forget(self, ticket: Ticket) -> None:
        """Its answer will be dropped when it comes; until then its slot is taken."""
        connection = self._peers.get(ticket.peer)
        if connection is not None:
            outstanding = self._accounts[connection].calls.get(ticket.slot)
            if outstanding is not None and outstanding.ticket is ticket:
                outstanding.forgotten = True

    def slots_free(self, peer: Peer) -> int:
        """Calls that can be pushed to a peer now; 0 for one that is gone."""
        connection = self._peers.get(peer)
        return 0 if connection is None else len(self._accounts[connection].free)

    def _joined(self, connection: Connection, peer: Peer) -> None:
        self._accounts[connection] = _Account(list(range(peer.slots)))

    def _expect(self, connection: Connection, header: Header) -> None:
        if header.kind not in (Kind.PARTIAL, Kind.ERROR):
            raise FrameError(f"a {header.kind.name.lower()} frame came to an attention instance")
        outstanding = self._accounts[connection].calls.get(header.slot)
        if outstanding is None or outstanding.ticket.call != header.call:
            raise FrameError(
                f"an answer to call {header.call} in slot {header.slot} came, which is not outstanding"
            )
        ticket = outstanding.ticket
        if header.kind is Kind.PARTIAL and (
            header.partials is not outstanding.partials or header.tokens != ticket.tokens
        ):
            raise FrameError(f"the answer to {ticket} has another shape or format than was asked for")

    def _deliver(self, connection: Connection, header: Header, text: str) -> None:
        account = self._accounts[connection]
        outstanding = account.calls.pop(header.slot)
        ticket = outstanding.ticket
        if header.kind is Kind.ERROR or outstanding.forgotten:
            account.free.append(header.slot)
            if not outstanding.forgotten:
                self._events.append(Failed(ticket, text))
            return
        assert connection.slots is not None
        partial = connection.slots.answer(header.slot, header.partials, header.tokens)
        times = Times(
            ticket.pushed_ns, header.arrived_ns, header.started_ns, header.finished_ns, time.monotonic_ns()
        )
        slots = [header.slot]

        def release() -> None:
            if slots:
                account.free.append(slots.pop())

        self._events.append(Answer(ticket, partial, times, release))

    def _left(self, connection: Connection, peer: Peer) -> tuple[Ticket, ...]:
        account = self._accounts.pop(connection)
        lost = [one.ticket for one in account.calls.values() if not one.forgotten]
        return tuple(sorted(lost, key=lambda ticket: ticket.call))

    def _late(self, now: float) -> float:
        next_at = math.inf
        for account in self._accounts.values():
            for outstanding in account.calls.values():
                if outstanding.forgotten:
                    continue
                if now >= outstanding.deadline:
                    outstanding.deadline = math.inf
                    self._events.append(Late(outstanding.ticket))
                next_at = min(next_at, outstanding.deadline)
        return next_at

    def _check_call(
        self,
        lane: int,
        layer: int,
        x: Tensor | Fp8,
        expert_ids: Tensor | None,
        expert_weights: Tensor | None,
    ) -> None:
        shapes = self.shapes
        if isinstance(x, Fp8):
            if self._activations is not Format.FP8:
                raise WireError(f"x is fp8, but the endpoint sends {self._activations.name.lower()}")
            if x.scales.shape != (x.values.shape[0], math.ceil(shapes.hidden / BLOCK)):
                raise WireError(
                    f"x has scales of {list(x.scales.shape)} for values of {list(x.values.shape)}"
                )
            x = x.values
        if x.ndim != 2 or x.shape[1] != shapes.hidden or not 1 <= x.shape[0] <= shapes.max_tokens:
            raise WireError(
                f"x must be [1 to {shapes.max_tokens} tokens, {shapes.hidden}], not {list(x.shape)}"
            )
        if not 0 <= layer < shapes.layers:
            raise WireError(f"layer {layer} is not among the {shapes.layers} of the endpoint")
        if not 0 <= lane < 1 << 16:
            raise WireError(f"lane {lane} is not from 0 to {(1 << 16) - 1}")
        if (expert_ids is None) != (expert_weights is None):
            raise WireError("expert_ids and expert_weights come together or not at all")
        for name, tensor in (("expert_ids", expert_ids), ("expert_weights", expert_weights)):
            if tensor is not None and tensor.shape != (x.shape[0], shapes.top_k):
                raise WireError(f"{name} must be [{x.shape[0]}, {shapes.top_k}], not {list(tensor.shape)}")


def _parts(
    layout: CallLayout, x: Tensor | Fp8, expert_ids: Tensor | None, expert_weights: Tensor | None
) -> tuple[int, ...] | None:
    """Addresses, sizes and places of a call's tensors, for `Connection.send_call`.

    None if they cannot be copied as they lie.
    """
    values = x.values if isinstance(x, Fp8) else x
    if values.dtype is not layout.format.dtype or not _is_plain(values):
        return None
    scales_from = scale_bytes = 0
    if isinstance(x, Fp8):
        scales = x.scales
        if scales.dtype is not torch.float32 or not _is_plain(scales):
            return None
        scales_from, scale_bytes = scales.data_ptr(), scales.nbytes
    ids_from = weights_from = chosen = 0
    if expert_ids is not None and expert_weights is not None:
        if expert_ids.dtype is not torch.int64 or expert_weights.dtype is not torch.float32:
            return None
        if not (_is_plain(expert_ids) and _is_plain(expert_weights)):
            return None
        ids_from, weights_from = expert_ids.data_ptr(), expert_weights.data_ptr()
        chosen = layout.tokens * layout.top_k
    return (
        values.data_ptr(),
        values.nbytes,
        scales_from,
        scale_bytes,
        layout.scales,
        ids_from,
        layout.ids,
        weights_from,
        layout.weights,
        chosen,
    )


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.is_contiguous()


def _write(
    views: CallViews, x: Tensor | Fp8, expert_ids: Tensor | None, expert_weights: Tensor | None
) -> None:
    if isinstance(x, Fp8):
        assert views.scales is not None
        views.values.view(torch.uint8).copy_(x.values.view(torch.uint8))
        views.scales.copy_(x.scales)
    elif views.scales is not None:
        codec.encode_fp8(x, views.values, views.scales)
    else:
        views.values.copy_(x)
    if (
        views.ids is not None
        and views.weights is not None
        and expert_ids is not None
        and expert_weights is not None
    ):
        views.ids.copy_(expert_ids)
        views.weights.copy_(expert_weights)
