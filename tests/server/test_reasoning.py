"""Where the reasoning ends and the answer begins, whole and in streams."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from step3.server.markers import Found, Markers
from step3.server.reasoning import ReasoningDelta, ReasoningStream, split


def stream(pieces: list[str], starts_in_reasoning: bool) -> tuple[str, str]:
    reader = ReasoningStream(starts_in_reasoning)
    deltas = [delta for piece in pieces for delta in reader.push(piece)] + reader.finish()
    assert all(bool(delta.reasoning) != bool(delta.content) for delta in deltas)
    kinds = [delta.reasoning is None for delta in deltas]
    assert kinds == sorted(kinds)
    return (
        "".join(delta.reasoning or "" for delta in deltas),
        "".join(delta.content or "" for delta in deltas),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("thought</think>answer", ("thought", "answer")),
        ("thought\n</think>\nanswer\n", ("thought", "answer\n")),
        ("a\n\n</think>\n\nb", ("a\n", "\nb")),
        ("</think>\nanswer", ("", "answer")),
        ("\n</think>\nanswer", ("", "answer")),
        ("thought</think>", ("thought", "")),
        ("a</think>b</think>c<think>d", ("a", "b</think>c<think>d")),
        ("a <think> b</think>c", ("a <think> b", "c")),
        ("\n a</think>\tb", ("\n a", "\tb")),
        ("", ("", "")),
    ],
)
def test_the_first_closing_tag_ends_the_reasoning(text, expected):
    assert split(text) == expected


@pytest.mark.parametrize("text", ["thought", "thought\n", "\n", "thought</thin", "thought\n</think", "<thin"])
def test_without_a_closing_tag_all_is_reasoning(text):
    assert split(text) == (text, "")


@pytest.mark.parametrize("starts_in_reasoning", [True, False])
@pytest.mark.parametrize("before", ["", "\n", " \n\n"])
def test_an_opening_tag_at_the_start_opens_the_reasoning(starts_in_reasoning, before):
    text = f"{before}<think>\nthought\n</think>\nanswer"
    assert split(text, starts_in_reasoning) == ("thought", "answer")


@pytest.mark.parametrize("text", ["answer", "\nanswer</think>", "a <think>b</think>", "<thin", " \n", ""])
def test_outside_the_reasoning_all_is_content(text):
    assert split(text, starts_in_reasoning=False) == ("", text)


def test_only_what_may_be_a_tag_is_held_back():
    reader = ReasoningStream()
    assert reader.push("thought") == [ReasoningDelta(reasoning="thought")]
    assert reader.push(".\n</th") == [ReasoningDelta(reasoning=".")]
    assert reader.push("e") == [ReasoningDelta(reasoning="\n</the")]
    assert reader.push("</think>") == []
    assert reader.push("\n") == []
    assert reader.push("\nanswer\n") == [ReasoningDelta(content="\nanswer\n")]
    assert reader.finish() == []


pieces = st.sampled_from(["<think>", "</think>", "<", "</", "think", ">", "\n", " ", "a", "東"])


@settings(deadline=None)
@given(st.lists(pieces, max_size=12).map("".join), st.booleans(), st.data())
def test_how_a_text_is_cut_does_not_matter(text, starts_in_reasoning, data):
    whole = split(text, starts_in_reasoning)
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    cut = [text[start:end] for start, end in pairwise([0, *places, len(text)])]
    assert stream(cut, starts_in_reasoning) == whole
    assert stream(list(text), starts_in_reasoning) == whole


@given(
    st.text().filter(lambda text: "</think>" not in text and not text.lstrip().startswith("<think>")),
    st.text(),
)
def test_what_the_template_writes_reads_back(reasoning, answer):
    assert split(f"{reasoning}\n</think>\n{answer}") == (reasoning, answer)
    assert split(f"<think>\n{reasoning}\n</think>\n{answer}", False) == (reasoning, answer)


@pytest.mark.parametrize("unit", ["<", "\n", "</think", "\n</think>", "text "])
def test_the_text_is_searched_in_linear_time(monkeypatch, unit):
    searched = 0
    find = Markers.find

    def counting(self: Markers, text: str, start: int = 0) -> Found:
        nonlocal searched
        searched += len(text) - start
        return find(self, text, start)

    monkeypatch.setattr(Markers, "find", counting)
    text = "x" + unit * 500
    stream(list(text), True)
    assert searched <= 10 * len(text)
