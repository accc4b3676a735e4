import asyncio
import json
import threading
from pathlib import Path
from random import Random
from typing import Any

import pytest
from scripted_server import ScriptedServer, serving, words

from step3.bench.errors import BenchError
from step3.bench.load import Plan, Run, run
from step3.bench.prompts import Asking, fitted
from step3.bench.report import summary, warnings
from step3.bench.stream import Endpoint, Sample
from step3.plan.simulate.requests import ClosedLoop, Lengths, OpenLoop, Trace
from step3.plan.workload import Contexts

ASKING = Asking("m", is_chat=True, ignore_eos=True, params={})


def plan_for(server: ScriptedServer, **change: Any) -> Plan:
    lengths = Lengths(Contexts.fixed(20), Contexts.fixed(4))
    given: dict[str, Any] = {
        "lengths": lengths,
        "count": 12,
        "longest_seconds": 600,
        "timeout": 60,
        "seed": 0,
    }
    return Plan(Endpoint.of(server.url, "/v1/chat/completions"), ASKING, **{**given, **change})


class Watched:
    """Answers while it counts how many requests are with it at once."""

    def __init__(self, until: int) -> None:
        self.now = self.most = 0
        self.lock, self.full, self.until = threading.Lock(), threading.Event(), until

    def __call__(self, body: dict[str, Any]) -> Any:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now >= self.until:
                self.full.set()
        # All that may come together have come, or never will.
        self.full.wait(60)
        with self.lock:
            self.now -= 1
        return words("a b c d")


def test_a_closed_loop_keeps_exactly_so_many_under_way() -> None:
    watched = Watched(until=3)
    with serving(watched) as server:
        result = asyncio.run(run(plan_for(server), ClosedLoop(3)))
    assert watched.most == 3
    assert len(result.samples) == 12
    assert all(sample.error is None for sample in result.samples)
    assert {body["max_tokens"] for body in server.asked} == {4}


def test_an_open_loop_does_not_wait_for_answers() -> None:
    watched = Watched(until=12)
    with serving(watched) as server:
        result = asyncio.run(run(plan_for(server), OpenLoop(200)))
    assert watched.most == 12
    assert [sample.error for sample in result.samples] == [None] * 12


def test_a_trace_is_replayed_with_its_own_lengths(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [json.dumps({"timestamp": i, "input_length": 10 + i, "output_length": 1 + i}) for i in range(5)]
    trace.write_text("\n".join(lines))
    with serving(lambda _: words("a")) as server:
        result = asyncio.run(run(plan_for(server, count=4), Trace(trace)))
    assert len(result.samples) == 4
    asked = sorted((len(body["messages"][0]["content"].split()), body["max_tokens"]) for body in server.asked)
    assert asked == [(10, 1), (11, 2), (12, 3), (13, 4)]


def test_the_same_seed_gives_the_same_requests_to_every_load() -> None:
    lengths = Lengths(Contexts(((5, 0.5), (50, 0.5))), Contexts(((2, 0.5), (9, 0.5))))
    asked = []
    for load in (ClosedLoop(1), OpenLoop(10_000)):
        with serving(lambda _: words("a")) as server:
            asyncio.run(run(plan_for(server, lengths=lengths), load))
        asked.append(sorted(body["max_tokens"] for body in server.asked))
    assert asked[0] == asked[1]
    assert set(asked[0]) == {2, 9}


def test_prompts_are_fitted_to_the_servers_tokenizer() -> None:
    def count(body: dict[str, Any]) -> Any:
        return words("a", prompt=10 + 2 * len(body["messages"][0]["content"].split()))

    with serving(count) as server:
        endpoint = Endpoint.of(server.url, "/v1/chat/completions")
        asking = asyncio.run(fitted(ASKING, endpoint, 60, Random(0)))
    assert (asking.tokens_per_word, asking.overhead) == (2.0, 10.0)
    body = asking.body(110, 5, Random(0))
    assert len(body["messages"][0]["content"].split()) == 50


def test_a_server_that_refuses_the_first_request_is_told_with_the_mend() -> None:
    with serving(lambda _: (400, "ignore_eos: unknown field")) as server:
        endpoint = Endpoint.of(server.url, "/v1/chat/completions")
        with pytest.raises(BenchError, match="unknown field; --no-ignore-eos leaves"):
            asyncio.run(fitted(ASKING, endpoint, 60, Random(0)))


def test_a_summary_counts_failures_and_times_only_whole_answers() -> None:
    good = Sample(0.0, first=0.1, last=0.4, ended=0.5, gaps=[0.1, 0.2], prompt_tokens=5, output_tokens=4)
    bad = Sample(0.0, ended=2.0, error="429: busy")
    found = summary(Run(ClosedLoop(2), [good, good, bad, bad], seconds=2.0, late=0.5))
    assert (found["completed"], found["failed"], found["errors"]) == (2, 2, {"429: busy": 2})
    assert found["output_tokens_per_second"] == 4.0
    assert found["ttft_ms"] == pytest.approx({"mean": 100, "p50": 100, "p90": 100, "p99": 100, "max": 100})
    assert found["tpot_ms"]["p50"] == pytest.approx(100)
    told = "\n".join(warnings([found]))
    assert "2 × 429: busy" in told
    assert "500 ms late" in told


def test_a_run_in_which_all_failed_has_no_times() -> None:
    found = summary(Run(OpenLoop(3.0), [Sample(0.0, ended=1.0, error="x")], seconds=1.0))
    assert found["ttft_ms"] is found["tpot_ms"] is found["end_to_end_ms"] is None
    assert found["output_tokens_per_second"] == found["requests_per_second"] == 0
