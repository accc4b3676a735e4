from dataclasses import replace

import pytest

from step3.plan.hardware import HardwareCatalogue
from step3.plan.paper.measured import (
    RUNS,
    Run,
    attention_bound,
    implied_efficiencies,
    predicted,
    table9,
    with_table9_efficiencies,
)
from step3.plan.paper.printed import printed_tables
from step3.plan.paper.tables import K8, K32, Inputs, paper_inputs

MEASURED_TGS = {"2A2F": 4039, "3A2F": 3321, "4A2F": 2643}


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return paper_inputs()


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.topology)
def test_predicted_throughput_is_within_ten_percent_of_the_measured(inputs: Inputs, run: Run) -> None:
    error = predicted(inputs, run).tgs / MEASURED_TGS[run.topology] - 1
    print(f"{run.topology}: {error:+.1%}")
    assert abs(error) <= 0.10


def test_the_runs_are_the_papers(inputs: Inputs) -> None:
    cards = {run.topology: predicted(inputs, run).deployment.cards for run in RUNS}
    assert cards == {"2A2F": 32, "3A2F": 40, "4A2F": 48}
    assert {run.topology: predicted(inputs, run).batch for run in RUNS} == {
        run.topology: run.batch for run in RUNS
    }


@pytest.mark.parametrize("name", ["H800", "H20", "A800"])
def test_the_implied_efficiencies_give_table_9_back(inputs: Inputs, name: str) -> None:
    card = inputs.cards[name]
    efficient = replace(card, efficiencies=implied_efficiencies(inputs, card))
    for label, context in (("8k", K8), ("32k", K32)):
        parts = attention_bound(inputs, "MFA-Step3", efficient, context)
        measured = printed_tables()["table9_us_per_attention_layer"][label]["MFA-Step3"][name]
        assert (parts["core"] + parts["linear"]) * 1e6 == pytest.approx(measured)


def test_measured_layers_are_63_to_93_percent_of_the_bound_but_for_gqa_on_h20(inputs: Inputs) -> None:
    bounds, measured = table9(inputs), printed_tables()["table9_us_per_attention_layer"]
    for label, rows in bounds.items():
        for row, cards in rows.items():
            for name, bound in cards.items():
                if measured[label][row][name] is None:
                    continue
                share = bound / measured[label][row][name]
                expected = (0.36, 0.375) if (row, name) == ("GQA-Qwen3", "H20") else (0.63, 0.93)
                assert expected[0] <= round(share, 2) <= expected[1]


def test_the_efficiencies_can_be_put_on_a_catalogue() -> None:
    plain = HardwareCatalogue()
    changed = with_table9_efficiencies(plain)
    assert changed["H800"].efficiencies.attention.memory == pytest.approx(0.943, abs=0.001)
    assert changed["H800"].efficiencies.linear.memory == pytest.approx(0.455, abs=0.001)
    assert changed["910B"] == plain["910B"]
    assert plain["H800"].efficiencies.attention.memory == 1.0
