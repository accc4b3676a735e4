import json
from dataclasses import replace

import pytest
from rich.console import Console

from step3.plan import report
from step3.plan.advice import sensitivity, verdict
from step3.plan.evaluate import Demand
from step3.plan.export import plan_json
from step3.plan.hardware import HardwareCatalogue
from step3.plan.launch import launch_command, launch_notes
from step3.plan.models import find_model
from step3.plan.search import Ranking, Space, search
from step3.plan.summary import best_of_each_choice, theory
from step3.plan.topology import make_topology
from step3.plan.workload import Contexts

CATALOGUE = HardwareCatalogue()
STEP3 = find_model("Step-3")
CARDS = CATALOGUE.choose("H800,H20,910B")
SPACE = Space(CARDS, CARDS, most_attention=4, most_ffn=2)
DEMAND = Demand(STEP3, STEP3.precision, Contexts.fixed(8192), 0.05)


@pytest.fixture(scope="module")
def ranking() -> Ranking:
    return search(DEMAND, SPACE)


def text_of(renderable: object, width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_the_report_fits_its_terminal(ranking: Ranking, width: int) -> None:
    best = ranking.best()
    parts = [
        report.heading(DEMAND, SPACE),
        report.deployments_table(best_of_each_choice(ranking)),
        report.details(DEMAND, best),
        report.verdict_text(verdict(ranking)),
        report.infeasible_table(ranking.infeasible),
        report.sensitivity_table(best, sensitivity(DEMAND, ranking)),
        report.launch_text(best, "Step-3"),
    ]
    for part in parts:
        text = text_of(part, width)
        assert max(len(line) for line in text.splitlines()) <= width
        assert "…" not in text


def test_assumed_prices_are_pointed_out() -> None:
    assert report.price_note(CATALOGUE.choose("H800,H20")) is None
    assert "H100 2.5" in str(report.price_note(CATALOGUE.choose("H800,H100")))


def test_the_launch_command_starts_the_planned_topology(ranking: Ranking) -> None:
    outcome = ranking.afd[0]
    words = launch_command(outcome, "/data/step 3").split(" --")
    assert words[0] == "step3 serve '/data/step 3'"
    flags = dict(word.split(" ", 1) for word in words[1:])
    topology = make_topology(
        int(flags["attention-instances"]), int(flags["ffn-instances"]), flags.get("ffn-parallel")
    )
    assert topology == outcome.deployment.topology
    assert flags["micro-batches"] == str(outcome.lanes)
    assert outcome.deployment.ffn.name in " ".join(launch_notes(outcome))


def test_the_monolith_starts_without_instances(ranking: Ranking) -> None:
    outcome = next(o for o in ranking.monoliths if o.deployment.cards > 1)
    assert launch_command(outcome, "m") == f"step3 serve m --data-parallel-size {outcome.deployment.cards}"


def test_the_json_holds_what_the_tables_show(ranking: Ranking) -> None:
    plan = plan_json(DEMAND, SPACE, ranking, verdict(ranking), sensitivity(DEMAND, ranking), "Step-3", top=3)
    again = json.loads(json.dumps(plan))
    assert len(again["deployments"]) == 3
    first, best = again["deployments"][0], ranking.best()
    assert first["usd_per_million"] == best.usd_per_million
    assert first["topology"] == str(best.deployment.topology)
    assert {"stages", "busy", "memory_bytes", "network_gbit_s", "bound_by", "tgs", "tpot_ms"} <= set(first)
    assert len(again["infeasible"]) == len(ranking.infeasible)
    assert again["launch"].startswith("step3 serve Step-3")
    assert again["verdict"]["headline"]


def test_the_heading_gives_both_rules_costs_for_an_endless_batch() -> None:
    ideal = theory(DEMAND, SPACE)
    assert (ideal.attention, ideal.ffn) == ("H20", "H800")
    assert ideal.paper == pytest.approx(0.055, abs=0.0005)
    assert ideal.exact > ideal.paper
    assert f"{ideal.exact:.4f} exact" in text_of(report.heading(DEMAND, SPACE), 120)


def test_drafts_are_told() -> None:
    from step3.plan.roofline import Speculation

    text = text_of(report.heading(replace(DEMAND, speculation=Speculation(2, 0.7)), SPACE), 100)
    assert "drafts a step: 2, each accepted 70%" in text
