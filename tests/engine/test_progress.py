"""What ends an answer, and what of it is shown."""

import pytest
from engine_requests import make_request, shared_llm, text_of

from step3 import SamplingParams
from step3.engine.detokenizer import Detokenizer, TokenTable
from step3.engine.progress import advance, flush
from step3.engine.request import Sequence
from step3.engine.sampling.sampler import NO_TOKEN
from step3.engine.sampling.stop import StopStrings

PROMPT = [5, 6]


@pytest.fixture(scope="module")
def table() -> TokenTable:
    return shared_llm("text")._model.tokens.table


def letters(table: TokenTable, text: str) -> list[int]:
    """A token for each letter."""
    return [table.tokens.index(letter.encode()) for letter in text]


def make_answer(
    table: TokenTable,
    stop: tuple[str, ...] = (),
    eos: tuple[int, ...] = (),
    shortest: int = 0,
    longest: int = 100,
    **params: object,
) -> Sequence:
    request = make_request(PROMPT, params=SamplingParams(temperature=0, stop=stop, **params))  # type: ignore[arg-type]
    request.eos_tokens = frozenset(eos)
    [sequence] = request.sequences
    sequence.detokenizer = Detokenizer(table, skip_special_tokens=True)
    sequence.watch = StopStrings(stop, request.params.include_stop_str_in_output).watch() if stop else None
    sequence.stop_tokens = request.eos_tokens.union(request.params.stop_token_ids or ())
    sequence.shortest, sequence.longest = len(PROMPT) + shortest, len(PROMPT) + longest
    return sequence


def ended(sequence: Sequence) -> tuple[str, str | None, int | str | None]:
    return text_of(sequence), sequence.finish_reason, sequence.stop_reason


def test_goes_on_while_nothing_ends_it(table: TokenTable) -> None:
    sequence = make_answer(table)
    assert not advance(sequence, letters(table, "abc"), None, now=3.0)
    assert ended(sequence) == ("abc", None, None)
    assert sequence.first_token_time == sequence.last_token_time == 3.0


def test_ends_at_its_longest_and_drops_what_was_sampled_behind(table: TokenTable) -> None:
    sequence = make_answer(table, longest=2)
    assert advance(sequence, letters(table, "abc"), None, now=0.0)
    assert ended(sequence) == ("ab", "length", None)
    assert sequence.sampling.position == 2


def test_an_end_of_sequence_is_no_stop_reason(table: TokenTable) -> None:
    [end] = letters(table, "e")
    sequence = make_answer(table, eos=(end,), stop_token_ids=[end])
    assert advance(sequence, letters(table, "ae"), None, now=0.0)
    assert ended(sequence) == ("a", "stop", None)


def test_another_stop_token_is(table: TokenTable) -> None:
    [end] = letters(table, "e")
    sequence = make_answer(table, stop_token_ids=[end], include_stop_str_in_output=True)
    assert advance(sequence, letters(table, "ae"), None, now=0.0)
    assert ended(sequence) == ("ae", "stop", end)


def test_a_stop_string_ends_it_in_the_middle_of_drafts(table: TokenTable) -> None:
    sequence = make_answer(table, stop=("bc",))
    assert advance(sequence, letters(table, "abcd"), None, now=0.0)
    assert ended(sequence) == ("a", "stop", "bc")
    assert sequence.output_token_ids == letters(table, "abc")


def test_nothing_stops_it_before_its_shortest(table: TokenTable) -> None:
    sequence = make_answer(table, stop=("a",), shortest=2)
    assert not advance(sequence, letters(table, "aa"), None, now=0.0)
    assert advance(sequence, letters(table, "a"), None, now=0.0)


def test_what_may_begin_a_stop_string_waits_until_the_end(table: TokenTable) -> None:
    sequence = make_answer(table, stop=("bcd",), longest=3)
    advance(sequence, letters(table, "ab"), None, now=0.0)
    assert text_of(sequence) == "a"
    advance(sequence, letters(table, "c"), None, now=0.0)
    assert ended(sequence) == ("abc", "length", None)


def test_what_was_given_up_stays_as_it_is(table: TokenTable) -> None:
    sequence = make_answer(table)
    sequence.finish_reason = "abort"
    assert not advance(sequence, letters(table, "a"), None, now=0.0)
    assert sequence.output_token_ids == []


def test_no_token_is_an_error(table: TokenTable) -> None:
    sequence = make_answer(table)
    assert advance(sequence, [NO_TOKEN], None, now=0.0)
    assert sequence.finish_reason == "error"
    assert sequence.request.error is not None


def test_flushing_without_stop_strings_adds_nothing(table: TokenTable) -> None:
    sequence = make_answer(table)
    advance(sequence, letters(table, "a"), None, now=0.0)
    flush(sequence)
    assert text_of(sequence) == "a"
