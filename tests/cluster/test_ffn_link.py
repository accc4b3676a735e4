"""What an attention instance does about calls that FFN instances do not answer."""

import pytest
import torch

from step3.cluster.ffn_link import MOST_DEATHS, FFNMember, WireLink
from step3.engine.config import EngineError
from step3.engine.timeline import Timeline
from step3.ffn import FFNCall
from step3.wire import Event, Gone, Joined, Peer, Role, Ticket


class DyingPeers:
    """An attention endpoint whose every peer dies of the first call that it gets."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.pushed = 0

    def connect(self, address: str) -> None:
        self.events.append(Joined(Peer(Role.FFN, 0, 7, address, 4)))

    def wait(self, timeout: float) -> list[Event]:
        events, self.events = self.events, []
        return events

    def slots_free(self, peer: Peer) -> int:
        return 4

    def push(self, peers: list[Peer], lane: int, layer: int, *rest: object) -> list[Ticket]:
        (peer,) = peers
        ticket = Ticket(peer, lane, layer, self.pushed, 0, 1, 0)
        self.pushed += 1
        self.events.append(Gone(peer, "closed", False, (ticket,)))
        return [ticket]

    def wake(self) -> None: ...

    def disconnect(self, peer: Peer) -> None: ...


def test_a_call_that_kills_ffn_instances_is_not_sent_for_ever() -> None:
    endpoint = DyingPeers()
    link = WireLink(endpoint, 1, Timeline(1))  # type: ignore[arg-type]
    link.use([FFNMember(0, 0, 7, "shm://ffn")])
    link.wait(0.0)
    link.send(0, FFNCall(3, torch.zeros(1, 8)))
    # Each loss is followed by the next connection.
    for _ in range(2 * MOST_DEATHS - 2):
        link.wait(0.0)
    with pytest.raises(EngineError, match=f"{MOST_DEATHS} FFN instances were lost with call .*layer 3"):
        link.wait(0.0)
    assert endpoint.pushed == MOST_DEATHS
