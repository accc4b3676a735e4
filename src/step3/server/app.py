"""The HTTP application: which path does what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

import step3
from step3.server.answering import Answering
from step3.server.body import BoundedRoute
from step3.server.chat import ChatAnswer
from step3.server.cluster import add_cluster
from step3.server.completions import CompletionAnswer
from step3.server.config import ServerConfig
from step3.server.conversation import conversation
from step3.server.engine_client import EngineFailure
from step3.server.errors import RequestFault, error_response, fault_of_validation
from step3.server.front_door import FrontDoor, Gate
from step3.server.metrics import CONTENT_TYPE, exposition
from step3.server.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from step3.server.streams import ClientGone, EventStream, unless_gone
from step3.server.supervisor import Supervisor

CLIENT_CLOSED_REQUEST = 499
"""nginx's name for an answer that nobody waits for any more."""


def make_app(config: ServerConfig, supervisor: Supervisor) -> FrontDoor:
    """The application, behind its front door."""
    # The interactive pages of FastAPI load scripts from elsewhere; the schema is at /openapi.json.
    app = FastAPI(title="Step3", version=step3.__version__, docs_url=None, redoc_url=None)
    app.router.route_class = BoundedRoute
    app.state.config = config
    most = supervisor.info["max_num_seqs"] + config.max_waiting
    answering = Answering(config, supervisor, Gate(most))
    _add_fault_handlers(app)
    _add_answers(app, answering)
    _add_tokens(app, answering)
    _add_models(app, answering)
    add_cluster(app, answering)
    responses = Counter[tuple[str, int]]()
    _add_state(app, supervisor, responses)
    paths = frozenset(route.path for route in app.routes if isinstance(route, APIRoute))
    # Beside those that are answered, some may be on their way in or out.
    return FrontDoor(app, config.api_keys, paths, 2 * most, responses)


def _add_answers(app: FastAPI, answering: Answering) -> None:
    config = answering.config

    async def respond(
        request: Request, is_stream: bool | None, answer: ChatAnswer | CompletionAnswer
    ) -> Response:
        if not is_stream:
            return JSONResponse(await unless_gone(request, answer.whole()))
        keep_alive, patience = config.keep_alive_seconds, config.write_seconds
        return await EventStream.open(request, answer.stream(), keep_alive, patience)

    @app.post("/v1/chat/completions", summary="Answer a conversation")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        answer = ChatAnswer(answering, body)
        return await respond(request, body.stream, answer)

    @app.post("/v1/completions", summary="Continue a text")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        answer = CompletionAnswer(answering, body)
        return await respond(request, body.stream, answer)


def _add_tokens(app: FastAPI, answering: Answering) -> None:
    @app.post("/tokenize", summary="The token ids of a prompt or a conversation")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        answering.model_name(body.model)
        template = {"add_generation_prompt": body.add_generation_prompt}
        template.update((str(name), value) for name, value in (body.chat_template_kwargs or {}).items())
        asked = {
            "prompt": body.prompt,
            "add_special_tokens": body.add_special_tokens,
            "messages": None if body.messages is None else conversation(body.messages),
            "tools": [tool.model_dump(exclude_none=True) for tool in body.tools or ()] or None,
            "template": template,
            "with_strings": body.return_token_strs,
        }
        found = await answering.ask("tokenize", asked)
        return {
            "count": len(found["tokens"]),
            "max_model_len": answering.supervisor.info["max_model_len"],
            "tokens": found["tokens"],
            "token_strs": found["strings"],
        }

    @app.post("/detokenize", summary="The text of token ids")
    async def detokenize(body: DetokenizeRequest) -> dict[str, str]:
        answering.model_name(body.model)
        return {"prompt": await answering.ask("detokenize", body.tokens)}


def _add_models(app: FastAPI, answering: Answering) -> None:
    created = answering.now()

    def model(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "step3",
            "root": name,
            "parent": None,
            "max_model_len": answering.supervisor.info["max_model_len"],
        }

    @app.get("/v1/models", summary="The names that the model is served under")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model(name) for name in answering.config.served_model_names]}

    @app.get("/v1/models/{name:path}", summary="One of them")
    async def one_model(name: str) -> dict[str, Any]:
        return model(answering.model_name(name))


def _add_state(app: FastAPI, supervisor: Supervisor, responses: Mapping[tuple[str, int], int]) -> None:
    @app.get("/health", summary="200 when requests are answered, 503 when not")
    async def health() -> Response:
        return Response(status_code=200 if supervisor.is_ready else 503)

    @app.get("/version", summary="The version of step3")
    async def version() -> dict[str, str]:
        return {"version": step3.__version__}

    @app.get("/metrics", summary="Counters for Prometheus")
    async def metrics() -> Response:
        statistics = None
        # Where there is no engine, the page says so.
        with suppress(EngineFailure):
            statistics = await supervisor.ask("statistics", None)
        text = exposition(statistics, responses, supervisor.restarts)
        return PlainTextResponse(text, media_type=CONTENT_TYPE)


def _add_fault_handlers(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def refuse(request: Request, fault: HTTPException) -> Response:
        return error_response(fault)

    @app.exception_handler(RequestValidationError)
    async def refuse_fields(request: Request, error: RequestValidationError) -> Response:
        return error_response(fault_of_validation(error))

    @app.exception_handler(ClientGone)
    async def drop(request: Request, gone: ClientGone) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        return error_response(RequestFault(500, "the server failed to answer this request"))
