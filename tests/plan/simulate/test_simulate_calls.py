from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import AffineTimes, no_prefill

from step3.plan.simulate.calls import CallTimes
from step3.plan.workload import Contexts


class Counted(AffineTimes):
    """Affine times that note each question, in which two of four layers are alike."""

    layer_kinds = (0, 1, 0, 1)  # type: ignore[assignment]
    asked: list[str]

    def ffn(self, layer: int, all_sequences: float) -> float:
        self.asked.append("ffn")
        return (1 + layer) * 1e-3

    def out(self, layer: int, sequences: float, all_sequences: float) -> float:
        return max(sequences * 3e-6, all_sequences * 1e-6) + 5e-6


def call_times(times: AffineTimes, prefill: Callable[[int, int, float], float] = no_prefill) -> CallTimes:
    return CallTimes(times, Contexts.fixed(4096), prefill)


@given(st.integers(1, 500), st.floats(0, 1e5))
def test_attention_is_exact_where_the_model_is_linear_in_the_context(sequences: int, context: float) -> None:
    calls = call_times(AffineTimes(attention_s=2e-3, attention_per_token=1e-9))
    assert calls.attention(sequences, sequences * context) == [
        pytest.approx(2e-3 + 1e-9 * sequences * context, rel=1e-9)
    ]


def test_the_model_sees_contexts_that_spread_like_the_loads() -> None:
    class Windowed(AffineTimes):
        def attention(self, layer: int, sequences: float, contexts: Contexts) -> float:
            return contexts.mean_seen(100) if contexts.mean else 0.0

    spread = Contexts(((50.0, 0.5), (150.0, 0.5)))
    seconds = CallTimes(Windowed(), spread, no_prefill).attention(1, 128.0)
    assert seconds == [pytest.approx(0.5 * 64 + 0.5 * 100)]


def test_each_question_is_asked_once_for_each_kind_of_layer() -> None:
    times = Counted()
    object.__setattr__(times, "asked", [])
    calls = call_times(times)
    assert calls.kinds == (0, 1, 0, 1)
    assert [calls.ffn(kind, 7) for kind in (0, 1, 0, 1)] == [1e-3, 2e-3, 1e-3, 2e-3]
    assert len(times.asked) == 2


def test_the_shared_part_of_the_wire_is_what_more_sequences_take_longer() -> None:
    calls = call_times(Counted())
    assert calls.out(0, 10, 20) == pytest.approx(35e-6)
    assert calls.out_share(0, 20) == pytest.approx(20e-6)
    assert calls.back_share(0, 20) == 0.0


def test_prompt_tokens_take_their_core_and_rows_of_the_projections() -> None:
    class PerRow(AffineTimes):
        def attention(self, layer: int, sequences: float, contexts: Contexts) -> float:
            return sequences * 1e-6 + sequences * contexts.mean * 1e-9

    calls = call_times(PerRow(), lambda layer, tokens, before: tokens * before * 1e-12)
    alone = calls.attention(10, 10 * 1000.0)
    mixed = calls.attention(10, 10 * 1000.0, [(64, 500.0)])
    assert mixed[0] - alone[0] == pytest.approx(64e-6 + 64 * 500e-12)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("step3.plan.simulate.calls._MOST_KEPT", 10)
    calls = call_times(AffineTimes(ffn_per_sequence=1e-6))
    for total in range(100):
        assert calls.ffn(0, total) == pytest.approx(1e-3 + total * 1e-6)
        assert len(calls._kept) <= 10
