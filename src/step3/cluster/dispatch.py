"""Requests and the attention instances that have them: each is seen through, whatever becomes of those."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from step3.cluster.registry import Member, State
from step3.cluster.router import Place, choose


@dataclass(eq=False)
class Answered:
    """How much of an answer is known here.

    Attributes:
        characters: of its text.
    """

    tokens: list[int] = field(default_factory=list)
    characters: int = 0
    is_finished: bool = False


@dataclass(eq=False)
class Ongoing:
    """A request until its end: enough to start it again anywhere.

    Attributes:
        prompt, params: packed.
        names: of its prompt's blocks, for the router.
        num_tokens: of its prompt.
        answers: what has come so far.
        deliver: takes each message about it, on the coordinator's thread.
        member: the instance that has it.
        attempt: how often it was given to an instance.
    """

    number: int
    prompt: Mapping[str, Any]
    params: Mapping[str, Any]
    priority: int
    names: Sequence[bytes]
    num_tokens: int
    answers: list[Answered]
    deliver: Callable[[Mapping[str, Any]], None]
    member: Member | None = None
    attempt: int = 0

    @property
    def held(self) -> int:
        """Tokens that it takes in a KV cache."""
        return self.num_tokens + sum(len(one.tokens) for one in self.answers)


class Dispatch:
    """Gives requests out, keeps what has come of them, and gives them out again when their instance dies.

    Attributes:
        moved: requests that went on elsewhere because their instance had died.
    """

    def __init__(
        self, send: Callable[[Member, Mapping[str, Any]], None], on_release: Callable[[Member], None]
    ) -> None:
        """
        Args:
            send: sends an instance a message, if it is still there.
            on_release: called when an instance has one request less.
        """
        self._send, self._on_release = send, on_release
        self._places: dict[Member, Place] = {}
        self._requests: dict[int, Ongoing] = {}
        self._parked: list[Ongoing] = []
        self.moved = 0

    @property
    def num_parked(self) -> int:
        """Requests that wait for an attention instance to be there."""
        return len(self._parked)

    def is_with(self, member: Member) -> bool:
        """Whether an instance has any request."""
        return any(one.member is member for one in self._requests.values())

    def take_in(self, member: Member, capacity: int) -> None:
        """An attention instance is ready, with a KV cache of `capacity` tokens."""
        self._places[member] = Place(capacity)
        parked, self._parked = self._parked, []
        for request in parked:
            self._give_out(request)

    def lose(self, member: Member) -> None:
        """An attention instance is gone: what it had goes on elsewhere."""
        self._places.pop(member, None)
        for request in [one for one in self._requests.values() if one.member is member]:
            request.member = None
            self.moved += 1
            self._give_out(request)

    def submit(self, request: Ongoing) -> None:
        """Takes a request on; it is seen through whatever becomes of the instances."""
        self._requests[request.number] = request
        self._give_out(request)

    def abort(self, number: int) -> None:
        """Forgets a request."""
        request = self._requests.pop(number, None)
        if request is None:
            return
        if request in self._parked:
            self._parked.remove(request)
        if request.member is not None:
            self._release(request)
            self._send(request.member, {"type": "abort", "number": number})

    def take_output(self, member: Member, message: Mapping[str, Any]) -> None:
        """What an instance has added to an answer; passed over if the request is no longer with it."""
        request = self._requests.get(message["number"])
        if request is None or request.member is not member or request.attempt != message["attempt"]:
            return
        fresh = []
        for packed in message["answers"]:
            index, text, tokens, _, finish_reason, _ = packed
            answer = request.answers[index]
            if answer.is_finished:
                # It ended before the request came here, and ends once more.
                continue
            answer.tokens.extend(tokens)
            answer.characters += len(text)
            answer.is_finished = finish_reason is not None
            self._places[member].held += len(tokens)
            fresh.append(packed)
        if message.get("finished"):
            self._finish(request)
        request.deliver({**message, "answers": fresh})

    def take_failure(self, member: Member, message: Mapping[str, Any]) -> None:
        """An instance says that a request cannot be answered."""
        request = self._requests.get(message["number"])
        if request is not None and request.member is member and request.attempt == message["attempt"]:
            self._finish(request)
            request.deliver(message)

    def _give_out(self, request: Ongoing) -> None:
        """Gives a request to the instance that suits it best, to go on from where it is."""
        places = {
            member.instance: place for member, place in self._places.items() if member.state is State.READY
        }
        tokens = request.num_tokens + sum(len(one.tokens) for one in request.answers)
        instance = choose(places, request.names, tokens)
        if instance is None:
            self._parked.append(request)
            return
        member = next(one for one in self._places if one.instance == instance and one.state is State.READY)
        place = self._places[member]
        place.remember(request.names)
        place.held += request.held
        request.member, request.attempt = member, request.attempt + 1
        has_begun = any(one.tokens for one in request.answers)
        self._send(
            member,
            {
                "type": "generate",
                "number": request.number,
                "attempt": request.attempt,
                "prompt": request.prompt,
                "params": request.params,
                "priority": request.priority,
                "tokens": [one.tokens for one in request.answers] if has_begun else [],
                "characters": [one.characters for one in request.answers],
            },
        )

    def _finish(self, request: Ongoing) -> None:
        del self._requests[request.number]
        self._release(request)

    def _release(self, request: Ongoing) -> None:
        """Its instance has room again."""
        assert request.member is not None
        place = self._places.get(request.member)
        if place is not None:
            place.held -= request.held
        self._on_release(request.member)
