"""Where a chat's answers come from: a server, or a model in this process."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import mimetypes
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from step3.errors import Step3Error

_MOST_EVENT_BYTES = 1 << 24
_PATIENCE_SECONDS = 600


class ChatError(Step3Error):
    """A chat that cannot begin, or an answer that failed."""


@dataclass(frozen=True)
class Picture:
    """A picture that goes with a question."""

    path: Path
    content: bytes

    @property
    def data_url(self) -> str:
        """As servers take it."""
        kind = mimetypes.guess_type(self.path.name)[0] or "image/png"
        return f"data:{kind};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Turn:
    """What the user, the model or the system said."""

    role: str
    text: str
    pictures: tuple[Picture, ...] = ()

    def message(self) -> dict[str, Any]:
        """As OpenAI's API has it."""
        if not self.pictures:
            return {"role": self.role, "content": self.text}
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": picture.data_url}} for picture in self.pictures
        ]
        return {"role": self.role, "content": [*parts, {"type": "text", "text": self.text}]}


@dataclass(frozen=True)
class Delta:
    """What a piece of an answer adds."""

    reasoning: str = ""
    content: str = ""
    tokens: int | None = None
    """Tokens of the answer so far, where they are known."""
    finish_reason: str | None = None


class AnswerSource(Protocol):
    """Answers conversations."""

    name: str

    def answer(self, turns: Sequence[Turn]) -> Iterator[Delta]:
        """The pieces of an answer as they come; closing the iterator gives the answer up.

        Raises:
            Step3Error: it failed, in words for the user.
        """
        ...

    def close(self) -> None:
        """Frees what answers."""
        ...


@dataclass
class ServerAnswers:
    """Answers of a server that speaks OpenAI's API.

    Args:
        url: where it is, with or without `/v1`.
        params: of each request.

    Raises:
        ChatError: it cannot be reached, refuses the key, or has no model.
    """

    url: str
    api_key: str | None
    params: Mapping[str, Any]
    name: str = ""
    _base: str = field(init=False)

    def __post_init__(self) -> None:
        scheme = urllib.parse.urlsplit(self.url).scheme
        if scheme not in ("http", "https"):
            raise ChatError(f"--url must look like http://127.0.0.1:8000, found {self.url!r}")
        self._base = self.url.rstrip("/").removesuffix("/v1")
        if not self.name:
            with self._open("/v1/models", None) as response:
                self.name = _first_model(response.read(_MOST_EVENT_BYTES), self.url)

    def close(self) -> None:
        """Nothing stays open between answers."""

    def answer(self, turns: Sequence[Turn]) -> Iterator[Delta]:
        body = {
            **self.params,
            "model": self.name,
            "messages": [turn.message() for turn in turns],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        with self._open("/v1/chat/completions", body) as response:
            try:
                yield from map(_delta_of, _events(response))
            except (http.client.HTTPException, OSError) as error:
                raise ChatError(f"the connection broke off in the middle of the answer: {error}") from None

    def _open(self, path: str, body: Mapping[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, headers)
        try:
            return urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS)
        except urllib.error.HTTPError as error:
            raise ChatError(_told(error)) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise ChatError(f"{self.url} cannot be reached: {reason}") from None


def _first_model(listed: bytes, url: str) -> str:
    try:
        models = json.loads(listed)["data"]
        return str(models[0]["id"])
    except (ValueError, KeyError, TypeError):
        raise ChatError(f"{url} does not speak OpenAI's API: /v1/models names no models") from None
    except IndexError:
        raise ChatError(f"{url} serves no model") from None


def _told(error: urllib.error.HTTPError) -> str:
    """What a server's error says."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        message = json.loads(error.read(1 << 20))["error"]["message"]
        return f"the server refused ({error.code}): {message}"
    return f"the server answered {error.code} {error.reason}"


def _events(response: Any) -> Iterator[dict[str, Any]]:
    while line := response.readline(_MOST_EVENT_BYTES):
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:"):
            continue
        if data == b"[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError:
            raise ChatError("the server sent what is no JSON in the middle of the answer") from None
        if "error" in event:
            raise ChatError(f"the answer failed: {event['error'].get('message', event['error'])}")
        yield event
    raise ChatError("the connection ended before the answer did")


def _delta_of(chunk: Mapping[str, Any]) -> Delta:
    choice = chunk["choices"][0] if chunk.get("choices") else {}
    delta = choice.get("delta") or {}
    return Delta(
        reasoning=delta.get("reasoning_content") or delta.get("reasoning") or "",
        content=delta.get("content") or "",
        tokens=(chunk.get("usage") or {}).get("completion_tokens"),
        finish_reason=choice.get("finish_reason"),
    )


class ModelAnswers:
    """Answers of a model in this process."""

    def __init__(self, model: str | None, options: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        """Loads the model.

        Args:
            model: a checkpoint's folder or name; None for the bundled one.
            options: of `step3.engine.config.EngineConfig`.
            params: of `step3.engine.sampling.params.SamplingParams`.

        Raises:
            Step3Error: the model cannot be loaded.
        """
        from step3.model.image_processing_step3 import Step3ImageProcessor
        from step3.server.engine_service import EngineService

        self.name = model or "the bundled Step3"
        self._params = params
        # An event loop for the engine, which runs only while an answer is waited for.
        self._loop = asyncio.new_event_loop()
        pixels = Step3ImageProcessor().max_pixels
        self._service = EngineService({"model": model, **options}, max_waiting=1, max_pixels=pixels)

    def close(self) -> None:
        """Stops the engine and frees its memory."""
        self._service.shutdown()
        self._loop.close()

    def answer(self, turns: Sequence[Turn]) -> Iterator[Delta]:
        from step3.server.reasoning import ReasoningStream

        asked = {
            "messages": [_engine_message(turn) for turn in turns],
            "tools": None,
            "template": {},
            "tool_choice": None,
            "parallel": True,
            "thinking_budget": None,
            "params": {"max_tokens": None, "skip_special_tokens": False, **self._params},
            "stream": True,
            "priority": 0,
        }
        items = self._service.chat(asked)
        reader, tokens = ReasoningStream(), 0
        try:
            while (item := self._wait(items)) is not None:
                if isinstance(item, dict):
                    reader = ReasoningStream(item["in_reasoning"])
                    continue
                for _, text, count, _, reason, _, _ in item[2]:
                    tokens += count
                    parts = [*reader.push(text), *(reader.finish() if reason else [])]
                    reasoning = "".join(part.reasoning or "" for part in parts)
                    content = "".join(part.content or "" for part in parts)
                    yield Delta(reasoning, content, tokens, reason)
        finally:
            self._loop.run_until_complete(items.aclose())

    def _wait(self, items: Any) -> Any:
        """The next item, None after the last; Ctrl-C is passed on once nothing waits any more."""
        task = self._loop.create_task(items.__anext__())
        try:
            return self._loop.run_until_complete(task)
        except StopAsyncIteration:
            return None
        except KeyboardInterrupt:
            task.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                self._loop.run_until_complete(task)
            raise


def _engine_message(turn: Turn) -> dict[str, Any]:
    if not turn.pictures:
        return {"role": turn.role, "content": turn.text}
    pictures = [{"type": "image", "image": picture.content} for picture in turn.pictures]
    return {"role": turn.role, "content": [*pictures, {"type": "text", "text": turn.text}]}
