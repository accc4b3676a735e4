"""Counting requests, tokens and times."""

import pytest
from engine_requests import make_request

from step3.engine.request import Request, Status
from step3.engine.sampling.speculation import SpeculationCounts
from step3.engine.statistics import Histogram, Statistics, StatisticsRecorder


def snapshot(recorder: StatisticsRecorder) -> Statistics:
    return recorder.snapshot(
        waiting=0,
        running=0,
        kv_cache_usage=0.0,
        prefix_queried=8,
        prefix_found=2,
        preemptions=0,
        computed_tokens=0,
        speculation=SpeculationCounts(),
    )


def advanced(request: Request, first: float, last: float, tokens: int) -> Request:
    """The request's one answer has had that many tokens in all, from `first` to `last`."""
    [sequence] = request.sequences
    sequence.tokens = request.prompt_token_ids + [9] * tokens
    sequence.first_token_time, sequence.last_token_time = first, last
    return request


def test_a_histogram_has_a_mean() -> None:
    assert Histogram((1.0,), (3, 1), 6.0).mean == 1.5
    assert Histogram((1.0,), (0, 0), 0.0).mean == 0


def test_a_value_on_a_bound_counts_below_it() -> None:
    recorder = StatisticsRecorder()
    recorder.record_step(1, advanced(make_request([1, 2]), 0.25, 0.25, 1).sequences)
    histogram = snapshot(recorder).time_to_first_token
    assert [bound for bound, count in zip(histogram.bounds, histogram.counts, strict=False) if count] == [
        0.25
    ]


def test_counts_tokens_as_they_come() -> None:
    recorder, request = StatisticsRecorder(), make_request([1, 2])
    recorder.record_step(1, advanced(request, 0.5, 0.5, 1).sequences)
    recorder.record_step(3, [])
    got = snapshot(recorder)
    assert (got.prompt_tokens, got.generation_tokens) == (2, 4)
    assert got.time_to_first_token.count == 1
    assert got.generation_tokens_per_second == pytest.approx(0.4)


def test_time_per_token_is_told_once_an_answer_has_ended() -> None:
    recorder, request = StatisticsRecorder(), make_request([1, 2])
    recorder.record_step(5, advanced(request, 1.0, 3.0, 5).sequences)
    assert snapshot(recorder).time_per_output_token.count == 0
    request.sequences[0].status, request.sequences[0].finish_reason = Status.FINISHED, "length"
    recorder.record_finished(request)
    got = snapshot(recorder)
    assert got.time_per_output_token.mean == 0.5
    assert got.finished == {"length": 1}
    assert got.request_time.count == 1


def test_an_aborted_answer_counts_as_such() -> None:
    recorder, request = StatisticsRecorder(), make_request([1, 2])
    request.sequences[0].finish_reason = "abort"
    recorder.record_finished(request)
    got = snapshot(recorder)
    assert got.finished == {"abort": 1}
    assert got.time_per_output_token.count == 0


def test_a_hit_rate_of_nothing_is_zero() -> None:
    got = snapshot(StatisticsRecorder())
    assert got.prefix_cache_hit_rate == 0.25
    assert got.time_to_first_token.count == 0
