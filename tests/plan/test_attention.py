import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_strategies import attentions

from step3.plan.attention import (
    Attention,
    Counting,
    GroupedAttention,
    LatentAttention,
    LightningAttention,
    MultiMatrixAttention,
    cache_part,
    read_elements,
)

MFA = MultiMatrixAttention(query_heads=64, head_dim=256, query_rank=2048)
MLA = LatentAttention(128, 1536, 512, 128, 64, 128)


def test_mfa_caches_one_key_and_one_value_head() -> None:
    assert MFA.kept_elements(1) == 512
    assert MFA.core_flops(8192, Counting.EXACT) / MFA.kept_elements(8192) == 128


def test_mfa_projections_are_its_five_matrices() -> None:
    matrices = [(7168, 2048), (7168, 256), (7168, 256), (2048, 64 * 256), (64 * 256, 7168)]
    assert MFA.linear_parameters(7168) == sum(a * b for a, b in matrices)


def test_absorbed_mla_reads_latents_and_plain_mla_full_heads() -> None:
    plain = LatentAttention(128, 1536, 512, 128, 64, 128, absorbed=False)
    assert MLA.kept_elements(10) == 5760
    assert plain.kept_elements(10) == 10 * 128 * (192 + 128)
    assert plain.core_flops(10, Counting.EXACT) == 10 * 2 * 128 * (192 + 128)
    assert plain.linear_parameters(7168) == MLA.linear_parameters(7168)


def test_the_paper_counts_mla_core_5_6_percent_high() -> None:
    paper, exact = (MLA.core_flops(100, counting) for counting in (Counting.PAPER, Counting.EXACT))
    assert exact == 2 * 128 * (576 + 512) * 100
    assert 1 - exact / paper == pytest.approx(0.056, abs=0.001)


def test_mla_without_a_query_bottleneck_projects_straight() -> None:
    straight = LatentAttention(128, None, 512, 128, 64, 128)
    difference = MLA.linear_parameters(7168) - straight.linear_parameters(7168)
    assert difference == 7168 * 1536 + 1536 * 128 * 192 - 7168 * 128 * 192


def test_a_window_ends_the_growth_of_work() -> None:
    chunked = GroupedAttention(40, 8, 128, window=8192)
    assert chunked.kept_elements(32768) == chunked.kept_elements(8192)
    assert chunked.core_flops(4096, Counting.EXACT) < chunked.core_flops(8192, Counting.EXACT)


def test_an_output_gate_adds_its_columns() -> None:
    plain, gated = GroupedAttention(64, 8, 128), GroupedAttention(64, 8, 128, None, 64)
    assert gated.linear_parameters(4096) - plain.linear_parameters(4096) == 4096 * 64


def test_lightning_reads_and_writes_a_state_of_fixed_size() -> None:
    lightning = LightningAttention(64, 128)
    assert read_elements(lightning, 1) == read_elements(lightning, 1e6) == 2 * 64 * 128**2
    assert lightning.core_flops(1, Counting.PAPER) == 2 * lightning.core_flops(1, Counting.EXACT)


@pytest.mark.parametrize(
    ("attention", "part"),
    [(MFA, "kv"), (GroupedAttention(8, 8, 64, 512), "kv_windowed"), (LightningAttention(8, 64), "state")],
)
def test_each_cache_has_a_precision_of_its_own(attention: Attention, part: str) -> None:
    assert cache_part(attention) == part


@given(attentions(), st.floats(1, 1e6), st.floats(1, 4), st.sampled_from(Counting))
def test_work_never_falls_with_context(
    attention: Attention, context: float, factor: float, counting: Counting
) -> None:
    assert attention.core_flops(context * factor, counting) >= attention.core_flops(context, counting) > 0
    assert read_elements(attention, context * factor) >= read_elements(attention, context) > 0
