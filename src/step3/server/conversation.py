"""Messages from clients as the engine's process takes them: pictures as bytes, and nothing to be fetched."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from step3.server.body import parse_json
from step3.server.errors import RequestFault
from step3.server.protocol import Message

MAX_ARGUMENTS_DEPTH = 64


def conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages with their pictures decoded from base64.

    Raises:
        RequestFault: a picture is not a `data:` URL of base64, or a tool call's arguments are no JSON object.
    """
    return [_message(message, turn) for turn, message in enumerate(messages)]


def picture_bytes(url: str, param: str) -> bytes:
    """The file in a `data:image/png;base64,...` or `data:image;base64,...` URL.

    Raises:
        RequestFault: the URL is of another kind, or its base64 is broken.
    """
    if not url[:5].lower() == "data:":
        raise RequestFault(
            400,
            f"{param}: this server fetches no pictures; send them as data:image/png;base64,...",
            param,
        )
    header, comma, text = url.partition(",")
    kind, *rest = header[5:].lower().split(";")
    if not comma or rest[-1:] != ["base64"] or kind.partition("/")[0] != "image":
        raise RequestFault(400, f"{param}: a picture must look like data:image/png;base64,...", param)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestFault(400, f"{param}: the picture's base64 is broken or cut off", param) from None


def _message(message: Message, turn: int) -> dict[str, Any]:
    # Templates know the name that came before "developer".
    given: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    if isinstance(message.content, list):
        given["content"] = [
            {"type": "text", "text": part.text}
            if part.type == "text"
            else {
                "type": "image",
                "image": picture_bytes(part.url, f"messages[{turn}].content[{place}].image_url"),
            }
            for place, part in enumerate(message.content)
        ]
    else:
        given["content"] = message.content or ""
    for name in ("name", "reasoning_content", "reasoning", "tool_call_id"):
        value = getattr(message, name)
        if value is not None:
            given[name] = value
    if message.tool_calls:
        given["tool_calls"] = [
            {
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": _arguments(call.function.arguments, turn),
                },
            }
            for call in message.tool_calls
        ]
    return given


def _arguments(text: str, turn: int) -> dict[str, Any]:
    param = f"messages[{turn}].tool_calls"
    try:
        value = parse_json(text.encode() or b"{}", MAX_ARGUMENTS_DEPTH)
    except RequestFault as fault:
        message = str(fault.detail).replace("the body", "a call's arguments")
        raise RequestFault(400, f"{param}: {message}", param) from None
    if not isinstance(value, dict):
        raise RequestFault(400, f"{param}: the arguments must be a JSON object", param)
    return value
