import pytest

from step3.plan.deployment import Deployment, monolith
from step3.plan.errors import PlanError
from step3.plan.hardware import HardwareCatalogue
from step3.plan.memory import memory_fit
from step3.plan.models import find_model
from step3.plan.precision import Precision
from step3.plan.topology import Topology, parse_topology
from step3.plan.workload import Contexts

STEP3 = find_model("Step-3")
H800 = HardwareCatalogue()["H800"]
CONTEXTS = Contexts.fixed(8192)


def test_the_ffn_is_shared_by_all_cards_of_all_shards() -> None:
    fit = memory_fit(STEP3, Deployment(parse_topology("2A2F"), H800, 8, H800, 8), Precision(), CONTEXTS)
    assert fit.ffn_weights == STEP3.ffn_parameters / 16
    assert fit.ffn_fits


def test_replicas_hold_the_weights_again() -> None:
    deployment = Deployment(parse_topology("2A4F:ep2xr2"), H800, 8, H800, 8)
    assert memory_fit(STEP3, deployment, Precision(), CONTEXTS).ffn_weights == STEP3.ffn_parameters / 16


def test_an_uneven_division_fills_one_card_more() -> None:
    deployment = Deployment(Topology(1, 5, 5), H800, 8, H800, 8)
    fit = memory_fit(STEP3, deployment, Precision(), CONTEXTS)
    dense, experts = 5 * 3 * 7168 * 18432, 56 * 3 * 7168 * 250880
    assert fit.ffn_weights == pytest.approx(dense / 40 + experts * (10 / 48) / 8)


def test_attention_cards_hold_projections_ends_and_the_vision_tower() -> None:
    fit = memory_fit(STEP3, Deployment(parse_topology("1A1F"), H800, 8, H800, 8), Precision(), CONTEXTS)
    ends = 2 * (2 * 7168 * 128815 + STEP3.vision_parameters)
    router = 2 * 56 * 48 * 7168
    assert fit.attention_weights == STEP3.attention_parameters + ends + router


def test_sequences_fill_what_the_weights_leave() -> None:
    fit = memory_fit(STEP3, Deployment(parse_topology("1A1F"), H800, 8, H800, 8), Precision(), CONTEXTS)
    assert fit.sequence == 61 * 512 * 8192
    used = fit.attention_weights + fit.sequences * fit.sequence
    assert used <= 0.9 * H800.memory_bytes < used + fit.sequence


def test_the_monolith_holds_both() -> None:
    split = memory_fit(STEP3, Deployment(parse_topology("1A1F"), H800, 8, H800, 8), Precision(), CONTEXTS)
    whole = memory_fit(STEP3, monolith(H800, 8), Precision(), CONTEXTS)
    assert whole.attention_weights == split.attention_weights + STEP3.ffn_parameters / 8


def test_draft_layers_are_held_and_cached_too() -> None:
    deployment = Deployment(parse_topology("1A1F"), H800, 8, H800, 8)
    none, two = (memory_fit(STEP3, deployment, Precision(), CONTEXTS, drafts) for drafts in (0, 2))
    assert two.sequence == none.sequence * 63 / 61
    assert two.ffn_weights - none.ffn_weights == 2 * 3 * 7168 * 18432 / 8


@pytest.mark.parametrize(("topology", "attention", "ffn"), [("1A1F", 8, 0), ("1A1F", 0, 8), ("1A0F", 8, 8)])
def test_an_instance_without_cards_is_refused(topology: str, attention: int, ffn: int) -> None:
    with pytest.raises(PlanError, match="cannot have"):
        Deployment(parse_topology(topology), H800, attention, H800, ffn)
