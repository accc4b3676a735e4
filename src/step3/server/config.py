"""How a server is set up, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from step3.errors import Step3Error
from step3.server.pictures import FetchLimits


class ServerError(Step3Error):
    """A server that cannot be set up so, or cannot start."""


@dataclass(frozen=True)
class ServerConfig:
    """Options of a server.

    Attributes:
        host, port: where it listens; port 0 takes any free one.
        api_keys: those that requests may bring; none means that anybody may ask.
        served_model_names: what clients may call the model; the first is what answers say.
        max_body_bytes: largest request, pictures as base64 included.
        max_json_depth: objects and arrays within each other in a request.
        max_n: answers of one request at most, prompts of a list multiplied.
        max_output_tokens: longest answer that may be asked for, None for what the context holds.
        max_pixels: largest width × height of a picture; read from its header, before it is decoded.
        max_waiting: answers that may wait beside the `max_num_seqs` that run; who asks for more is told
            to come back later.
        keep_alive_seconds: how long a stream may be silent before a comment shows that it lives.
        body_seconds: how long a request's body may take to arrive.
        request_seconds: how long an answer may take, waiting included.
        idle_seconds: how long a connection may be open without a request, or a request's head take to arrive.
        write_seconds: how long a client may leave an answer unread before it is taken for gone.
        drain_seconds: how long running requests may take to finish when the server is told to stop.
        allowed_origins: web pages from elsewhere that may ask, as browsers name them; none by default.
        fetch: which pictures are fetched by their URLs, and at what cost.
        engine: options of `step3.engine.config.EngineConfig`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    served_model_names: tuple[str, ...] = ("step3",)
    max_body_bytes: int = 64 << 20
    max_json_depth: int = 64
    max_n: int = 64
    max_output_tokens: int | None = None
    max_pixels: int = 40_000_000
    max_waiting: int = 256
    keep_alive_seconds: float = 15.0
    body_seconds: float = 60.0
    request_seconds: float = 3600.0
    idle_seconds: float = 30.0
    write_seconds: float = 60.0
    drain_seconds: float = 60.0
    allowed_origins: tuple[str, ...] = ()
    fetch: FetchLimits = field(default_factory=FetchLimits)
    engine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ServerError(f"port must be from 0 to 65535, found {self.port}")
        if not self.served_model_names or not all(self.served_model_names):
            raise ServerError("the model needs a name: give --served-model-name one that is not empty")
        if any(not key.strip() for key in self.api_keys):
            raise ServerError("an API key is empty, which everybody knows: give a longer one, or none")
        for name in ("max_body_bytes", "max_json_depth", "max_n", "max_pixels"):
            self._need_positive(name)
        for name in ("keep_alive_seconds", "body_seconds", "request_seconds", "idle_seconds"):
            self._need_positive(name)
        for name in ("write_seconds", "drain_seconds"):
            self._need_positive(name)
        if self.max_output_tokens is not None:
            self._need_positive("max_output_tokens")
        if self.max_waiting < 0:
            raise ServerError(f"max_waiting must be at least 0, found {self.max_waiting}")

    def _need_positive(self, name: str) -> None:
        if not getattr(self, name) > 0:
            raise ServerError(f"{name} must be over 0, found {getattr(self, name)}")
