"""Requests are seen through whatever becomes of instances, but for one that kills them."""

from collections.abc import Mapping
from typing import Any

from step3.cluster.dispatch import MOST_DEATHS, MOST_MOVES, SUSPECT_DEATHS, Answered, Dispatch, Ongoing
from step3.cluster.registry import Member, State


class Instances:
    """A dispatch, instances that come and go, and what was sent to whom."""

    def __init__(self) -> None:
        self.sent: list[tuple[Member, Mapping[str, Any]]] = []
        self.told: dict[int, list[Mapping[str, Any]]] = {}
        self.dispatch = Dispatch(lambda member, message: self.sent.append((member, message)), lambda _: None)
        self._epoch = 0

    def start(self) -> Member:
        self._epoch += 1
        member = Member("attention", self._epoch, 0, self._epoch, 0.0, "host", 1, State.READY)
        self.dispatch.take_in(member, 10_000)
        return member

    def submit(self, number: int) -> Ongoing:
        told = self.told.setdefault(number, [])
        request = Ongoing(number, {}, {}, 0, [], 10, [Answered()], told.append)
        self.dispatch.submit(request)
        return request

    def give_token(self, request: Ongoing, finish: str | None = None) -> None:
        assert request.member is not None
        answer = [0, "a", [1], None, finish, None]
        message = {"number": request.number, "attempt": request.attempt, "answers": [answer]}
        self.dispatch.take_output(request.member, message | {"finished": finish is not None})

    def failures(self, number: int) -> list[str]:
        return [one["message"] for one in self.told[number] if one.get("type") == "failed"]


def test_a_request_that_moves_takes_its_tokens_along() -> None:
    world = Instances()
    first, second = world.start(), world.start()
    request = world.submit(1)
    assert request.member is first
    world.give_token(request)
    world.dispatch.lose(first)
    member, message = world.sent[-1]
    assert member is second
    assert (message["tokens"], message["characters"]) == ([[1]], [1])


def test_a_request_that_kills_one_instance_after_the_other_fails_alone() -> None:
    world = Instances()
    poison = world.submit(1)
    innocents = []
    for number in range(MOST_DEATHS):
        member = world.start()
        assert poison.member is member
        innocents.append(world.submit(2 + number))
        for one in innocents:
            world.give_token(one)
        world.dispatch.lose(member)
    (message,) = world.failures(1)
    assert f"{MOST_DEATHS} instances died" in message
    last = world.start()
    assert all(one.member is last for one in innocents)
    assert not any(world.failures(one.number) for one in innocents)


def test_a_request_that_gives_tokens_may_move_often_but_not_for_ever() -> None:
    world = Instances()
    request = world.submit(1)
    for _ in range(MOST_MOVES):
        member = world.start()
        world.give_token(request)
        assert not world.failures(1)
        world.dispatch.lose(member)
    assert f"{MOST_MOVES} instances died" in world.failures(1)[0]


def test_suspects_are_tried_one_at_a_time_so_that_none_dies_for_another() -> None:
    world = Instances()
    one, other = world.submit(1), world.submit(2)
    for _ in range(SUSPECT_DEATHS):
        world.dispatch.lose(world.start())
    world.start()
    assert one.member is not None
    assert other.member is None
    assert world.dispatch.num_parked == 1
    world.give_token(one)
    assert other.member is one.member
    world.give_token(other, "stop")
    assert not world.failures(1) + world.failures(2)


def test_a_suspect_that_is_aborted_makes_way_for_the_next() -> None:
    world = Instances()
    one, other = world.submit(1), world.submit(2)
    for _ in range(SUSPECT_DEATHS):
        world.dispatch.lose(world.start())
    member = world.start()
    world.dispatch.abort(one.number)
    assert other.member is member
