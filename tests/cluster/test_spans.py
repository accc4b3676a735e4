"""One trace of all instances on one clock."""

from step3.cluster.spans import InstanceSpans, chrome_trace, pack_spans
from step3.engine.timeline import Span, Stage, Timeline


def test_clocks_are_brought_together() -> None:
    attention = InstanceSpans("attention 0", 0, pack_spans([Span(1, Stage.FFN, 3, 5_000, 9_000, 8, 0)]), True)
    # This instance's clock is a second behind.
    ffn = InstanceSpans(
        "ffn 0", 10**9, pack_spans([Span(0, Stage.FFN, 3, 6_000 - 10**9, 8_000 - 10**9, 8)]), False
    )
    events = chrome_trace([attention, ffn])["traceEvents"]
    first, second = (event for event in events if event["ph"] == "X")
    assert (first["ts"], first["dur"], first["tid"]) == (0.0, 4.0, 3)
    assert (second["ts"], second["dur"], second["tid"]) == (1.0, 2.0, 0)
    assert first["args"] == {"layer": 3, "tokens": 8, "ffn_instance": 0}
    names = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {"attention 0", "ffn 0", "lane 1 away", "FFN"}


def test_a_trace_of_nothing_is_one() -> None:
    assert chrome_trace([])["traceEvents"] == []


def test_spans_are_kept_only_while_recording() -> None:
    timeline = Timeline(1)
    timeline.add(0, Stage.FFN, 0, 0, 10**9, 1)
    assert timeline.spans() == []
    timeline.record(60)
    timeline.add(0, Stage.FFN, 0, 0, 10**9, 1, counts=False)
    assert len(timeline.spans()) == 1
    assert timeline.lanes[0].seconds[Stage.FFN] == 1.0
