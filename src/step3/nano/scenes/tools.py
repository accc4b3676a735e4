"""Calls of the right tool among up to four, and answers that pass a tool's result on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

from step3.nano.scenes.questions import plain_variant
from step3.nano.scenes.sample import Sample, ToolCall, messages, reply
from step3.nano.scenes.split import Split, split_of
from step3.nano.scenes.toolbox import STRANGE, TOOLS, Tool, draw_strange

MOST_TOOLS = 4
# Of the calls to learn from; never of those for evaluation.
_STRANGE = 0.4


def _define(rng: Random, tool: Tool) -> dict[str, Any]:
    """The tool as an OpenAI client sends it, under one of its names and its parameters' names."""
    properties = {rng.choice(p.names): p.schema() for p in tool.parameters}
    function = {
        "name": rng.choice(tool.names),
        "description": rng.choice(tool.descriptions),
        "parameters": {"type": "object", "properties": properties, "required": list(properties)},
    }
    return {"type": "function", "function": function}


def offer(rng: Random, count: int) -> tuple[Mapping[str, Any], ...]:
    """`count` different tool definitions."""
    return tuple(_define(rng, tool) for tool in rng.sample(TOOLS, count))


def _strange(rng: Random, tool: Tool) -> Tool:
    """`tool` under names and with values that only copying can get right."""
    parameters = []
    for i, parameter in enumerate(tool.parameters):
        # No made-up name ends so: no two are the same.
        name = _strange_name(rng) + "_" * i
        if parameter.options:
            options = tuple({draw_strange(rng): None for _ in parameter.options})
            parameters.append(replace(parameter, names=(name,), options=options))
        else:
            pool = STRANGE if parameter.pool else ""
            parameters.append(replace(parameter, names=(name,), pool=pool))
    return replace(tool, names=(_strange_name(rng),), parameters=tuple(parameters))


def _strange_name(rng: Random) -> str:
    return "_".join(draw_strange(rng).lower() for _ in range(rng.choice((1, 1, 2))))


def ask_tool(rng: Random, split: Split) -> Sample:
    """A request that one of one to four tools serves. Name with values belongs to `split`."""
    while True:
        chosen = rng.sample(TOOLS, rng.randint(1, MOST_TOOLS))
        if split == "train" and rng.random() < _STRANGE:
            chosen = [_strange(rng, one) for one in chosen]
            if len({one.names for one in chosen}) < len(chosen):
                continue
        tool = rng.choice(chosen)
        values = [parameter.draw(rng) for parameter in tool.parameters]
        if len(set(values)) < len(values):
            continue
        if split_of(f"{tool.names[0]} {' '.join(values)}") == split:
            break
    tools = tuple(_define(rng, one) for one in chosen)
    function = tools[chosen.index(tool)]["function"]
    names = list(function["parameters"]["properties"])
    arguments = tuple(zip(names, values, strict=True))
    asks = (*tool.asks, *tool.held_out_asks) if split == "eval" else tool.asks
    question = plain_variant(rng, rng.choice(asks).format(*values))
    reasoning = f"{function['name']}: {', '.join(f'{name} {value}' for name, value in arguments)}."
    return Sample(
        category="tool",
        kind=f"among {len(tools)}",
        question=question,
        reasoning=reasoning,
        answer="",
        tools=tools,
        tool_call=ToolCall(function["name"], arguments),
    )


_RESULTS = (
    "{number}", "{number} degrees", "sunny, {number} degrees", "done", "ok", "not found", "{number} results",
    "rain", "cloudy", "yes", "no", "{number} EUR", "10:{number}", "sent", "error: no network",
)  # fmt: skip


def ask_tool_result(rng: Random, split: Split) -> Sample:
    """A tool has answered; the model passes the result on."""
    while True:
        call = ask_tool(rng, split)
        result = rng.choice(_RESULTS).format(number=rng.randint(10, 59))
        if rng.random() < 0.3:
            result = json.dumps({"result": result})
        if split_of(f"{call.question} {result}") == split:
            break
    plain = json.loads(result)["result"] if result.startswith("{") else result
    assert call.tool_call is not None
    called = reply(call) if rng.random() < 0.5 else reply(replace(call, reasoning=""))
    answer = f"The result: {plain}."
    return Sample(
        category="tool_result",
        kind="json" if result != plain else "text",
        question=result,
        reasoning=f"{call.tool_call.name}: {plain}.",
        answer=answer,
        expected=(answer,),
        tools=call.tools,
        past=(*messages(call), called),
        from_tool=True,
    )
