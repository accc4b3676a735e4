"""Chat messages made fit for templates: one shape for every part, and no text that passes for a picture."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from step3.errors import Step3Error
from step3.model.pictures import Picture, decode_base64

IMAGE_TOKEN = "<im_patch>"
_SOURCES = ("image", "url", "path", "base64")

Message = Mapping[str, Any]


class PromptError(Step3Error):
    """A prompt that is not what it should be, or whose text and pictures do not fit together."""


def normalise(message: Message, turn: int) -> dict[str, Any]:
    """A copy of a message as templates expect it.

    Values of None are left out, pictures are parts of type `image`, a call's arguments are an object.

    Args:
        turn: its place in the conversation, for errors.

    Raises:
        PromptError: the message is malformed, or a text in it contains `<im_patch>`.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise PromptError(
            f"message {turn} must be an object with a role and content, found {_shown(message)}"
        )
    normal = {name: value for name, value in message.items() if value is not None}
    if not isinstance(normal.get("content", ""), str | list | tuple):
        raise PromptError(
            f"message {turn}: its content must be text or a list of parts, found {_shown(normal['content'])}"
        )
    if not isinstance(normal.get("tool_calls", ()), list | tuple):
        raise PromptError(
            f"message {turn}: its tool_calls must be a list, found {_shown(normal['tool_calls'])}"
        )
    if isinstance(normal.get("content"), list | tuple):
        normal["content"] = [_normalise_part(part, turn) for part in normal["content"]]
    if "tool_calls" in normal:
        normal["tool_calls"] = [_normalise_call(call, turn) for call in normal["tool_calls"]]
    forbid_image_token(normal, f"message {turn} ({message['role']})")
    return normal


def _normalise_part(part: Any, turn: int) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise PromptError(f"message {turn}: a part of its content must be an object, found {_shown(part)}")
    kind = part.get("type")
    if kind == "image_url":
        source = part.get("image_url")
        return {"type": "image", "image": source.get("url") if isinstance(source, Mapping) else source}
    if kind == "image_pil":
        return {"type": "image", "image": part.get("image_pil")}
    if kind == "image" or (kind == "text" and isinstance(part.get("text"), str)):
        return dict(part)
    raise PromptError(
        f"message {turn}: a part of its content must be of type text or image, found {_shown(part)}"
    )


def _normalise_call(call: Any, turn: int) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise PromptError(f"message {turn}: a tool call must name its function, found {_shown(call)}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise PromptError(
                f"message {turn}: the arguments of {function['name']} are not valid JSON"
            ) from None
    if not isinstance(arguments, Mapping):
        raise PromptError(f"message {turn}: the arguments of {function['name']} must be an object")
    function = {**function, "arguments": dict(arguments)}
    return {**call, "function": function} if "function" in call else function


def forbid_image_token(value: Any, where: str) -> None:
    """Refuses a typed `<im_patch>`: it would take a picture's place, and shift every picture behind it.

    Args:
        value: text, or anything made of lists and mappings; the sources of pictures are not looked at.
        where: what it belongs to, for the error.

    Raises:
        PromptError: there is one.
    """
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            sources = _SOURCES if part.get("type") == "image" else ()
            waiting.extend(part)
            waiting.extend(inner for name, inner in part.items() if name not in sources)
        elif isinstance(part, list | tuple):
            waiting.extend(part)
        elif isinstance(part, str) and IMAGE_TOKEN in part:
            raise PromptError(
                f"{where} contains the text {IMAGE_TOKEN}, which stands for a picture: give pictures as "
                '{"type": "image"} parts, and write the text otherwise, such as < im_patch>'
            )


def pictures_of(messages: Sequence[Message]) -> Iterator[Picture]:
    """The pictures of normalised messages, in order."""
    for turn, message in enumerate(messages):
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if part["type"] == "image":
                yield _picture_of(part, turn)


def _picture_of(part: Mapping[str, Any], turn: int) -> Picture:
    for name in _SOURCES:
        source = part.get(name)
        if source is not None:
            return decode_base64(source) if name == "base64" else source
    raise PromptError(f"message {turn}: an image part must hold one of {', '.join(_SOURCES)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "…"
