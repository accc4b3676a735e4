from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_strategies import cards, models

from step3.plan.attention import Counting
from step3.plan.cost import cheapest_pair, token_cost, training_cost, unit_cost
from step3.plan.errors import PlanError
from step3.plan.hardware import Hardware, HardwareCatalogue
from step3.plan.models import find_model
from step3.plan.roofline import Speculation
from step3.plan.shape import Layer, ModelShape

STEP3, DSV3 = find_model("Step-3"), find_model("DSv3")
CATALOGUE = HardwareCatalogue()
H800, H20 = CATALOGUE["H800"], CATALOGUE["H20"]
PAPER_CARDS = CATALOGUE.choose("H800,H20,A800,910B")

countings = st.sampled_from(Counting)
factors = st.floats(1, 8)


def test_step3_at_8k_on_h800_by_hand() -> None:
    per_flop, per_byte = 2 / 3600 / 1980e12, 2 / 3600 / 3.35e12
    core = max(61 * 4 * 64 * 256 * 8192 * per_flop, 61 * 512 * 8192 * per_byte)
    linear = 2 * 61 * (7168 * 2560 + 2048 * 16384 + 16384 * 7168) * per_flop
    cost = token_cost(STEP3, 8192, H800)
    assert cost.core == pytest.approx(core)
    assert cost.linear == pytest.approx(linear)
    assert cost.ffn == pytest.approx(6 * 7168 * (5 * 18432 + 56 * 20480) * per_flop)
    assert cost.other == 0


def test_attention_and_ffn_are_priced_on_cards_of_their_own() -> None:
    mixed = token_cost(STEP3, 8192, H20, H800)
    assert mixed.attention == token_cost(STEP3, 8192, H20).attention
    assert mixed.ffn == token_cost(STEP3, 8192, H800).ffn


def test_exact_cost_approaches_the_papers_for_an_endless_batch_but_for_router_and_head() -> None:
    paper, exact = (
        token_cost(STEP3, 32768, H800, counting=counting) for counting in (Counting.PAPER, Counting.EXACT)
    )
    assert exact.core == pytest.approx(paper.core)
    assert exact.linear == pytest.approx(paper.linear)
    assert exact.ffn == pytest.approx(paper.ffn)
    assert exact.other > 0


def test_exact_cost_charges_the_weights_to_the_batch() -> None:
    costs = [
        token_cost(STEP3, 8192, H800, counting=Counting.EXACT, batch=batch).total
        for batch in (1, 16, 256, 4096)
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 50 * costs[-1]


def test_exact_cost_follows_the_cards_efficiencies() -> None:
    from step3.plan.efficiency import Efficiencies, Efficiency

    slow = replace(H800, efficiencies=Efficiencies(ffn=Efficiency(0.5, 0.5)))
    exact = Counting.EXACT
    assert token_cost(STEP3, 8192, slow, counting=exact).ffn == pytest.approx(
        2 * token_cost(STEP3, 8192, H800, counting=exact).ffn
    )
    assert token_cost(STEP3, 8192, slow).ffn == token_cost(STEP3, 8192, H800).ffn


def test_drafts_pay_where_reading_the_cache_binds_and_cost_where_compute_does() -> None:
    drafting = Speculation(1, 0.8)
    memory_bound, compute_bound = (H800, H20)
    assert (
        token_cost(STEP3, 32768, memory_bound, speculation=drafting).total
        < token_cost(STEP3, 32768, memory_bound).total
    )
    assert (
        token_cost(STEP3, 32768, compute_bound, speculation=drafting).total
        > token_cost(STEP3, 32768, compute_bound).total
    )


def test_training_is_three_forward_passes_over_the_whole_context() -> None:
    card = CATALOGUE["910B"]
    work = 61 * 4 * 64 * 256 * 8192 + token_cost(STEP3, 8192, card).linear / unit_cost(card).usd_per_flop
    ffn = 6 * 7168 * (5 * 18432 + 56 * 20480)
    assert training_cost(STEP3, 8192, card) == pytest.approx(3 * (work + ffn) * unit_cost(card).usd_per_flop)


def test_the_papers_pairs_for_step3_and_deepseek() -> None:
    assert [card.name for card in cheapest_pair(STEP3, 32768, PAPER_CARDS, PAPER_CARDS)] == ["H20", "H800"]
    assert [card.name for card in cheapest_pair(DSV3, 32768, PAPER_CARDS, PAPER_CARDS)] == ["H800", "H800"]


@pytest.mark.parametrize(("context", "batch"), [(0, 1), (8192, 0.5), (-1, 1)])
def test_impossible_contexts_and_batches_are_refused(context: float, batch: float) -> None:
    with pytest.raises(PlanError, match="must be at least 1"):
        token_cost(STEP3, context, H800, batch=batch)


@given(models(), cards(), cards(), st.floats(1, 1e5), factors, countings, st.floats(1, 1e4))
def test_cost_never_falls_with_context(
    model: ModelShape,
    a: Hardware,
    f: Hardware,
    context: float,
    factor: float,
    counting: Counting,
    batch: float,
) -> None:
    near, far = (token_cost(model, n, a, f, counting, batch=batch).total for n in (context, context * factor))
    assert far >= near * (1 - 1e-9)


@given(models(), cards(), st.floats(1, 1e5), factors, countings)
def test_cost_is_in_proportion_to_the_price(
    model: ModelShape, card: Hardware, context: float, factor: float, counting: Counting
) -> None:
    dearer = replace(card, usd_per_hour=card.usd_per_hour * factor)
    base = token_cost(model, context, card, counting=counting).total
    assert token_cost(model, context, dearer, counting=counting).total == pytest.approx(factor * base)


@given(models(), cards(), st.floats(1, 1e5), countings)
def test_cost_never_falls_with_another_layer(
    model: ModelShape, card: Hardware, context: float, counting: Counting
) -> None:
    layers = (*model.layers, Layer(model.layers[0].attention, model.layers[-1].ffn))
    deeper = replace(model, layers=layers)
    assert (
        token_cost(deeper, context, card, counting=counting).total
        > token_cost(model, context, card, counting=counting).total
    )


@given(models(), st.lists(cards(), min_size=1, max_size=4), st.floats(1, 1e5), countings)
def test_the_best_mix_is_never_dearer_than_the_best_card_alone(
    model: ModelShape, choice: list[Hardware], context: float, counting: Counting
) -> None:
    named = [replace(card, name=str(i)) for i, card in enumerate(choice)]
    attention, ffn = cheapest_pair(model, context, named, named, counting)
    mixed = token_cost(model, context, attention, ffn, counting).total
    alone = min(token_cost(model, context, card, counting=counting).total for card in named)
    assert mixed <= alone * (1 + 1e-12)
