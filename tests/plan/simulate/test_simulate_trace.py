import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from simulated import AffineTimes, scenario

from step3.plan.simulate import Scenario, simulate
from step3.plan.simulate.errors import SimulationError
from step3.plan.simulate.trace import Recording, trace_events, write_trace

STAGES = {"attention", "out", "ffn", "back", "head"}


def recorded(
    chosen: Scenario, begin: float = 0.3, end: float = 0.4
) -> tuple[Recording, list[dict[str, Any]]]:
    recording = Recording()
    simulate(chosen, recorder=recording, record_from=begin, record_until=end)
    return recording, list(trace_events(recording, chosen.topology, chosen.simulated))


def complete(events: list[dict[str, Any]], pid: int, tid: int) -> list[dict[str, Any]]:
    return [each for each in events if each["ph"] == "X" and (each["pid"], each["tid"]) == (pid, tid)]


def test_a_trace_file_is_the_json_that_perfetto_reads(tmp_path: Path) -> None:
    chosen = scenario("2A2F", AffineTimes(head_s=2e-4))
    recording, events = recorded(chosen)
    path = tmp_path / "trace.json"
    write_trace(path, recording, chosen.topology, chosen.simulated)
    trace = json.loads(path.read_text())
    assert trace["traceEvents"] == events
    assert trace["displayTimeUnit"] == "ms"
    for event in events:
        assert event["ph"] in ("X", "M")
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "X":
            assert event["name"] in STAGES
            assert event["dur"] >= 0
            assert {"batch", "layer"} <= set(event["args"])
    starts = [event["ts"] for event in events if event["ph"] == "X"]
    assert starts == sorted(starts)


def test_instances_are_processes_and_lanes_are_threads_by_name() -> None:
    _, events = recorded(scenario("2A2F"))
    names = {
        (event["name"], event["pid"], event["tid"]): event["args"].get("name")
        for event in events
        if event["ph"] == "M"
    }
    assert names["process_name", 1, 0] == "attention 0"
    assert names["process_name", 2, 0] == "attention 1"
    assert names["process_name", 3, 0] == "ffn 0 to 1, alike"
    assert names["thread_name", 2, 1] == "lane 1"


def test_times_are_microseconds_and_a_lane_does_one_thing_at_a_time() -> None:
    _, events = recorded(scenario("2A1F", AffineTimes(head_s=2e-4), jitter=0.3))
    for pid in (1, 2):
        for tid in (0, 1, 2):
            spans = complete(events, pid, tid)
            assert len(spans) > 20
            for one, other in pairwise(spans):
                assert one["ts"] + one["dur"] <= other["ts"] + 1e-6
    first = complete(events, 1, 0)[0]
    assert 0.29e6 < first["ts"] < 0.41e6


def test_stages_follow_each_other_through_every_layer() -> None:
    _, events = recorded(scenario("1A1F", AffineTimes(head_s=2e-4), lanes=1))
    spans = [(span["name"], span["args"]["layer"]) for span in complete(events, 1, 0)]
    begin = spans.index(("attention", 0))
    layer = [(stage, number) for number in range(5) for stage in ("attention", "out", "ffn", "back")]
    assert spans[begin : begin + 22] == [*layer, ("head", 4), ("attention", 0)]


def test_the_ffns_row_shows_merged_calls_with_their_lanes() -> None:
    _, events = recorded(scenario("3A1F", AffineTimes(attention_s=1e-4, ffn_s=3e-3)))
    calls = complete(events, 4, 0)
    by_layer: dict[int, int] = defaultdict(int)
    for call in calls:
        assert call["args"]["batch"] == 4 * len(call["args"]["lanes"])
        by_layer[len(call["args"]["lanes"])] += 1
    assert max(by_layer) > 1


def test_a_monolith_has_no_process_of_the_ffn() -> None:
    _, events = recorded(scenario("1A0F"))
    assert {event["pid"] for event in events} == {1}
    assert {event["name"] for event in complete(events, 1, 0)} >= {"attention", "ffn"}


def test_nothing_outside_the_window_is_recorded() -> None:
    recording, _ = recorded(scenario("1A1F"), 0.3, 0.35)
    longest = 3e-3
    assert all(0.3 - longest <= span.start <= 0.35 + 3 * longest for span in recording.spans)


def test_a_recording_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("step3.plan.simulate.trace.MAX_SPANS", 50)
    recording, _ = recorded(scenario("1A1F"), 0.0, 1.0)
    assert len(recording.spans) == 50
    assert recording.is_cut


def test_a_trace_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    chosen = scenario("1A1F")
    recording, _ = recorded(chosen)
    with pytest.raises(SimulationError, match=r"--trace .* cannot be written"):
        write_trace(tmp_path / "missing" / "trace.json", recording, chosen.topology, 1)
