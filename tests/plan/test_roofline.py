from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_strategies import cards, models

from step3.plan.deployment import Deployment, monolith
from step3.plan.efficiency import Efficiencies, Efficiency
from step3.plan.hardware import Hardware, HardwareCatalogue
from step3.plan.models import find_model
from step3.plan.roofline import ROUTING_BYTES, RooflineTimes, Speculation
from step3.plan.shape import ModelShape
from step3.plan.stages import stage_times
from step3.plan.topology import Topology, parse_topology
from step3.plan.workload import Contexts

STEP3 = find_model("Step-3")
H800 = HardwareCatalogue()["H800"]
MOE, DENSE = 10, 0


def paper_times(topology: str = "2A2F") -> RooflineTimes:
    return RooflineTimes(STEP3, Deployment(parse_topology(topology), H800, 8, H800, 8), STEP3.precision)


def test_attention_takes_what_its_cache_and_its_weights_take_to_read() -> None:
    parts = paper_times().attention_parts(MOE, 128, Contexts.fixed(4096))
    assert parts["core"] == pytest.approx(128 * 512 * 4096 / 3.35e12)
    projections = STEP3.layers[0].attention.linear_parameters(7168)
    assert parts["linear"] == pytest.approx(projections / 3.35e12)
    assert parts["router"] == pytest.approx(2 * 48 * 7168 / 3.35e12)


def test_a_dense_layer_has_no_router() -> None:
    assert paper_times().attention_parts(DENSE, 128, Contexts.fixed(4096))["router"] == 0


def test_ffn_reads_its_share_of_the_weights_and_all_tokens() -> None:
    weights = 3 * 7168 * 250880 / 16
    activations = 2048 * 7168 * (1 + 4 / 128 + 2)
    assert paper_times().ffn(MOE, 2048) == pytest.approx((weights + activations) / 3.35e12, rel=1e-6)


def test_the_wire_carries_what_the_paper_says() -> None:
    load = paper_times().network_load(MOE, mine=128 * 7168, everyone=2048 * 7168)
    assert load.ffn_card == 2 * 128 * 7168
    assert load.attention_card == 2 * 128 * 7168
    budget = 50e-3 / 3 / 61
    assert 3 * load.ffn_card * 8e-9 / budget == pytest.approx(161.3, rel=0.002)


def test_out_and_back_take_their_bytes_over_network_and_node() -> None:
    times = paper_times()
    each = 7168 * (1 + 4 / 128) + 3 * ROUTING_BYTES
    expected = 2 * 128 * each / 50e9 + 2048 * each * 7 / 8 / 200e9
    assert times.out(MOE, 128, 2048) == pytest.approx(expected)
    assert times.back(MOE, 128, 2048) == pytest.approx(2 * 128 * 14336 / 50e9 + 2048 * 14336 * 7 / 8 / 200e9)


def test_more_attention_instances_load_the_ffn_cards_more() -> None:
    two, four = (paper_times(t).network_load(MOE, 1.0, n) for t, n in (("2A2F", 16.0), ("4A2F", 32.0)))
    assert (two.ffn_card, four.ffn_card) == (2, 4)
    assert two.attention_card == four.attention_card == 2


def test_replicas_share_the_tokens_and_hold_the_weights_again() -> None:
    plain, replicated = paper_times("2A2F"), paper_times("2A4F:ep2xr2")
    assert replicated.network_load(MOE, 1.0, 16.0).ffn_card == plain.network_load(MOE, 1.0, 16.0).ffn_card / 2
    assert replicated.deployment.weight_cards == plain.deployment.weight_cards
    assert replicated.ffn(MOE, 1e5) == pytest.approx(plain.ffn(MOE, 1e5) / 2)


def test_one_card_alone_uses_no_link() -> None:
    times = RooflineTimes(STEP3, monolith(H800, 1), STEP3.precision)
    assert times.out(MOE, 64, 64) == times.back(MOE, 64, 64) == 0


def test_a_monolith_in_one_node_uses_the_node_and_beyond_it_the_network() -> None:
    inside = RooflineTimes(STEP3, monolith(H800, 8), STEP3.precision).network_load(MOE, 1.0, 8.0)
    across = RooflineTimes(STEP3, monolith(H800, 16), STEP3.precision).network_load(MOE, 1.0, 16.0)
    assert inside.attention_card == 0 < inside.node
    assert across.attention_card > 0
    dense = RooflineTimes(STEP3, monolith(H800, 8), STEP3.precision).network_load(DENSE, 1.0, 8.0)
    assert dense.node == 7 > inside.node


def test_efficiencies_stretch_their_own_family_alone() -> None:
    half = replace(H800, efficiencies=Efficiencies(attention=Efficiency(0.5, 0.5), network=0.5))
    slow = RooflineTimes(STEP3, Deployment(parse_topology("2A2F"), half, 8, half, 8), STEP3.precision)
    fast = paper_times()
    contexts = Contexts.fixed(4096)
    slow_parts, fast_parts = (t.attention_parts(MOE, 128, contexts) for t in (slow, fast))
    assert slow_parts["core"] == 2 * fast_parts["core"]
    assert slow_parts["linear"] == fast_parts["linear"]
    assert slow.ffn(MOE, 2048) == fast.ffn(MOE, 2048)
    assert slow.out(MOE, 128, 2048) > fast.out(MOE, 128, 2048)


def test_drafts_widen_the_step_and_add_layers() -> None:
    drafting = replace(paper_times(), speculation=Speculation(2, 0.5))
    assert Speculation(2, 0.5).tokens_per_step == 1.75
    assert len(drafting.layer_kinds) == 63
    assert drafting.tokens_per_sequence(0) == 3
    assert drafting.tokens_per_sequence(61) == 1
    assert drafting.out(MOE, 128, 2048) == pytest.approx(3 * paper_times().out(MOE, 128, 2048))
    assert drafting.head(128) > 3 * paper_times().head(1) * 0.99


def test_an_uneven_division_of_experts_slows_the_fullest_card() -> None:
    even, uneven = (
        RooflineTimes(STEP3, Deployment(Topology(1, n, n), H800, 8, H800, 8), STEP3.precision) for n in (4, 5)
    )
    assert uneven.deployment.uneven_share(STEP3.layers[MOE].ffn) == pytest.approx(10 / 48 * 5)
    assert even.deployment.uneven_share(STEP3.layers[MOE].ffn) == 1


@given(models(), cards(), st.floats(1, 1000), st.floats(1, 1e5), st.floats(1, 4))
def test_no_stage_gets_shorter_with_more_sequences_or_context(
    model: ModelShape, card: Hardware, sequences: float, context: float, factor: float
) -> None:
    times = RooflineTimes(model, Deployment(Topology(2, 1), card, 4, card, 4), model.precision)
    base = stage_times(times, sequences, 8 * sequences, Contexts.fixed(context))
    more = stage_times(times, sequences * factor, 8 * sequences * factor, Contexts.fixed(context))
    longer = stage_times(times, sequences, 8 * sequences, Contexts.fixed(context * factor))
    for stage in ("attention", "out", "ffn", "back", "chain"):
        assert getattr(more, stage) >= getattr(base, stage) * (1 - 1e-9)
        assert getattr(longer, stage) >= getattr(base, stage) * (1 - 1e-9)
