"""Endpoints of both sides, driven in turn by one thread."""

import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import torch

from step3.wire import Answer, AttentionEndpoint, Event, FFNEndpoint, Format, Group, Shapes, Timing

SECRET = b"the secret of the tests."
SHAPES = Shapes(hidden=192, max_tokens=16, layers=4, experts=8, top_k=2, slots=3)
PATIENT = Timing(heartbeat=0.05, silence=30.0, handshake=30.0)
"""For tests that are not about time, so that a slow machine changes nothing."""

_PATIENCE = 60.0
_names = itertools.count()


def address(transport: str) -> str:
    """Where to listen, free in every process of the machine."""
    return "tcp://127.0.0.1:0" if transport == "tcp" else f"shm://test-{os.getpid()}-{next(_names)}"


def activations(tokens: int, seed: int = 0) -> torch.Tensor:
    """`[tokens, hidden]` float32."""
    return torch.randn(tokens, SHAPES.hidden, generator=torch.Generator().manual_seed(seed))


def routing(tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert ids and weights, `[tokens, top_k]`."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(SHAPES.experts, (tokens, SHAPES.top_k), generator=generator)
    return ids, torch.rand(tokens, SHAPES.top_k, generator=generator)


class World:
    """Endpoints, what they told, and the calls that came."""

    def __init__(self, transport: str) -> None:
        self.transport = transport
        self.attention: list[AttentionEndpoint] = []
        self.ffn: list[FFNEndpoint] = []
        self.events: dict[Any, list[Event]] = {}
        self.groups: list[Group] = []
        self.serving = True

    def add_ffn(self, instance: int = 0, **options: Any) -> tuple[FFNEndpoint, str]:
        """An FFN endpoint and where it listens."""
        options = {"shapes": SHAPES, "secret": SECRET, "timing": PATIENT} | options
        endpoint = FFNEndpoint(instance, **options)
        self.ffn.append(endpoint)
        self.events[endpoint] = []
        return endpoint, endpoint.listen(address(self.transport))

    def add_attention(self, *addresses: str, instance: int = 0, **options: Any) -> AttentionEndpoint:
        """An attention endpoint, float32 unless told otherwise, and connected."""
        formats = {"activations": Format.FLOAT32, "partials": Format.FLOAT32}
        options = {"shapes": SHAPES, "secret": SECRET, "timing": PATIENT} | formats | options
        endpoint = AttentionEndpoint(instance, **options)
        self.attention.append(endpoint)
        self.events[endpoint] = []
        for one in addresses:
            endpoint.connect(one)
        return endpoint

    def pair(self, **options: Any) -> tuple[AttentionEndpoint, FFNEndpoint]:
        """One of each, connected."""
        ffn, where = self.add_ffn()
        attention = self.add_attention(where, **options)
        self.until(lambda: attention.peers and ffn.peers)
        return attention, ffn

    def turn(self) -> None:
        """Lets everyone take what has arrived."""
        for endpoint in self.attention:
            self.events[endpoint] += endpoint.wait(0.002)
        for endpoint in self.ffn:
            if not self.serving:
                endpoint.poll()
            else:
                group = endpoint.serve(0.002)
                if group is not None:
                    self.groups.append(group)
            self.events[endpoint] += endpoint.events()

    def until(self, happened: Callable[[], Any]) -> None:
        """Turns until something has happened."""
        limit = time.monotonic() + _PATIENCE
        while not happened():
            assert time.monotonic() < limit, f"it did not happen; so far: {list(self.events.values())}"
            self.turn()

    def told(self, endpoint: Any, kind: type) -> list[Any]:
        """The events of a kind that an endpoint told so far."""
        return [event for event in self.events[endpoint] if isinstance(event, kind)]

    def answers(self, endpoint: AttentionEndpoint, count: int) -> list[Answer]:
        """The endpoint's first answers, once there are `count`."""
        self.until(lambda: len(self.told(endpoint, Answer)) >= count)
        return self.told(endpoint, Answer)

    def group(self, count: int = 1) -> Group:
        """The `count`-th group that came."""
        self.until(lambda: len(self.groups) >= count)
        return self.groups[count - 1]

    def close(self) -> None:
        """Ends all endpoints."""
        for endpoint in (*self.attention, *self.ffn):
            endpoint.close(patience=0.1)
