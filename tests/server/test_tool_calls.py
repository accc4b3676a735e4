"""Reading tool calls: what is content, what is a call, and that the cuts of a stream never matter."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise, product
from typing import Any

import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from step3.server.markers import Found, Markers
from step3.server.tool_calls import ToolCall, ToolCallDelta, ToolCallStream, parse

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "note": {}},
        },
    },
}
PING = {"name": "ping"}
TOOLS = [WEATHER, PING]

MARKUP = [
    *("<｜tool_calls_begin｜>", "<｜tool_calls_end｜>", "<｜tool_call_begin｜>", "<｜tool_call_end｜>"),
    *("<｜tool_sep｜>", "function", "<steptml:", "</steptml:", '">', '"', "\n", " ", "<", "｜", "007", "5"),
    *('<steptml:invoke name="', '<steptml:invoke name="get_weather">', "</steptml:invoke>"),
    *('<steptml:parameter name="', '<steptml:parameter name="city">', '<steptml:parameter name="days">'),
    *("</think>", "<|EOT|>", "\\", "\x00", "東", "é", "{", "}", "]]>", "&lt;", "</steptml:parameter"),
]
CLOSING = "</steptml:parameter>"
"""A value cannot hold this tag: nothing in the format escapes it."""


OPEN_VALUE = '<｜tool_calls_begin｜><steptml:invoke name="f"><steptml:parameter name="x">'


@dataclass(frozen=True)
class Call:
    """A call before it is written: its tool's name and the text of each argument."""

    name: str
    arguments: tuple[tuple[str, str], ...] = ()


def block(*calls: Call, newline: str = "\n", opening: str = "function<｜tool_sep｜>") -> str:
    written = []
    for call in calls:
        arguments = "".join(
            f'<steptml:parameter name="{name}">{value}{CLOSING}{newline}' for name, value in call.arguments
        )
        written.append(
            f'<｜tool_call_begin｜>{opening}<steptml:invoke name="{call.name}">{newline}{arguments}'
            f"</steptml:invoke><｜tool_call_end｜>{newline}"
        )
    return f"<｜tool_calls_begin｜>{newline}{''.join(written)}<｜tool_calls_end｜>"


def loads(calls: list[ToolCall]) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments, parse_constant=pytest.fail)) for call in calls]


def stream(pieces: list[str], tools: Any = TOOLS) -> list[ToolCallDelta]:
    reader = ToolCallStream(tools)
    deltas = [delta for piece in pieces for delta in reader.push(piece)]
    return [*deltas, *reader.finish()]


def put_together(deltas: list[ToolCallDelta]) -> tuple[str, list[ToolCall]]:
    """What a client makes of a stream, checking each delta's form on the way."""
    content, calls = "", []
    for delta in deltas:
        if delta.index is None:
            assert delta.content
            assert delta.name is None
            assert delta.arguments is None
            content += delta.content
            continue
        assert delta.content is None
        assert delta.name or delta.arguments
        if delta.name is not None:
            assert delta.index == len(calls)
            calls.append(ToolCall(delta.name, ""))
        assert delta.index == len(calls) - 1
        calls[-1] = ToolCall(calls[-1].name, calls[-1].arguments + (delta.arguments or ""))
    return content, calls


def cut(text: str, places: list[int]) -> list[str]:
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(bounds)]


relaxed = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
fragments = st.one_of(st.sampled_from(MARKUP), st.text(max_size=4))
soup = st.lists(fragments, max_size=20).map("".join)
values = st.lists(fragments, max_size=6).map("".join).filter(lambda text: CLOSING not in text)
names = st.one_of(st.text(min_size=1, max_size=6), st.sampled_from(["city", "days", 'a"b', "x>y", "<"]))
names = names.filter(lambda name: '">' not in name and not name.endswith('"') and bool(name.strip()))
plain = st.text(alphabet=st.sampled_from("ab \n<｜>/東\\\"'"), max_size=12).filter(
    lambda text: not text.endswith("<｜")
)


@st.composite
def written_calls(draw: st.DrawFn) -> tuple[Call, ...]:
    arguments = st.lists(st.tuples(names, values), max_size=2, unique_by=lambda pair: pair[0]).map(tuple)
    return tuple(draw(st.lists(st.builds(Call, names, arguments), max_size=3)))


def reads_back(calls: tuple[Call, ...]) -> list[tuple[str, dict[str, str]]]:
    return [(call.name, dict(call.arguments)) for call in calls]


@relaxed
@given(plain, written_calls(), plain, st.sampled_from(["\n", "", " \n\n"]), st.booleans())
def test_written_calls_read_back(before, calls, after, newline, with_opening):
    text = before + block(*calls, newline=newline, opening="function<｜tool_sep｜>" * with_opening) + after
    content, found = parse(text, None)
    assert content == before + after
    assert loads(found) == reads_back(calls)


@relaxed
@given(written_calls(), st.lists(st.integers(0, 10_000), max_size=12), plain)
def test_stream_equals_parse_for_written_calls(calls, places, around):
    text = around + block(*calls) + around + block(*calls, newline="") + around
    assert put_together(stream(cut(text, places), None)) == parse(text, None)


@relaxed
@given(soup, st.lists(st.integers(0, 10_000), max_size=12), st.booleans())
def test_stream_equals_parse_for_any_markup(text, places, in_call):
    if in_call:
        text = (
            '<｜tool_calls_begin｜><steptml:invoke name="get_weather"><steptml:parameter name="city">' + text
        )
    whole = parse(text, TOOLS)
    assert put_together(stream(cut(text, places))) == whole
    assert put_together(stream(list(text))) == whole
    assert all(isinstance(arguments, dict) for _, arguments in loads(whole[1]))


SHORT = [
    '<<｜tool_calls_begin｜><steptml:invoke name="f"></steptml:invoke><｜tool_calls_end｜>b<｜t',
    OPEN_VALUE + "<</steptml:invoke></steptml:parameter>",
    OPEN_VALUE + "1</steptml:invoke><｜tool_call_end｜>",
]


@pytest.mark.parametrize("text", SHORT)
def test_a_short_piece_anywhere_gives_the_same(text):
    whole = parse(text, TOOLS)
    for start, length in product(range(len(text)), range(1, 12)):
        assert put_together(stream(cut(text, [start, min(start + length, len(text))]))) == whole


LONG = [
    block(Call("get_weather", (("city", 'T"o<'), ("days", "2"))), Call("ping")) + "\nb",
    block(Call("f", (("x", "1"),)), Call("g", (("y", "2"),))).replace(CLOSING, "", 1),
]


@pytest.mark.parametrize("text", LONG)
def test_every_cut_gives_the_same(text):
    whole = parse(text, TOOLS)
    for place in range(len(text) + 1):
        assert put_together(stream(cut(text, [place]))) == whole


@pytest.mark.parametrize("text", [*SHORT, *LONG])
def test_one_character_at_a_time_gives_the_same(text):
    assert put_together(stream(list(text))) == parse(text, TOOLS)


def test_the_chat_template_writes_what_is_read():
    arguments = {"city": 'T"o<k\ny', "days": 3, "note": "007"}
    environment = jinja2.Environment()
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(
        files("step3").joinpath("model/chat_template.jinja").read_text(encoding="utf-8")
    )
    call = {"type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    turn = {"role": "assistant", "content": "Let me look.", "tool_calls": [call, call]}
    text = template.render(messages=[{"role": "user", "content": "?"}, turn])
    answer = text.split("<|BOT|>assistant\n")[1].removesuffix("<|EOT|>")
    content, calls = parse(answer, TOOLS)
    assert content == "Let me look.\n"
    assert loads(calls) == [("get_weather", arguments)] * 2


@pytest.mark.parametrize(
    "text", ["", "plain", "a <b> c", "<｜", "x <", "<｜tool", "if a <｜t: b", "<｜tool_x｜>"]
)
def test_text_without_a_block_is_content(text):
    ends_in_mark = text == "<｜tool"
    assert parse(text, TOOLS) == ("" if ends_in_mark else text, [])


def test_text_around_blocks_is_kept_to_the_character():
    text = f" \n a\n\n{block(Call('ping'))}\n\tb \n{block(Call('ping'))}\n c\n\n"
    assert parse(text, TOOLS) == (" \n a\n\n\n\tb \n\n c\n\n", [ToolCall("ping", "{}")] * 2)


def test_values_are_cast_by_the_schema():
    call = Call("get_weather", (("city", "007"), ("days", "7"), ("note", "007"), ("extra", "1")))
    (found,) = parse(block(call), TOOLS)[1]
    assert json.loads(found.arguments) == {"city": "007", "days": 7, "note": "007", "extra": "1"}


def test_a_call_of_an_unknown_tool_is_passed_on_with_strings():
    text = f"a{block(Call('nobody', (('days', '7'),)), Call('get_weather', (('days', '7'),)))}b"
    content, calls = parse(text, TOOLS)
    assert content == "ab"
    assert loads(calls) == [("nobody", {"days": "7"}), ("get_weather", {"days": 7})]


@pytest.mark.parametrize("tools", [None, [], [{"type": "function"}], ["get_weather"], [{"name": 3}]])
def test_without_usable_tools_every_value_is_a_string(tools):
    assert parse(block(Call("get_weather", (("days", "7"),))), tools)[1] == [
        ToolCall("get_weather", '{"days": "7"}')
    ]


def test_the_first_of_two_values_of_a_parameter_counts():
    call = Call("get_weather", (("city", "a"), ("city", "b"), ("days", "1"), ("days", "2")))
    assert parse(block(call), TOOLS)[1] == [ToolCall("get_weather", '{"city": "a", "days": 1}')]


def test_a_call_without_a_name_is_dropped_whole():
    text = "a" + block(Call("", (("city", "x"),)), Call("ping")) + "b"
    assert parse(text, TOOLS) == ("ab", [ToolCall("ping", "{}")])


def test_a_name_that_never_ends_does_not_swallow_the_next_call():
    text = block(Call("ping")).replace(
        "<｜tool_call_begin｜>", '<｜tool_call_begin｜><steptml:invoke name="bro<｜tool_call_begin｜>'
    )
    assert parse(text, TOOLS) == ("", [ToolCall("ping", "{}")])


def test_a_value_may_hold_all_marks_but_its_own_end():
    value = "".join(mark for mark in MARKUP) + block(Call("ping"))
    (found,) = parse(block(Call("get_weather", (("city", value),))), TOOLS)[1]
    assert json.loads(found.arguments) == {"city": value}


def test_a_missing_closing_tag_does_not_swallow_the_next_call():
    text = block(Call("get_weather", (("days", "3"),)), Call("get_weather", (("city", "Rome"),)))
    text = text.replace(CLOSING, "", 1)
    assert loads(parse(text, TOOLS)[1]) == [
        ("get_weather", {"days": 3}),
        ("get_weather", {"city": "Rome"}),
    ]


def test_a_missing_closing_tag_does_not_swallow_the_text_or_the_next_block():
    first = block(Call("get_weather", (("days", "3"),)), newline="").replace(CLOSING, "")
    text = f"a{first}b{block(Call('get_weather', (('city', 'Rome'),)))}c"
    content, calls = parse(text, TOOLS)
    assert content == "abc"
    assert loads(calls) == [("get_weather", {"days": 3}), ("get_weather", {"city": "Rome"})]


def test_missing_closing_tags_at_the_end_of_the_text_do_not_reach_the_arguments():
    text = block(Call("get_weather", (("city", "Rome"),)), newline="")
    for missing in [CLOSING, CLOSING + "</steptml:invoke>"]:
        assert parse(text.replace(missing, "") + "!", TOOLS) == (
            "!",
            [ToolCall("get_weather", '{"city": "Rome"}')],
        )


def test_cut_at_any_place_no_finished_call_is_lost_and_no_markup_leaks():
    calls = [Call("get_weather", (("days", "12"), ("city", "Ro < me"))), Call("ping"), Call("nobody")]
    text = f"Let me see.\n{block(*calls)}"
    whole = loads(parse(text, TOOLS)[1])
    ends = [index for index in range(len(text)) if text.startswith("</steptml:invoke>", index)]
    for end in range(len(text)):
        content, found = parse(text[:end], TOOLS)
        assert "Let me see.\n".startswith(content.removesuffix("<｜").removesuffix("<"))
        finished = sum(place + len("</steptml:invoke>") <= end for place in ends)
        assert loads(found)[:finished] == whole[:finished]
        assert len(found) <= finished + 1


def test_of_a_value_that_is_cut_off_only_a_string_is_kept():
    head = '<｜tool_calls_begin｜><steptml:invoke name="get_weather"><steptml:parameter name='
    assert parse(head + '"city">Ro', TOOLS)[1] == [ToolCall("get_weather", '{"city": "Ro"}')]
    assert parse(head + '"days">1', TOOLS)[1] == [ToolCall("get_weather", "{}")]


def test_strings_stream_as_they_come_and_other_values_when_they_end():
    reader = ToolCallStream(TOOLS)
    reader.push('<｜tool_calls_begin｜><steptml:invoke name="get_weather"><steptml:parameter name="city"')
    assert reader.push(">To") == [ToolCallDelta(index=0, arguments='{"city": "To')]
    assert reader.push('"k') == [ToolCallDelta(index=0, arguments='\\"k')]
    assert reader.push(f'{CLOSING}<steptml:parameter name="days">1') == [
        ToolCallDelta(index=0, arguments='"')
    ]
    assert reader.push("2") == []
    assert reader.push(CLOSING) == [ToolCallDelta(index=0, arguments=', "days": 12')]
    assert reader.push("</steptml:invoke>") == [ToolCallDelta(index=0, arguments="}")]
    assert reader.finish() == []


def test_content_is_never_held_back_longer_than_it_may_be_a_mark():
    reader = ToolCallStream(TOOLS)
    assert reader.push("a <") == [ToolCallDelta(content="a ")]
    assert reader.push("｜tool_calls") == []
    assert reader.push("!") == [ToolCallDelta(content="<｜tool_calls!")]


def test_arguments_can_always_be_sent_as_utf8():
    tool = {"name": "f", "parameters": {"properties": {"x": {"type": "object"}}}}
    (found,) = parse(block(Call("f", (("x", '{"\\ud800": "\\udfff東"}'), ("y", "\ud800")))), [tool])[1]
    found.arguments.encode("utf-8")
    assert json.loads(found.arguments) == {"x": {"\ud800": "\udfff東"}, "y": "\ud800"}


HARD = {
    "content": "some text < ",
    "calls": block(Call("get_weather", (("city", "a <b> c"), ("days", "1")))),
    "value": f"{OPEN_VALUE}" + "<",
    "ends of values": f"{OPEN_VALUE}</steptml:invoke><｜tool_call_end｜> ",
    "nested invocations": '</steptml:invoke><steptml:invoke name="g"><steptml:parameter name="q">',
    "openings": "</steptml:invoke>"
    '<｜tool_call_end｜><｜tool_call_begin｜><steptml:invoke name="g"><steptml:parameter name="q">',
    "calls that never end": "<｜tool_call_end｜><｜tool_call_begin｜>function",
    "unfinished marks": "<｜tool_calls_begin｜",
}


def characters_searched(monkeypatch: pytest.MonkeyPatch, pieces: list[str]) -> int:
    searched = 0
    find = Markers.find

    def counting(self: Markers, text: str, start: int = 0) -> Found:
        nonlocal searched
        found = find(self, text, start)
        searched += (found.word_end if found.word else len(text)) - start
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Markers, "find", counting)
        stream(pieces)
    return searched


@pytest.mark.parametrize("size", [1, 7, 10_000_000])
@pytest.mark.parametrize("unit", HARD.values(), ids=HARD.keys())
def test_the_text_is_searched_in_linear_time(monkeypatch, unit, size):
    def searched(count: int) -> int:
        text = OPEN_VALUE + unit * count
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        return characters_searched(monkeypatch, pieces)

    once, twice = searched(50), searched(100)
    assert twice <= 2.1 * once
    assert once <= 25 * len(OPEN_VALUE + unit * 50)
