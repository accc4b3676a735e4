import itertools
from dataclasses import replace

import pytest

from step3.nano.scenes.check import final_answer, is_right, parse_call
from step3.nano.scenes.sample import Sample, ToolCall, completion_text
from step3.nano.scenes.stream import CATEGORIES, TEXT_CATEGORIES, samples


def asked(category: str, count: int = 150) -> list[Sample]:
    return list(itertools.islice(samples(7, "eval", {category: 1}), count))


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_samples_own_completion_is_right(category: str) -> None:
    for sample in asked(category):
        assert is_right(sample, completion_text(sample)), sample


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_answer_to_another_question_is_wrong(category: str) -> None:
    group = asked(category)
    wrong = 0
    for one, other in itertools.pairwise(group):
        alike = category in TEXT_CATEGORIES or one.kind == other.kind
        if alike and (one.expected, one.tool_call) != (other.expected, other.tool_call):
            wrong += 1
            assert not is_right(one, completion_text(other)), (one, other)
    assert wrong > 10


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("text", ["", "\n</think>\n", "It is", "I am a tiny", "There are", "Hello"])
def test_empty_or_aimless_text_is_wrong(category: str, text: str) -> None:
    assert not any(is_right(sample, text) for sample in asked(category, 30))


@pytest.mark.parametrize(
    ("category", "everything"),
    [
        ("colour", "It is red green blue yellow orange purple pink black white."),
        ("shape", "circle square triangle star cross ring"),
        ("size", "It is small, large."),
        ("count", "There are 0 1 2 3 4 5."),
        ("exists", "Yes, no."),
        ("position", "It is left right above below top bottom middle, yes, no."),
        ("greeting", "Hello! You are welcome! Goodbye!"),
        ("identity", "tiny Step3 I can name nothing else"),
        ("unknown", "I do not know. I see no picture."),
    ],
)
def test_saying_everything_at_once_is_wrong(category: str, everything: str) -> None:
    assert not any(is_right(sample, everything) for sample in asked(category, 40))


def test_only_what_follows_the_reasoning_counts() -> None:
    sample = asked("colour")[0]
    right, other = sample.expected[0], "red" if sample.expected[0] != "red" else "blue"
    assert is_right(sample, f"{other}\n</think>\nIt is {right}.<|EOT|>It is {other}.")
    assert not is_right(sample, f"It is {right}.\n</think>\nIt is {other}.")
    assert final_answer("a</think>\nb<|EOT|>c") == "b"


def test_a_description_must_name_every_thing_and_nothing_else() -> None:
    sample = next(s for s in asked("describe") if len(s.expected) == 3)
    first, rest = sample.answer.split(", ", 1)
    assert is_right(sample, sample.answer)
    assert not is_right(sample, rest)
    assert not is_right(sample, f"{first}, {sample.answer}")
    assert not is_right(sample, sample.answer.replace("large", "small").replace("small", "large", 1))


def test_a_call_must_be_the_whole_answer_with_exact_arguments() -> None:
    sample = next(s for s in asked("tool") if s.tool_call and len(s.tool_call.arguments) == 2)
    assert sample.tool_call is not None
    text = completion_text(sample)
    (name, value), second = sample.tool_call.arguments
    assert not is_right(sample, text.replace(f">{value}<", f">{value}x<"))
    assert not is_right(sample, text.replace(f'name="{name}"', 'name="other"'))
    assert not is_right(sample, text.replace("<｜tool_calls_end｜>", ""))
    assert not is_right(sample, text.replace("<｜tool_calls_begin｜>", "Sure! <｜tool_calls_begin｜>"))
    swapped = replace(sample, tool_call=ToolCall(sample.tool_call.name, (second, (name, value))))
    assert not is_right(swapped, text)


def test_a_call_where_none_is_wanted_is_wrong() -> None:
    call = completion_text(asked("tool")[0])
    for category in ("greeting", "sum", "unknown"):
        assert not any(is_right(sample, call) for sample in asked(category, 20))


def test_a_call_without_line_breaks_or_parameters_is_understood() -> None:
    text = (
        "<｜tool_calls_begin｜><｜tool_call_begin｜>function<｜tool_sep｜>"
        '<steptml:invoke name="now"></steptml:invoke><｜tool_call_end｜><｜tool_calls_end｜>'
    )
    assert parse_call(text) == ToolCall("now", ())
    assert parse_call(text.replace('"></', '">what</')) is None
