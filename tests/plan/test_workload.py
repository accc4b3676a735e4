import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from step3.plan.errors import WorkloadError
from step3.plan.workload import MAX_LINE_BYTES, Contexts, parse_contexts, parse_length


@pytest.mark.parametrize(
    ("text", "tokens"), [("8192", 8192), ("8K", 8192), ("8k", 8192), ("1M", 1 << 20), ("1.5K", 1536)]
)
def test_lengths_are_read(text: str, tokens: int) -> None:
    assert parse_length(text) == tokens
    assert parse_contexts(text) == Contexts.fixed(tokens)


def test_weights_are_shares() -> None:
    assert parse_contexts("4K:1,32K:3").lengths == ((4096, 0.25), (32768, 0.75))
    assert parse_contexts("4K:30%,32K:70%").mean == pytest.approx(0.3 * 4096 + 0.7 * 32768)


def test_distributions_have_their_means() -> None:
    assert parse_contexts("uniform(1K,3K)").mean == pytest.approx(2048)
    import math

    lognormal = parse_contexts("lognormal(8K,0.5)")
    assert lognormal.mean == pytest.approx(8192 * math.exp(0.125), rel=0.01)
    assert sum(share for _, share in lognormal.lengths) == pytest.approx(1)


def test_a_window_sees_each_context_up_to_its_length() -> None:
    assert parse_contexts("4K:1,32K:1").mean_seen(8192) == (4096 + 8192) / 2


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.floats(0.1, 10)), min_size=1, max_size=9),
    st.integers(1, 10**6),
)
def test_what_is_seen_is_never_more_than_the_mean_or_the_window(
    pairs: list[tuple[int, float]], window: int
) -> None:
    contexts = parse_contexts(",".join(f"{length}:{weight}" for length, weight in pairs))
    assert contexts.mean_seen(window) <= min(contexts.mean, window) * (1 + 1e-9)


def trace(tmp_path: Path, *lines: object) -> str:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return str(path)


def test_a_trace_counts_requests_by_what_they_decode(tmp_path: Path) -> None:
    contexts = parse_contexts(
        trace(
            tmp_path,
            {"prompt_tokens": 1000, "output_tokens": 400},
            {"input_length": 9000, "output_length": 100},
            {"prompt_tokens": 50_000, "output_tokens": 0},
        )
    )
    assert contexts.mean == pytest.approx((1200 * 400 + 9050 * 100) / 500)
    assert parse_contexts(trace(tmp_path, {"context": 700}, {"context": 900})).mean == 800


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"prompt_tokens": 5}, "line 1: output_tokens or output_length is missing"),
        ({"prompt_tokens": -5, "output_tokens": 1}, "line 1: prompt_tokens must be a whole number"),
        ({"context": 0}, "line 1: context must be a whole number from 1"),
        ({"context": 1e99}, "line 1: context must be a whole number"),
        ([], "line 1: expected an object"),
        ({"prompt_tokens": 5, "output_tokens": 0}, "no request that decodes"),
        ("x" * MAX_LINE_BYTES, "line 1: more than a trace may hold"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: object, says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        parse_contexts(trace(tmp_path, line))


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"context": 5}\n{"context"\n')
    with pytest.raises(WorkloadError, match="line 2: not JSON"):
        parse_contexts(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-8K",
        "8G",
        "long",
        "4K:0,8K:1",
        "4K:x",
        "4K:nan",
        "uniform(3K,1K)",
        "lognormal(8K,0)",
        "lognormal(8K,x)",
        "9" * 30,
    ],
)
def test_what_is_no_context_is_refused(text: str) -> None:
    with pytest.raises(WorkloadError):
        parse_contexts(text)
