"""The HTTP application: which path does what."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from importlib import resources
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import step3
from step3.server.answering import Answering
from step3.server.body import BoundedRoute
from step3.server.chat import ChatAnswer, chat_question
from step3.server.cluster import add_cluster
from step3.server.completions import CompletionAnswer
from step3.server.config import ServerConfig
from step3.server.engine_client import EngineFailure
from step3.server.errors import RequestFault, error_response, fault_of_validation
from step3.server.front_door import FrontDoor, Gate
from step3.server.messages import PING, MessagesAnswer, messages_question
from step3.server.messages_protocol import CountTokensRequest, MessagesRequest
from step3.server.metrics import CONTENT_TYPE, exposition
from step3.server.openapi import describe
from step3.server.page import add_pages
from step3.server.pictures import PictureSource
from step3.server.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from step3.server.responses import ResponsesAnswer, responses_question
from step3.server.responses_protocol import ResponsesRequest
from step3.server.streams import KEEP_ALIVE, ClientGone, EventStream, unless_gone
from step3.server.supervisor import Supervisor

CLIENT_CLOSED_REQUEST = 499
"""nginx's name for an answer that nobody waits for any more."""

_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
}


class Answer(Protocol):
    """What answers a request, in one protocol or another."""

    async def whole(self) -> dict[str, Any]:
        """The finished answer."""

    def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events."""


def make_app(config: ServerConfig, supervisor: Supervisor, pictures: PictureSource | None = None) -> ASGIApp:
    """The application, behind its front door.

    Args:
        pictures: where pictures come from; as `config.fetch` says where left out.
    """
    # The interactive pages of FastAPI load scripts from elsewhere; /docs is our own.
    app = FastAPI(title="Step3", version=step3.__version__, docs_url=None, redoc_url=None)
    app.router.route_class = BoundedRoute
    app.state.config = config
    most = supervisor.info["max_num_seqs"] + config.max_waiting
    answering = Answering(config, supervisor, Gate(most), pictures or PictureSource(config.fetch))
    _add_fault_handlers(app)
    _add_completions(app, answering)
    _add_messages(app, answering)
    _add_tokens(app, answering)
    _add_models(app, answering)
    add_cluster(app, answering)
    responses = Counter[tuple[str, int]]()
    _add_state(app, supervisor, responses)
    describe(app)
    add_pages(app)
    paths = frozenset(route.path for route in app.routes if isinstance(route, APIRoute))
    # Beside those that are answered, some may be on their way in or out.
    door = FrontDoor(app, config.api_keys, paths, 2 * most, responses)
    if not config.allowed_origins:
        return door
    origins = list(config.allowed_origins)
    return CORSMiddleware(door, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])


async def _respond(
    answering: Answering, request: Request, is_stream: bool | None, answer: Answer, ping: bytes = KEEP_ALIVE
) -> Response:
    if not is_stream:
        return JSONResponse(await unless_gone(request, answer.whole()))
    return await EventStream.open(request, answer.stream(), answering.config.keep_alive_seconds, ping)


def _add_completions(app: FastAPI, answering: Answering) -> None:
    @app.post("/v1/chat/completions", summary="Answer a conversation (OpenAI)")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        messages = await answering.conversation(body.messages)
        answer = ChatAnswer(answering, body, chat_question(answering, body, messages))
        return await _respond(answering, request, body.stream, answer)

    @app.post("/v1/completions", summary="Continue a text (OpenAI)")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await _respond(answering, request, body.stream, CompletionAnswer(answering, body))

    @app.post("/v1/responses", summary="Answer a conversation, keeping nothing of it (OpenAI)")
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        messages = await answering.conversation(body.turns)
        answer = ResponsesAnswer(answering, body, responses_question(answering, body, messages))
        return await _respond(answering, request, body.stream, answer)


def _add_messages(app: FastAPI, answering: Answering) -> None:
    @app.post("/v1/messages", summary="Answer a conversation (Anthropic)")
    async def messages(body: MessagesRequest, request: Request) -> Response:
        turns = await answering.conversation(body.turns)
        answer = MessagesAnswer(answering, body, messages_question(answering, body, turns))
        return await _respond(answering, request, body.stream, answer, PING)

    @app.post("/v1/messages/count_tokens", summary="The length of a conversation's prompt (Anthropic)")
    async def count_tokens(body: CountTokensRequest) -> dict[str, int]:
        answering.model_name(body.model)
        asked = {
            "messages": await answering.conversation(body.turns),
            "tools": body.shown_tools,
            "template": {**body.template, **({} if body.thinks else {"enable_thinking": False})},
        }
        return {"input_tokens": await answering.ask("count_tokens", asked)}


def _add_tokens(app: FastAPI, answering: Answering) -> None:
    @app.post("/tokenize", summary="The token ids of a prompt or a conversation")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        answering.model_name(body.model)
        template = {"add_generation_prompt": body.add_generation_prompt}
        template.update((str(name), value) for name, value in (body.chat_template_kwargs or {}).items())
        asked = {
            "prompt": body.prompt,
            "add_special_tokens": body.add_special_tokens,
            "messages": None if body.messages is None else await answering.conversation(body.messages),
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
    reference = resources.files("step3.server").joinpath("reference.html").read_text(encoding="utf-8")

    @app.get("/docs", summary="This description, for people", response_class=HTMLResponse)
    async def docs() -> Response:
        return HTMLResponse(reference, headers=_PAGE_HEADERS)

    @app.get("/health", summary="200 when requests are answered, 503 when not")
    async def health() -> Response:
        return Response(status_code=200 if supervisor.is_ready else 503)

    @app.get("/version", summary="The version of step3")
    async def version() -> dict[str, str]:
        return {"version": step3.__version__}

    @app.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse)
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
        return error_response(fault, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def refuse_fields(request: Request, error: RequestValidationError) -> Response:
        return error_response(fault_of_validation(error), request.url.path)

    @app.exception_handler(ClientGone)
    async def drop(request: Request, gone: ClientGone) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        return error_response(RequestFault(500, "the server failed to answer this request"), request.url.path)
