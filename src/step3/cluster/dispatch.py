"""Requests and the attention instances that have them: each is seen through, whatever becomes of those."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from step3.cluster.registry import Member, State
from step3.cluster.router import Place, choose

log = logging.getLogger("step3.cluster")

SUSPECT_DEATHS, MOST_DEATHS = 2, 4
"""Instances that died, one after the other, before a request gave a token. After so many it is suspected of
having killed them, and goes on apart from other suspects so that none dies for another; then it fails."""

MOST_MOVES = 64
"""Instances that may die with a request at all."""


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
        moves: instances that died with it.
        deaths: those of them that died since it last gave a token.
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
    moves: int = 0
    deaths: int = 0

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what kills instances."""
        return self.deaths >= SUSPECT_DEATHS

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
        self._on_trial: dict[Member, Ongoing] = {}
        self.moved = 0

    @property
    def num_parked(self) -> int:
        """Requests that wait for an attention instance, or, as suspects, for one that has no other."""
        return len(self._parked)

    def is_with(self, member: Member) -> bool:
        """Whether an instance has any request."""
        return any(one.member is member for one in self._requests.values())

    def take_in(self, member: Member, capacity: int) -> None:
        """An attention instance is ready, with a KV cache of `capacity` tokens."""
        self._places[member] = Place(capacity)
        self._give_out_parked()

    def lose(self, member: Member) -> None:
        """An attention instance is gone: what it had goes on elsewhere."""
        self._places.pop(member, None)
        self._on_trial.pop(member, None)
        for request in [one for one in self._requests.values() if one.member is member]:
            request.member = None
            self.moved += 1
            request.moves += 1
            request.deaths += 1
            if request.deaths >= MOST_DEATHS or request.moves >= MOST_MOVES:
                self._give_up(request)
            else:
                self._give_out(request)
        self._give_out_parked()

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
            if tokens:
                request.deaths = 0
        if request.deaths == 0:
            self._end_trial(request)
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
            member.instance: place
            for member, place in self._places.items()
            if member.state is State.READY and not (request.is_suspect and member in self._on_trial)
        }
        instance = choose(places, request.names, request.held)
        if instance is None:
            self._parked.append(request)
            return
        member = next(one for one in self._places if one.instance == instance and one.state is State.READY)
        place = self._places[member]
        place.remember(request.names)
        place.held += request.held
        request.member, request.attempt = member, request.attempt + 1
        if request.is_suspect:
            self._on_trial[member] = request
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

    def _give_out_parked(self) -> None:
        parked, self._parked = self._parked, []
        for request in parked:
            self._give_out(request)

    def _give_up(self, request: Ongoing) -> None:
        """Fails a request alone, before it kills all instances for ever."""
        del self._requests[request.number]
        reason = f"{request.deaths} instances died one after the other before this request gave them a token"
        if request.deaths < MOST_DEATHS:
            reason = f"{request.moves} instances died while they had this request"
        log.error("request %d is given up: %s", request.number, reason)
        message = f"{reason}: it is not tried again; the server's log says how they ended"
        request.deliver({"type": "failed", "number": request.number, "message": message})

    def _end_trial(self, request: Ongoing) -> None:
        """A suspect has cleared itself, or has gone: the next one has its turn."""
        if request.member is not None and self._on_trial.get(request.member) is request:
            del self._on_trial[request.member]
            self._give_out_parked()

    def _finish(self, request: Ongoing) -> None:
        del self._requests[request.number]
        self._release(request)

    def _release(self, request: Ongoing) -> None:
        """Its instance has room again."""
        assert request.member is not None
        self._end_trial(request)
        place = self._places.get(request.member)
        if place is not None:
            place.held -= request.held
        self._on_release(request.member)
