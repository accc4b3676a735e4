import pytest

from step3.plan.attention import Counting, GroupedAttention
from step3.plan.models import find_model
from step3.plan.precision import Precision
from step3.plan.shape import effective_rank, kept_bytes, token_work

STEP3 = find_model("Step-3")


def test_step3_has_its_published_sizes() -> None:
    assert STEP3.text_parameters / 1e9 == pytest.approx(316, abs=0.5)
    assert STEP3.active_parameters / 1e9 == pytest.approx(38, abs=0.5)
    assert (STEP3.text_parameters + STEP3.vision_parameters) / 1e9 == pytest.approx(321, abs=0.5)


def test_step3_work_of_a_token_by_hand() -> None:
    work = token_work(STEP3, 8192, Counting.PAPER)
    assert work.kv_bytes == 61 * 512 * 8192
    assert work.core_flops == 61 * 4 * 64 * 256 * 8192
    assert work.ffn_flops == 6 * 7168 * (5 * 18432 + 56 * 20480)
    assert work.intensity == 128


def test_exact_counting_adds_router_and_head_alone_for_mfa() -> None:
    paper, exact = (token_work(STEP3, 8192, counting) for counting in (Counting.PAPER, Counting.EXACT))
    assert exact.core_flops == paper.core_flops
    assert (paper.router_flops, paper.head_flops) == (0, 0)
    assert exact.router_flops == 2 * 56 * 48 * 7168
    assert exact.head_flops == 2 * 7168 * 128815


def test_a_wider_cache_costs_more_bytes_and_nothing_else() -> None:
    narrow, wide = (token_work(STEP3, 8192, Counting.EXACT, Precision(kv=kind)) for kind in ("fp8", "bf16"))
    assert wide.kv_bytes == 2 * narrow.kv_bytes
    assert wide.core_flops == narrow.core_flops


def test_mixed_precisions_meet_each_layer() -> None:
    llama = find_model("Llama 4 M")
    full, chunked = 12 * 2 * 8 * 128 * 32768 * 2, 36 * 2 * 8 * 128 * 8192 * 1
    assert kept_bytes(llama, 32768, llama.precision) == full + chunked


def test_tied_embeddings_count_once() -> None:
    from dataclasses import replace

    tied = replace(STEP3, tied_embeddings=True)
    assert STEP3.text_parameters - tied.text_parameters == 7168 * 128815


def test_effective_rank_is_heads_times_dimension() -> None:
    assert effective_rank(STEP3.layers[0].attention) == 16384
    assert effective_rank(find_model("DSv3").layers[0].attention) == 16384
    assert effective_rank(GroupedAttention(64, 4, 128)) == 8192
