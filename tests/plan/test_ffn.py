import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_strategies import ffns

from step3.plan.ffn import FFN, DenseFFN, ExpertFFN, ffn_flops, ffn_parameters

STEP3 = ExpertFFN(experts=48, top_k=3, intermediate=5120, shared_intermediate=5120)


def test_a_token_passes_its_experts_and_the_shared_one() -> None:
    assert STEP3.active_intermediate == 20480
    assert STEP3.total_intermediate == 250880
    assert ffn_flops(STEP3, 7168) == 6 * 7168 * 20480
    assert ffn_parameters(DenseFFN(18432), 7168) == 3 * 7168 * 18432


def test_only_experts_have_a_router() -> None:
    assert STEP3.router_parameters(7168) == 48 * 7168
    assert DenseFFN(18432).router_parameters(7168) == 0


def test_one_token_touches_what_it_chose_and_many_touch_all() -> None:
    assert STEP3.touched_intermediate(1) == pytest.approx(STEP3.active_intermediate)
    assert STEP3.touched_intermediate(1e6) == pytest.approx(STEP3.total_intermediate)


@given(ffns(), st.floats(1, 1e5), st.floats(1, 10))
def test_a_larger_batch_touches_no_less_and_shares_better(ffn: FFN, tokens: float, factor: float) -> None:
    few, many = ffn.touched_intermediate(tokens), ffn.touched_intermediate(tokens * factor)
    assert many >= few * (1 - 1e-12)
    assert many / (tokens * factor) <= few / tokens * (1 + 1e-12)
