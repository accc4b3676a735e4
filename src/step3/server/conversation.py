"""Messages from clients as the engine's process takes them: pictures as bytes, and nothing to be fetched."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from step3.server.body import parse_json
from step3.server.errors import RequestFault
from step3.server.pictures import PictureSource
from step3.server.protocol import Message

MAX_ARGUMENTS_DEPTH = 64


async def conversation(
    messages: Sequence[Message], pictures: PictureSource, max_pictures: int, max_bytes: int
) -> list[dict[str, Any]]:
    """The messages with the files of their pictures, which are read beside each other.

    Args:
        max_pictures, max_bytes: of all pictures together; too many are not fetched.

    Raises:
        RequestFault: a picture cannot be had, there are too many, or a call's arguments are no JSON object.
    """
    given = [_message(message, turn) for turn, message in enumerate(messages)]
    parts = [part for message in given for part in message["content"] if isinstance(part, dict)]
    waiting = [part for part in parts if part["type"] == "image"]
    if len(waiting) > max_pictures:
        raise RequestFault(
            400, f"the request has {len(waiting)} pictures, {max_pictures} are allowed: send fewer"
        )
    left = max_bytes

    async def read(part: dict[str, Any]) -> None:
        nonlocal left
        part["image"] = await pictures.read(*part["image"])
        left -= len(part["image"])
        if left < 0:
            raise RequestFault(413, f"the pictures are over {max_bytes:,} bytes together: send smaller ones")

    await asyncio.gather(*map(read, waiting))
    return given


def _message(message: Message, turn: int) -> dict[str, Any]:
    # Templates know the name that came before "developer".
    given: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    if isinstance(message.content, list):
        given["content"] = [
            {"type": "text", "text": part.text}
            if part.type == "text"
            else {"type": "image", "image": (part.url, f"messages[{turn}].content[{place}].image_url")}
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
