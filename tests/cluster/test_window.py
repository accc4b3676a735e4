"""What a deployment did between two looks at it."""

from typing import Any

from step3.cluster.window import MAX_SPANS, between, limit_now, picture, stragglers


def lane(attention: float = 0.0, ffn: float = 0.0, steps: int = 0, tokens: int = 0) -> dict[str, Any]:
    times = {"attention": attention, "wire": 0.1, "waiting": 0.2, "ffn": ffn}
    return {**times, "steps": steps, "calls": 5 * steps, "tokens": tokens}


def attention(number: int, told: float | None, *lanes: dict[str, Any], **more: Any) -> dict[str, Any]:
    state = {"epoch": 1, "state": "ready", "running": 4, "waiting": 0, "idle_seconds": 0.0}
    return {"instance": number, "told_seconds": told, "lanes": list(lanes), **state, **more}


def ffn(number: int, told: float | None, seconds: float, tokens: int = 100, **more: Any) -> dict[str, Any]:
    counted = {"seconds": seconds, "tokens": tokens, "products": tokens, "calls": tokens}
    return {"instance": number, "told_seconds": told, "epoch": 1, "shard": 0, **counted, **more}


def described(attentions: list[dict[str, Any]], ffns: list[dict[str, Any]]) -> dict[str, Any]:
    return {"topology": "1A1F", "attention": attentions, "ffn": ffns, "parked_requests": 0}


def test_counters_are_differences_and_each_window_is_by_the_instances_own_clock() -> None:
    before = described([attention(0, 10.0, lane(1.0, 2.0, 10, 160))], [ffn(0, 500.0, 3.0, 100)])
    after = described(
        [attention(0, 12.0, lane(1.5, 3.0, 30, 480), idle_seconds=0.5)], [ffn(0, 501.0, 3.95, 150)]
    )
    found = between(before, after)
    [one], [served] = found["attention"], found["ffn"]
    assert one["window_seconds"] == 2.0
    assert one["idle_seconds"] == 0.5
    assert one["lanes"] == [
        {"attention": 0.5, "wire": 0.0, "waiting": 0.0, "ffn": 1.0, "steps": 20, "calls": 100, "tokens": 320}
    ]
    assert (served["window_seconds"], round(served["seconds"], 6), served["tokens"]) == (1.0, 0.95, 50)
    assert one["running"] == 4
    assert found["limit"].startswith("FFN 0 is the limit: it computes 95% of the time")


def test_an_instance_that_was_replaced_or_is_silent_has_nothing_to_compare() -> None:
    before = described([attention(0, 10.0, lane(5.0, 2.0, 10, 160))], [ffn(0, 9.0, 3.0)])
    after = described([attention(0, 3.0, lane(0.5, 0.2, 1, 16), epoch=2)], [ffn(0, 9.0, 3.0)])
    found = between(before, after)
    assert found["attention"][0]["window_seconds"] is None
    assert found["attention"][0]["lanes"][0]["steps"] == 0
    assert found["ffn"][0]["window_seconds"] is None
    assert found["limit"] == "nothing is being computed"
    loading = described([attention(0, None)], [ffn(0, None, 0.0)])
    assert between(loading, after)["attention"][0]["lanes"][0]["steps"] == 0


def test_an_instance_that_had_no_lanes_yet_counts_from_nothing() -> None:
    before = described([attention(0, 1.0)], [ffn(0, 1.0, 0.0)])
    found = between(before, described([attention(0, 2.0, lane(0.95, 0.0, 3, 48))], [ffn(0, 2.0, 0.5)]))
    assert found["attention"][0]["lanes"][0]["steps"] == 3
    assert found["limit"].startswith("attention 0 is the limit: it computes 95%")


def test_monoliths_have_no_pipeline() -> None:
    assert "there is no pipeline" in limit_now([{"instance": 0, "window_seconds": 1.0, "lanes": []}], [])


def test_where_nobody_is_always_busy_more_lanes_find_room() -> None:
    line = limit_now(
        [{"instance": 0, "window_seconds": 1.0, "lanes": [lane(0.4, 0.3, 10, 100)]}],
        [{**ffn(0, 1.0, 0.6), "window_seconds": 1.0}],
    )
    assert line == "nobody computes all the time (FFN 0 most, 60%): more lanes or requests find room"


def attentions(*work: tuple[float, int, int]) -> list[dict[str, Any]]:
    """Attention instances by (seconds, steps, tokens) of their one lane."""
    return [
        {"instance": number, "window_seconds": 1.0, "lanes": [lane(seconds, 0.1, steps, tokens)]}
        for number, (seconds, steps, tokens) in enumerate(work)
    ]


def ffns(*work: tuple[float, int, int]) -> list[dict[str, Any]]:
    """FFN instances by (seconds, calls, tokens)."""
    return [
        {**ffn(number, 1.0, seconds, tokens, calls=calls), "window_seconds": 1.0}
        for number, (seconds, calls, tokens) in enumerate(work)
    ]


def test_who_takes_longer_for_the_same_straggles_in_both_roles() -> None:
    slow = attentions((0.2, 10, 100), (0.4, 10, 100), (0.2, 10, 100))
    slow_ffn = ffns((0.3, 50, 100), (0.35, 50, 100), (0.6, 50, 100))
    assert stragglers(slow, slow_ffn) == ["attention 1", "FFN 2"]
    assert stragglers(slow[:1], slow_ffn[:1]) == []
    assert limit_now(slow, slow_ffn).endswith("; attention 1 and FFN 2 straggle")
    assert limit_now(slow[::2], slow_ffn).endswith("; FFN 2 straggles")


def test_a_batch_of_another_size_is_no_fault() -> None:
    # Half the tokens in not much less time; four times the tokens in twice the time.
    assert stragglers(attentions((0.2, 10, 100), (0.18, 10, 50)), []) == []
    assert stragglers([], ffns((0.2, 50, 100), (0.4, 50, 400))) == []


def test_a_few_calls_tell_nothing() -> None:
    assert stragglers([], ffns((0.2, 50, 100), (0.2, 5, 10))) == []


def event(process: int, row: int, name: str, start: float, length: float, layer: int = 0) -> dict[str, Any]:
    args = {"layer": layer, "tokens": 16}
    return {"ph": "X", "pid": process, "tid": row, "name": name, "ts": start, "dur": length, "args": args}


def test_a_trace_becomes_a_row_for_each_lane_and_ffn_instance() -> None:
    names = [
        {"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": name}}
        for number, name in enumerate(["attention 0", "ffn 0"])
    ]
    work = [
        event(0, 0, "attention", 100.0, 5.0),
        event(0, 1, "wire", 105.0, 2.0),
        event(0, 2, "attention", 105.0, 5.04, layer=3),
        event(1, 0, "ffn", 107.0, 9.0),
    ]
    assert picture({"traceEvents": [*names, *work]}) == {
        "microseconds": 16.0,
        "rows": [
            {
                "instance": "attention 0",
                "lane": 0,
                "spans": [[0.0, 5.0, "attention", 0, 16], [5.0, 7.0, "wire", 0, 16]],
            },
            {"instance": "attention 0", "lane": 1, "spans": [[5.0, 10.0, "attention", 3, 16]]},
            {"instance": "ffn 0", "lane": None, "spans": [[7.0, 16.0, "ffn", 0, 16]]},
        ],
    }
    assert picture({"traceEvents": []}) == {"microseconds": 0.0, "rows": []}


def test_a_picture_keeps_only_the_latest_of_many_spans() -> None:
    name = {"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "args": {"name": "attention 0"}}
    work = [event(0, 0, "attention", 10.0 * number, 5.0, number) for number in range(MAX_SPANS + 500)]
    [row] = picture({"traceEvents": [name, *work]})["rows"]
    assert len(row["spans"]) == MAX_SPANS
    assert row["spans"][0][:4] == [0.0, 5.0, "attention", 500]
