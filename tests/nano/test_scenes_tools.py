import itertools
import re

from step3.nano.scenes.sample import Sample, messages, reply
from step3.nano.scenes.split import Split
from step3.nano.scenes.stream import samples
from step3.nano.scenes.toolbox import TOOLS, VALUES


def asked(split: Split = "train", category: str = "tool", count: int = 400) -> list[Sample]:
    return list(itertools.islice(samples(2, split, {category: 1}), count))


def test_one_to_four_different_tools_are_offered_and_the_called_one_is_among_them() -> None:
    assert {len(sample.tools) for sample in asked()} == {1, 2, 3, 4}
    for sample in asked():
        names = [tool["function"]["name"] for tool in sample.tools]
        assert len(set(names)) == len(names)
        assert sample.tool_call is not None
        assert sample.tool_call.name in names


def test_arguments_are_the_tools_parameters_with_values_from_the_question() -> None:
    for sample in asked():
        assert sample.tool_call is not None
        (tool,) = (t["function"] for t in sample.tools if t["function"]["name"] == sample.tool_call.name)
        schema = tool["parameters"]
        assert [name for name, _ in sample.tool_call.arguments] == list(schema["properties"])
        assert schema["required"] == list(schema["properties"])
        for name, value in sample.tool_call.arguments:
            assert value.lower() in sample.question.lower()
            spec = schema["properties"][name]
            assert spec["type"] in ("string", "integer")
            assert spec["type"] == "string" or value.isdigit()
            assert value in spec.get("enum", [value])


def test_evaluation_asks_in_ways_that_training_never_saw() -> None:
    held_out = {ask for tool in TOOLS for ask in tool.held_out_asks}
    assert not held_out & {ask for tool in TOOLS for ask in tool.asks}
    patterns = [re.compile(re.sub(r"\\\{\d\\\}", ".+", re.escape(ask)), re.IGNORECASE) for ask in held_out]
    assert any(pattern.fullmatch(s.question) for s in asked("eval") for pattern in patterns)


def test_every_tool_is_asked_for_and_no_two_share_a_name() -> None:
    names = [name for tool in TOOLS for name in tool.names]
    assert len(set(names)) == len(names)
    assert len(TOOLS) >= 40
    called = {s.tool_call.name for s in asked(count=3000) if s.tool_call}
    assert all(set(tool.names) & called for tool in TOOLS)


def test_every_way_to_ask_names_every_parameter() -> None:
    for tool in TOOLS:
        assert all(p.pool in VALUES for p in tool.parameters if p.pool)
        for ask in (*tool.asks, *tool.held_out_asks):
            assert set(re.findall(r"\{(\d)\}", ask)) == {str(i) for i in range(len(tool.parameters))}, ask


def test_what_is_kept_for_evaluation_is_never_asked_in_training() -> None:
    def plain(ask: str) -> str:
        return ask.lower().rstrip("?.")

    trained = {plain(ask) for tool in TOOLS for ask in tool.asks}
    assert not trained & {plain(ask) for tool in TOOLS for ask in tool.held_out_asks}


def test_the_reply_carries_the_call_with_values_of_the_schemas_types() -> None:
    kinds = set()
    for sample in asked():
        assert sample.tool_call is not None
        (call,) = reply(sample)["tool_calls"]
        assert call["function"]["name"] == sample.tool_call.name
        (tool,) = (t["function"] for t in sample.tools if t["function"]["name"] == sample.tool_call.name)
        for name, text in sample.tool_call.arguments:
            value = call["function"]["arguments"][name]
            assert str(value) == text
            assert isinstance(value, int) == (tool["parameters"]["properties"][name]["type"] == "integer")
            kinds.add(type(value))
    assert kinds == {int, str}


def test_a_tools_result_is_passed_on() -> None:
    for sample in asked(category="tool_result", count=100):
        *_, call, result = messages(sample)
        assert call["tool_calls"]
        assert result == {"role": "tool", "content": sample.question}
        plain = sample.answer.removeprefix("The result: ").removesuffix(".")
        assert plain in sample.question
        assert sample.kind == ("json" if sample.question.startswith("{") else "text")


def test_made_up_names_are_told_apart(monkeypatch) -> None:
    from step3.nano.scenes import tools

    monkeypatch.setattr(tools, "draw_strange", lambda rng: rng.choice("ab"))
    for sample in asked(count=200):
        names = [tool["function"]["name"] for tool in sample.tools]
        assert len(set(names)) == len(names)
        assert reply(sample)["tool_calls"]
