import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from simulated import lengths

from step3.plan.simulate.errors import SimulationError
from step3.plan.simulate.requests import ClosedLoop, Lengths, OpenLoop, Request, Trace, parse_arrivals
from step3.plan.workload import Contexts, parse_contexts


def generator() -> np.random.Generator:
    return np.random.default_rng(5)


def write(path: Path, *lines: object) -> Trace:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return Trace(path)


@pytest.mark.parametrize("output", ["1K", "uniform(1,2K)", "lognormal(300,0.8)"])
def test_lengths_around_a_context_are_decoded_at_it_on_average(output: str) -> None:
    found = Lengths.around(Contexts.fixed(8192), parse_contexts(output))
    assert found.decoding_contexts(40_960).mean == pytest.approx(8192, rel=0.01)


def test_a_context_without_room_for_its_output_is_refused() -> None:
    with pytest.raises(SimulationError, match=r"--context 400 leaves no room .* shorten --output"):
        Lengths.around(Contexts.fixed(400), Contexts.fixed(1024))


def test_draws_follow_the_given_lengths() -> None:
    drawn = Lengths(parse_contexts("100:0.25,300:0.75"), Contexts.fixed(7.4)).draws(generator())
    pairs = list(islice(drawn, 20_000))
    assert {prompt for prompt, _ in pairs} == {100, 300}
    assert {output for _, output in pairs} == {7}
    assert np.mean([prompt == 300 for prompt, _ in pairs]) == pytest.approx(0.75, abs=0.02)


def test_requests_met_in_decoding_are_long_ones_at_any_place_of_their_output() -> None:
    met = Lengths(Contexts.fixed(10), parse_contexts("100:0.5,300:0.5")).in_decoding(generator())
    found = list(islice(met, 20_000))
    assert np.mean([output == 300 for _, output, _ in found]) == pytest.approx(0.75, abs=0.02)
    assert all(0 <= made < output for _, output, made in found)
    assert np.mean([made / output for _, output, made in found]) == pytest.approx(0.5, abs=0.02)


def test_poisson_arrivals_have_their_rate_and_their_spread() -> None:
    times = np.array(list(islice(OpenLoop(50.0).times(generator()), 20_000)))
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.05)


def test_constant_arrivals_are_evenly_apart() -> None:
    times = list(islice(OpenLoop(4.0, random=False).times(generator()), 4))
    assert times == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("closed", ClosedLoop(96)),
        ("closed:12", ClosedLoop(12)),
        ("Poisson:2.5", OpenLoop(2.5)),
        ("constant:40", OpenLoop(40.0, random=False)),
    ],
)
def test_arrivals_are_read(text: str, expected: object) -> None:
    assert parse_arrivals(text, 96) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("closed:many", "'many' is no whole number"),
        ("closed:0", "concurrency must be from 1"),
        ("poisson", "needs requests a second, like poisson:120"),
        ("poisson:nan", "needs requests a second"),
        ("constant:-1", "rate must be above 0"),
        ("poisson:1e9", "rate must be above 0 and at most 1e.06"),
        ("nowhere.jsonl", "is no file: write closed:6144"),
    ],
)
def test_what_is_no_arrival_process_is_refused(text: str, message: str) -> None:
    with pytest.raises(SimulationError, match=message):
        parse_arrivals(text, 96)


def test_a_trace_is_read_in_seconds_or_in_published_milliseconds(tmp_path: Path) -> None:
    trace = write(
        tmp_path / "trace.jsonl",
        {"arrival": 0.5, "prompt_tokens": 10, "output_tokens": 3},
        "",
        {"timestamp": 1500, "input_length": 20, "output_length": 1, "hash_ids": [1, 2]},
    )
    assert parse_arrivals(str(trace.path), 1) == trace
    assert list(trace.requests()) == [Request(0.5, 10, 3), Request(1.5, 20, 1)]
    assert trace.lengths() == Lengths(
        Contexts(((10.0, 0.5), (20.0, 0.5))), Contexts(((1.0, 0.5), (3.0, 0.5)))
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[" * 60_000, "line 2: not JSON"),
        ("[1]", "line 2: expected an object"),
        ({"prompt_tokens": 1, "output_tokens": 1}, "line 2: arrival .* is missing"),
        ({"arrival": 2, "output_tokens": 1}, "prompt_tokens or input_length is missing"),
        ({"arrival": 2, "prompt_tokens": 1, "output_tokens": 0}, "output_tokens must be a whole number"),
        ({"arrival": 2, "prompt_tokens": True, "output_tokens": 1}, "prompt_tokens must be a whole"),
        ({"arrival": "2", "prompt_tokens": 1, "output_tokens": 1}, "arrival must be a number"),
        ({"arrival": 0.5, "prompt_tokens": 1, "output_tokens": 1}, "sort the trace by time"),
        ({"arrival": 2, "x": "y" * 70_000}, "line 2: longer than"),
    ],
)
def test_a_wrong_line_of_a_trace_is_named(tmp_path: Path, line: object, message: str) -> None:
    first = {"arrival": 1, "prompt_tokens": 1, "output_tokens": 1}
    trace = write(tmp_path / "trace.jsonl", first, line)
    with pytest.raises(SimulationError, match=message):
        list(trace.requests())


def test_an_empty_or_missing_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="holds no request"):
        write(tmp_path / "empty.jsonl").lengths()
    with pytest.raises(SimulationError, match="cannot be read"):
        Trace(tmp_path / "missing.jsonl").lengths()


def test_decoding_contexts_of_fixed_lengths_run_from_the_prompt_to_its_end() -> None:
    contexts = lengths(prompt=1000, output=400).decoding_contexts()
    assert 1000 <= contexts.lengths[0][0] < 1010
    assert 1390 < contexts.longest < 1400
    assert sum(share for _, share in contexts.lengths) == pytest.approx(1)
