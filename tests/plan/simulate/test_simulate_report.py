import json
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console, RenderableType
from simulated import AffineTimes, scenario

from step3.plan.simulate import Cards, Scenario, simulate
from step3.plan.simulate.assemble import closed_form
from step3.plan.simulate.loss import Loss
from step3.plan.simulate.report import as_json, render, render_loss, spark
from step3.plan.simulate.requests import OpenLoop


def text(chosen: Scenario) -> str:
    return printed(render("AffineTimes", chosen, simulate(chosen), closed_form(chosen)))


def printed(content: RenderableType) -> str:
    console = Console(width=80, file=StringIO())
    console.print(content)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_report_fits_eighty_columns_and_cuts_nothing_off() -> None:
    chosen = scenario("2A1F", cards=Cards(1, 1, usd_per_second=1e-3), duration=1.0)
    report = text(chosen)
    assert max(map(len, report.splitlines())) <= 80
    assert "…" not in report
    for part in ("TPOT", "TTFT", "bubbles", "tokens a second", "Limited by", "USD for 1M tokens"):
        assert part in report
    assert "closed form" in report


def test_a_report_says_who_stands_for_others_and_what_did_not_happen() -> None:
    report = text(scenario("40A1F", arrivals=OpenLoop(100.0), duration=0.02, warmup=0.0))
    assert "10 of 40 attention instances are simulated" in report
    assert "no requests" in report


def test_json_holds_the_result_and_what_it_is_compared_with() -> None:
    chosen = scenario("1A1F", AffineTimes())
    result = simulate(chosen)
    values = json.loads(json.dumps(as_json(chosen, result, closed_form(chosen), None)))
    assert values["topology"] == "1A1F"
    assert values["tgs"] == pytest.approx(result.tgs)
    assert values["token"]["p99"] == result.token.p99
    assert values["busy"]["ffn"] == result.busy.ffn
    assert values["limit"]["binding"] == result.limit.binding
    assert values["closed_form"]["tpot"] == pytest.approx(15e-3)
    assert values["failures"] is None


def test_what_failures_cost_is_told() -> None:
    report = printed(render_loss(Loss(1200.0, 0.4, 0.7, 0.02, 5000.0), restart=60.0, detection=0.3))
    assert "1,200 tokens fewer" in report
    assert "0.40 s of output" in report
    assert "5,000 tokens of cache lost and computed anew" in report


def test_a_spark_line_runs_from_zero_to_the_greatest() -> None:
    assert spark([0.0, 4.0, 8.0]) == "▁▅█"
    assert spark([0.0, 0.0]) == "▁▁"
    assert len(spark([1.0] * 500, width=36)) == 36
    assert spark([]) == ""


def test_a_monolith_is_reported_by_its_cards() -> None:
    report = text(replace(scenario("1A0F"), duration=0.5))
    assert "card " in report
    assert "merging" not in report
