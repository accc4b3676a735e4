"""What the planner's page asks for: deployments that serve a demand, searched in a process of their own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import FastAPI, Request
from pydantic import Field

from step3.server.errors import RequestFault
from step3.server.protocol import Strict
from step3.server.streams import unless_gone

LONGEST_SEARCH_SECONDS = 30.0
MOST_WAITING = 32


class PlannerRequest(Strict):
    """`POST /planner/deployments`."""

    model: Annotated[str, Field(max_length=80)]
    context: Annotated[int, Field(ge=1, le=1 << 24)]
    tpot_ms: Annotated[float, Field(ge=1, le=10_000, allow_inf_nan=False)]
    cards: Annotated[list[Annotated[str, Field(max_length=60)]], Field(min_length=1, max_length=4)]
    details: bool = False


class PlannerProcess:
    """Starts `step3.server.planner_process` when it is first asked, and asks it one thing after the other."""

    def __init__(self, longest_seconds: float = LONGEST_SEARCH_SECONDS) -> None:
        self._longest_seconds = longest_seconds
        self._process: subprocess.Popen[str] | None = None
        self._thread = ThreadPoolExecutor(1, "planner")
        self._waiting = 0

    async def ask(self, question: Mapping[str, Any] | None) -> dict[str, Any]:
        """The answer to a question; one that is no longer waited for is not begun.

        Raises:
            RequestFault: 400, what is asked for cannot be; 429, too many wait; 503, the search failed or took
                too long.
        """
        if self._waiting >= MOST_WAITING:
            raise RequestFault(429, "the planner has enough to do: try again later")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._thread, self._round_trip, json.dumps(question))
        finally:
            self._waiting -= 1
        if "error" in found:
            raise RequestFault(400, found["error"])
        return found

    def _round_trip(self, line: str) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        limit = threading.Timer(self._longest_seconds, process.kill)
        limit.start()
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = ""
        finally:
            limit.cancel()
        if not answer:
            self._end(process)
            raise RequestFault(503, "the planner's search failed or took too long: ask for fewer cards")
        return json.loads(answer)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "step3.server.planner_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                # Ctrl-C is for the server; this process ends with its input.
                start_new_session=True,
            )
        return self._process

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()
        self._process = None


def add_planner(app: FastAPI) -> None:
    """The two things that the page asks for."""
    planner = PlannerProcess()

    @app.get("/planner/catalogue", summary="The models and cards that the planner knows")
    async def catalogue(request: Request) -> dict[str, Any]:
        return await unless_gone(request, planner.ask(None))

    @app.post("/planner/deployments", summary="Deployments that are the cheapest at some prices")
    async def deployments(body: PlannerRequest, request: Request) -> dict[str, Any]:
        return await unless_gone(request, planner.ask(body.model_dump()))
