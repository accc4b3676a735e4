"""One question with its reasoning and answer, and the text that the model reads and writes for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from step3.nano.scenes.draw import Scene

DEFAULT_SYSTEM = "You are a helpful assistant."
_OPEN = "<think>\n"


@dataclass(frozen=True)
class ToolCall:
    """A call: the tool's name and its arguments in the order in which they are written."""

    name: str
    arguments: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Sample:
    """A question and what the model should say.

    `expected` is what an answer is checked against (see `step3.nano.scenes.check`); its meaning is the
    category's. `kind` names the sort of question inside the category. `tools` are JSON-schema tool
    definitions as an OpenAI client sends them. `past` holds earlier turns (chat messages; a picture may stand
    there). With `from_tool` the question is a tool's result. Without `reasoning` thinking is off: the prompt
    closes the thought.
    """

    category: str
    kind: str
    question: str
    reasoning: str
    answer: str
    expected: tuple[str, ...] = ()
    scene: Scene | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_call: ToolCall | None = None
    past: tuple[Mapping[str, Any], ...] = ()
    from_tool: bool = False
    system: str = DEFAULT_SYSTEM


def messages(sample: Sample) -> list[dict[str, Any]]:
    """The chat messages up to the answer, as a client would send them (the picture as one image part)."""
    before: list[dict[str, Any]] = [dict(message) for message in sample.past]
    if sample.system != DEFAULT_SYSTEM:
        before.insert(0, {"role": "system", "content": sample.system})
    if sample.from_tool:
        return [*before, {"role": "tool", "content": sample.question}]
    if sample.scene is None or any(isinstance(message["content"], list) for message in sample.past):
        return [*before, {"role": "user", "content": sample.question}]
    return [*before, {"role": "user", "content": with_picture(sample.question)}]


def with_picture(question: str) -> list[dict[str, str]]:
    """A user message's content: the picture, then the question."""
    return [{"type": "image"}, {"type": "text", "text": question}]


def reply(sample: Sample) -> dict[str, Any]:
    """The assistant's message that answers `messages(sample)`."""
    message: dict[str, Any] = {
        "role": "assistant",
        "reasoning_content": sample.reasoning,
        "content": sample.answer,
    }
    if sample.tool_call is not None:
        function = {"name": sample.tool_call.name, "arguments": _cast(sample.tool_call, sample.tools)}
        message["tool_calls"] = [{"type": "function", "function": function}]
    return message


def _cast(call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The call's arguments as its tool's schema types them."""
    (schema,) = (t["function"]["parameters"] for t in tools if t["function"]["name"] == call.name)
    types = {name: spec["type"] for name, spec in schema["properties"].items()}
    return {name: int(value) if types[name] == "integer" else value for name, value in call.arguments}


def prompt_text(sample: Sample) -> str:
    """What the chat template makes of `messages(sample)` with a generation prompt, without Jinja's cost."""
    parts = ["<｜begin▁of▁sentence｜>", sample.system, tools_text(sample.tools)]
    for message in messages(sample):
        if message["role"] == "system":
            continue
        content = message.get("content") or ""
        if not isinstance(content, str):
            content = "".join(
                "<im_patch>" if part["type"].startswith("image") else part["text"] for part in content
            )
        parts.append(f"<|BOT|>{message['role']}\n")
        if message["role"] == "assistant":
            parts.append(_think(message.get("reasoning_content") or ""))
        parts.append(content)
        parts.extend(_calls_text(message.get("tool_calls") or ()))
        parts.append("<|EOT|>")
    parts.append(f"<|BOT|>assistant\n{_OPEN if sample.reasoning else _think('')}")
    return "".join(parts)


def completion_text(sample: Sample) -> str:
    """What the model should write after `prompt_text`, with the token that ends its turn."""
    message = reply(sample)
    thought = _think(sample.reasoning).removeprefix(_OPEN) if sample.reasoning else ""
    return f"{thought}{sample.answer}{''.join(_calls_text(message.get('tool_calls') or ()))}<|EOT|>"


def _think(reasoning: str) -> str:
    return f"<think>\n{reasoning}\n</think>\n" if reasoning else "<think>\n</think>\n"


def _calls_text(calls: Sequence[Mapping[str, Any]]) -> list[str]:
    if not calls:
        return []
    parts = ["<｜tool_calls_begin｜>\n"]
    for call in calls:
        function = call["function"]
        parts.append(
            f'<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="{function["name"]}">\n'
        )
        for name, value in function["arguments"].items():
            value = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            parts.append(f'<steptml:parameter name="{name}">{value}</steptml:parameter>\n')
        parts.append("</steptml:invoke><｜tool_call_end｜>\n")
    return [*parts, "<｜tool_calls_end｜>"]


def tools_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """The tools as the system part lists them: one line each, `name(parameter: type, ...): description`.

    A parameter whose schema is only a type or an enumeration is written so; any other schema is
    written whole, as JSON. A question mark after the name says that it may be left out.
    """
    lines = [f"\n{_tool_line(tool.get('function', tool))}" for tool in tools]
    return "\n\nTools:" + "".join(lines) if lines else ""


def _tool_line(function: Mapping[str, Any]) -> str:
    schema = function.get("parameters") or {}
    required = schema.get("required") or ()
    parameters = [
        f"{name}{'' if name in required else '?'}: {_type_text(spec)}"
        for name, spec in (schema.get("properties") or {}).items()
    ]
    line = f"{function['name']}({', '.join(parameters)})"
    return f"{line}: {function['description']}" if function.get("description") else line


def _type_text(spec: Mapping[str, Any]) -> str:
    keys = set(spec) - {"description"}
    if keys == {"type"} and isinstance(spec["type"], str):
        text = spec["type"]
    elif keys in ({"enum"}, {"type", "enum"}) and all(isinstance(value, str) for value in spec["enum"]):
        text = " | ".join(json.dumps(value, ensure_ascii=False) for value in spec["enum"])
    else:
        return json.dumps(spec, ensure_ascii=False)
    return f"{text} ({spec['description']})" if spec.get("description") else text
