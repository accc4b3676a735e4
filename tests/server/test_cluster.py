"""The paths under /cluster, in front of an engine that answers from a script."""

import json
from typing import Any

import pytest
from stand_in import StandIn, get, post

from step3.server.cluster import metrics
from step3.server.engine_client import EngineFailure

LANE = {"attention": 0.6, "wire": 0.1, "waiting": 0.2, "ffn": 2.0, "steps": 10, "calls": 60, "tokens": 160}


def described(seconds: float = 1.0) -> dict[str, Any]:
    lane = {name: value * seconds for name, value in LANE.items()}
    state = {"instance": 0, "state": "ready", "epoch": 1, "told_seconds": 10 + seconds}
    attention = {**state, "lanes": [lane], "idle_seconds": 0.5 * seconds, "running": 16, "waiting": 2}
    ffn = {**state, "shard": 0, "seconds": 0.95 * seconds, "products": 50, "calls": 60, "tokens": 160}
    return {
        "topology": "1A1F",
        "attention": [{**attention, "kv_cache_usage": 0.25, "link": {"resent": 3}}],
        "ffn": [ffn],
        "restarts": {"ffn": 2},
        "moved_requests": 7,
        "parked_requests": 0,
        "limit": "something",
    }


NAME = {"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "args": {"name": "attention 0"}}
SPAN = {"ph": "X", "pid": 0, "tid": 0, "name": "attention", "ts": 5.0, "dur": 2.0}
TRACE = {"traceEvents": [NAME, {**SPAN, "args": {"layer": 1, "tokens": 16}}]}


class Cluster(StandIn):
    """Answers each call to `cluster` with the next of some answers."""

    def __init__(self, *answers: Any) -> None:
        super().__init__()
        self._answers = iter(answers)

    async def ask(self, method: str, arguments: Any) -> Any:
        self.asked.append((method, arguments))
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_the_deployment_is_described_as_the_engine_does() -> None:
    engine = Cluster(described())
    assert get(engine, "/cluster").json() == described()
    assert engine.asked == [("cluster", {"action": "describe"})]


def test_a_trace_is_as_long_as_is_asked_for_and_no_longer_than_a_minute() -> None:
    engine = Cluster(TRACE)
    assert get(engine, "/cluster/trace?seconds=0.5").json() == TRACE
    assert engine.asked == [("cluster", {"action": "trace", "seconds": 0.5})]
    for seconds in ("0", "-1", "61", "long"):
        assert get(Cluster(), f"/cluster/trace?seconds={seconds}").status_code == 400


def test_live_is_what_happened_between_two_looks_and_a_picture() -> None:
    engine = Cluster(described(1.0), TRACE, described(2.0))
    found = get(engine, "/cluster/live?seconds=0.5").json()
    assert [asked["action"] for _, asked in engine.asked] == ["describe", "trace", "describe"]
    assert found["attention"][0]["window_seconds"] == 1.0
    assert found["attention"][0]["lanes"][0] == pytest.approx(LANE)
    assert found["limit"].startswith("FFN 0 is the limit")
    assert found["stragglers"] == []
    [row] = found["picture"]["rows"]
    assert row == {"instance": "attention 0", "lane": 0, "spans": [[0.0, 2.0, "attention", 1, 16]]}
    for seconds in ("0.1", "11"):
        assert get(Cluster(), f"/cluster/live?seconds={seconds}").status_code == 400


@pytest.mark.parametrize("path", ["/cluster", "/cluster/trace", "/cluster/live"])
def test_a_server_of_one_process_says_so(path: str) -> None:
    refused = get(Cluster(EngineFailure("invalid", "this server is one process")), path)
    assert refused.status_code == 400
    assert "one process" in refused.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/cluster", "/cluster/trace", "/cluster/live"])
def test_nothing_is_told_without_the_key(path: str) -> None:
    assert get(Cluster(), path, api_keys=("secret",)).status_code == 401


def test_changes_reach_the_engine() -> None:
    engine = Cluster("ffn 1 finishes what it has and leaves")
    change = {"action": "drain", "role": "ffn", "number": 1}
    assert post(engine, "/cluster", change).json() == {"done": "ffn 1 finishes what it has and leaves"}
    assert engine.asked == [("cluster", change)]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"action": "kill", "role": "ffn"}, "action"),
        ({"action": "add", "role": "router"}, "role"),
        ({"action": "add", "role": "ffn", "number": -1}, "number"),
        ({"action": "add", "role": "ffn", "count": 2}, "count"),
        ({"role": "ffn"}, "action"),
    ],
)
def test_a_change_that_cannot_be_is_refused_and_the_engine_not_asked(
    change: dict[str, Any], named: str
) -> None:
    engine = Cluster()
    refused = post(engine, "/cluster", change)
    assert refused.status_code == 400
    assert named in json.dumps(refused.json())
    assert engine.asked == []


def test_metrics_are_prometheus_lines_with_a_type_each() -> None:
    lines = list(metrics(described()))
    samples = [line for line in lines if not line.startswith("#")]
    assert 'step3_instances_up{role="ffn",instance="0",state="ready"} 1' in samples
    assert 'step3_instance_restarts_total{role="ffn"} 2' in samples
    assert "step3_moved_requests_total 7" in samples
    assert 'step3_lane_seconds_total{instance="0",lane="0",stage="ffn"} 2.0' in samples
    assert 'step3_lane_tokens_total{instance="0",lane="0"} 160.0' in samples
    assert 'step3_attention_idle_seconds_total{instance="0"} 0.5' in samples
    assert 'step3_ffn_calls_total{instance="0",shard="0"} 60' in samples
    assert 'step3_link_resent_total{instance="0"} 3' in samples
    assert 'step3_link_late_total{instance="0"} 0' in samples
    families = {line.split("{")[0].split()[0] for line in samples}
    assert families == {line.split()[2] for line in lines if line.startswith("# TYPE")}
    for family in families:
        kind = "gauge" if family == "step3_instances_up" else "counter"
        assert f"# TYPE {family} {kind}" in lines
