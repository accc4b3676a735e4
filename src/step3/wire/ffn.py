"""The FFN side: take what has arrived, answer it."""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from step3.wire import codec, frames
from step3.wire.connection import Connection, Peer
from step3.wire.endpoint import Endpoint
from step3.wire.errors import FrameError, WireError
from step3.wire.events import Event, Ticket
from step3.wire.formats import DEFAULT_SPIN, Shapes, Timing
from step3.wire.frames import Header, Kind
from step3.wire.handshake import Role
from step3.wire.layout import CallViews, partial_nbytes
from step3.wire.native import open_library

_MAX_OWN = 256


class Call(NamedTuple):
    """One call of one attention instance. A tuple, as one is made for every call.

    Attributes:
        number: counted by the attention instance.
        tokens: rows of `x`.
        values: `[tokens, hidden]` as it came, a view of the slot; with `scales` if it is fp8.
        scales: float32 `[tokens, ceil(hidden / 128)]`, a view of the slot, or None.
        expert_ids: `[tokens, top_k]` int64, each below the connection's number of experts; or None. Valid
            until the reply.
        expert_weights: `[tokens, top_k]` float32, or None.
        partial: `[tokens, hidden]` in the format that is asked for: a view of the slot, to be written.
        arrived_ns: when it was there, on the monotonic clock.
    """

    peer: Peer
    lane: int
    layer: int
    number: int
    tokens: int
    values: Tensor
    scales: Tensor | None
    expert_ids: Tensor | None
    expert_weights: Tensor | None
    partial: Tensor
    arrived_ns: int
    header: Header

    def decode(self, out: Tensor) -> None:
        """Writes the activations to `out`, `[tokens, hidden]` float32 or bfloat16."""
        if self.scales is not None:
            codec.decode_fp8(self.values, self.scales, out)
        else:
            out.copy_(self.values)


class Group(NamedTuple):
    """Calls of one layer that waited together; their rows follow each other in the order of `calls`.

    Attributes:
        expert_ids: `[tokens, top_k]` int64, or None in a layer without experts.
        expert_weights: `[tokens, top_k]` float32, or None.
        tokens: of all calls.
        started_ns: when it was taken, on the monotonic clock.
    """

    layer: int
    calls: tuple[Call, ...]
    expert_ids: Tensor | None
    expert_weights: Tensor | None
    tokens: int
    started_ns: int

    def x(self, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """The activations `[tokens, hidden]` in float32 or bfloat16.

        A single call that came in `dtype` is not copied: the view of its slot is returned, valid until the
        reply. Everything else is written to `out`, or to new memory if there is none.
        """
        first = self.calls[0]
        if len(self.calls) == 1 and first.values.dtype == dtype and out is None:
            return first.values
        if out is None:
            out = torch.empty(self.tokens, first.values.shape[1], dtype=dtype)
        for call, rows in zip(self.calls, out.split([call.tokens for call in self.calls]), strict=True):
            call.decode(rows)
        return out


@dataclass(frozen=True, eq=False)
class _OwnExperts:
    """Where a slot's expert ids and weights are copied to: the slot has one call at a time, so they are kept.

    Attributes:
        sources: addresses of ids and weights in the slot, and how many there are.
        targets: addresses of `ids` and `weights`.
    """

    ids: Tensor
    weights: Tensor
    sources: tuple[int, int, int]
    targets: tuple[int, int]

    @classmethod
    def beside(cls, ids: Tensor, weights: Tensor) -> _OwnExperts:
        own_ids, own_weights = torch.empty_like(ids, dtype=torch.int64), torch.empty_like(weights)
        sources = ids.data_ptr(), weights.data_ptr(), ids.numel()
        return cls(own_ids, own_weights, sources, (own_ids.data_ptr(), own_weights.data_ptr()))


class FFNEndpoint(Endpoint):
    """Serves the calls of attention endpoints; the arguments are those of `Endpoint`."""

    def __init__(
        self,
        instance: int,
        shapes: Shapes,
        secret: bytes,
        *,
        epoch: int = 0,
        timing: Timing | None = None,
        tls: ssl.SSLContext | None = None,
        spin: float = DEFAULT_SPIN,
        checksums: bool = False,
    ) -> None:
        super().__init__(Role.FFN, instance, shapes, secret, epoch, timing, tls, spin, checksums)
        self._busy: dict[Connection, dict[int, int]] = {}  # number of the call in each slot
        self._waiting: dict[tuple[int, int], list[Call]] = {}
        self._own_experts: dict[CallViews, _OwnExperts] = {}

    @property
    def waiting(self) -> int:
        """Calls that have arrived and were not yet taken by `serve`."""
        return sum(map(len, self._waiting.values()))

    def serve(self, timeout: float | None = None, max_tokens: int | None = None) -> Group | None:
        """The layer whose oldest call waits longest, with all calls that wait for that layer.

        Args:
            timeout: seconds to wait for a call.
            max_tokens: of the group; its first call comes whatever its size.

        Returns:
            None if no call came in time, or if there are `events` to be taken first, or `wake` was called.
        """
        until = math.inf if timeout is None else time.monotonic() + timeout
        self._pump(until, self._has_something)
        if not self._waiting:
            return None
        (layer, top_k), waiting = next(iter(self._waiting.items()))
        count, tokens = 0, 0
        for call in waiting:
            if count and max_tokens is not None and tokens + call.tokens > max_tokens:
                break
            count, tokens = count + 1, tokens + call.tokens
        calls = tuple(waiting[:count])
        if count < len(waiting):
            self._waiting[layer, top_k] = waiting[count:]
        else:
            del self._waiting[layer, top_k]
        ids, weights = (
            _rows([call.expert_ids for call in calls]),
            _rows([call.expert_weights for call in calls]),
        )
        return Group(layer, calls, ids, weights, tokens, time.monotonic_ns())

    def _has_something(self) -> bool:
        return bool(self._waiting or self._events)

    def events(self) -> list[Event]:
        """Peers that came and went since; does not wait."""
        return self._take_events()

    def reply(self, group: Group, partial: Tensor | None = None) -> None:
        """Answers all calls of a group; those of peers that are gone are dropped.

        Args:
            partial: `[tokens, hidden]`, any float dtype and device; None if every `Call.partial` is written.

        Raises:
            WireError: `partial` has another shape.
        """
        finished = time.monotonic_ns()
        hidden = group.calls[0].header.hidden
        if partial is not None and partial.shape != (group.tokens, hidden):
            raise WireError(f"the partial sum must be [{group.tokens}, {hidden}], not {list(partial.shape)}")
        first = 0
        for call in group.calls:
            rows = partial
            if partial is not None and len(group.calls) > 1:
                rows = partial[first : first + call.tokens]
            first += call.tokens
            connection = self._done(call)
            if connection is None:
                continue
            asked = call.header
            header = Header(
                Kind.PARTIAL,
                asked.activations,
                asked.partials,
                asked.instance,
                self.epoch,
                asked.lane,
                asked.layer,
                asked.slot,
                asked.top_k,
                asked.call,
                tokens=asked.tokens,
                hidden=hidden,
                payload_bytes=partial_nbytes(asked.partials, asked.tokens, hidden),
                arrived_ns=call.arrived_ns,
                started_ns=group.started_ns,
                finished_ns=finished,
            )
            payload = None
            if rows is not None:
                if connection.rings is not None and _is_plain(rows, call.partial.dtype):
                    connection.send_partial(header, rows.data_ptr(), rows.nbytes)
                    continue
                if not connection.link.shares_memory:
                    payload = _as_payload(rows, call.partial.dtype, header.payload_bytes)
                if payload is None:
                    call.partial.copy_(rows)
            connection.send(header, payload)

    def fail(self, group: Group, message: str) -> None:
        """Tells the attention instances that a group's calls cannot be answered, and why."""
        text = message.encode()[: frames.MAX_TEXT_BYTES]
        for call in group.calls:
            connection = self._done(call)
            if connection is not None:
                header = call.header._replace(kind=Kind.ERROR, epoch=self.epoch, payload_bytes=len(text))
                connection.send(header, memoryview(text))

    def _done(self, call: Call) -> Connection | None:
        """Where a call is to be answered, or None if nobody waits for its answer any more."""
        connection = self._peers.get(call.peer)
        if connection is None or self._busy[connection].get(call.header.slot) != call.number:
            return None
        del self._busy[connection][call.header.slot]
        return connection

    def _joined(self, connection: Connection, peer: Peer) -> None:
        self._busy[connection] = {}

    def _expect(self, connection: Connection, header: Header) -> None:
        if header.kind is not Kind.CALL:
            raise FrameError(f"a {header.kind.name.lower()} frame came to an FFN instance")
        if header.slot in self._busy[connection]:
            raise FrameError(f"a call came in slot {header.slot}, whose last call has no answer yet")
        if connection.peer is None or header.instance != connection.peer.instance:
            raise FrameError(f"a call of instance {header.instance} came from {connection}")
        self._busy[connection][header.slot] = header.call

    def _deliver(self, connection: Connection, header: Header, text: str) -> None:
        assert connection.slots is not None
        assert connection.peer is not None
        slots = connection.slots
        views = slots.call(header.slot, header.activations, header.tokens, header.top_k)
        ids, weights = self._experts(views)
        call = Call(
            connection.peer,
            header.lane,
            header.layer,
            header.call,
            header.tokens,
            views.values,
            views.scales,
            ids,
            weights,
            slots.answer(header.slot, header.partials, header.tokens),
            time.monotonic_ns(),
            header,
        )
        self._waiting.setdefault((header.layer, header.top_k), []).append(call)

    def _experts(self, views: CallViews) -> tuple[Tensor | None, Tensor | None]:
        """Copies, so that the peer cannot change in shared memory what has been checked."""
        if views.ids is None or views.weights is None:
            return None, None
        library = open_library()
        if library is not None:
            own = self._own_experts.get(views)
            if own is None:
                if len(self._own_experts) >= _MAX_OWN:
                    self._own_experts.clear()
                own = self._own_experts[views] = _OwnExperts.beside(views.ids, views.weights)
            worst = library.step3_wire_take_experts(*own.sources, self.shapes.experts, *own.targets)
            if worst >= 0:
                raise FrameError(f"an expert id of {worst} came, of {self.shapes.experts} experts")
            return own.ids, own.weights
        ids = views.ids.numpy().astype(np.int64)
        most = np.maximum.reduce(ids.view(np.uint64), axis=None)  # a negative id is huge
        if most >= self.shapes.experts:
            raise FrameError(f"an expert id of {most} came, of {self.shapes.experts} experts")
        return torch.from_numpy(ids), views.weights.clone()

    def _left(self, connection: Connection, peer: Peer) -> tuple[Ticket, ...]:
        del self._busy[connection]
        # Those of its slots are never asked for again.
        self._own_experts.clear()
        for key, calls in list(self._waiting.items()):
            kept = [call for call in calls if call.peer is not peer]
            if kept:
                self._waiting[key] = kept
            else:
                del self._waiting[key]
        return ()

    def _late(self, now: float) -> float:
        return math.inf


def _is_plain(rows: Tensor, dtype: torch.dtype) -> bool:
    return rows.dtype is dtype and rows.is_cpu and rows.is_contiguous()


def _as_payload(rows: Tensor, dtype: torch.dtype, nbytes: int) -> memoryview | None:
    """The bytes of a partial sum that can be sent as it is; None if it must be written to its slot first."""
    if not _is_plain(rows, dtype) or rows.nbytes != nbytes:
        return None
    return memoryview(rows.detach().view(-1).view(torch.uint8).numpy())


def _rows(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    if not present:
        return None
    return present[0] if len(present) == 1 else torch.cat(present)
