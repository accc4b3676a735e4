import asyncio
import sys
from typing import Any

import pytest
from stand_in import StandIn, get, post

from step3.server.errors import RequestFault
from step3.server.page.planner import MOST_WAITING, PlannerProcess
from step3.server.planner_process import catalogue_json, deployments_json

PATH = "/planner/deployments"
ASKED = {"model": "Step-3", "context": 8192, "tpot_ms": 50.0, "cards": ["H800"]}


def test_a_demand_is_answered_by_a_process_of_its_own() -> None:
    found = post(StandIn(), PATH, {**ASKED, "details": True})
    assert found.status_code == 200
    body = found.json()
    assert len(body["points"]) == len(body["outcomes"]) > 1
    for (attention, ffn, is_split, attention_cards, ffn_cards, tokens), outcome in zip(
        body["points"], body["outcomes"], strict=True
    ):
        assert (
            (attention, ffn)
            == (outcome["attention"]["hardware"], outcome["ffn"]["hardware"])
            == ("H800", "H800")
        )
        assert attention_cards + ffn_cards == outcome["cards"]
        assert is_split == bool(ffn_cards)
        assert tokens == pytest.approx(outcome["tgs"] * outcome["cards"])
        assert outcome["launch"].startswith("step3 serve Step-3")


def test_the_catalogue_names_models_and_cards() -> None:
    found = get(StandIn(), "/planner/catalogue").json()
    assert "Step-3" in [model["name"] for model in found["models"]]
    assert {"H800", "H20"} <= {card["name"] for card in found["cards"]}
    assert found == catalogue_json()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"context": 0}, "context"),
        ({"context": 1 << 40}, "context"),
        ({"context": "8K"}, "context"),
        ({"tpot_ms": 0}, "tpot_ms"),
        ({"tpot_ms": 1e9}, "tpot_ms"),
        ({"cards": []}, "cards"),
        ({"cards": ["H800"] * 5}, "cards"),
        ({"cards": ["H8000"]}, "H8000"),
        ({"model": "no such model"}, "no such model"),
        ({"model": __file__}, "not in the catalogue"),
        ({"context": 1 << 20}, "at most 65,536 tokens"),
        ({"depth": 3}, "depth"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_what_is_wrong(change: dict[str, Any], named: str) -> None:
    refused = post(StandIn(), PATH, {**ASKED, **change})
    assert refused.status_code == 400
    assert named in refused.json()["error"]["message"]


def test_where_nothing_serves_the_demand_the_page_is_told_what_lacks() -> None:
    found = deployments_json("Step-3", 8192, 1.0, ["H800"], details=True)
    assert found["points"] == found["outcomes"] == []
    assert any(one["lack"] == "time" for one in found["obstacles"])


def test_a_search_that_takes_too_long_is_ended_and_the_next_one_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planner = PlannerProcess(longest_seconds=0.2)
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    start = __import__("subprocess").Popen

    def popen(command: list[str], **options: Any) -> Any:
        return start(sleeping, **options)

    monkeypatch.setattr("step3.server.page.planner.subprocess.Popen", popen)

    async def ask_twice() -> None:
        for _ in range(2):
            with pytest.raises(RequestFault) as refused:
                await planner.ask(None)
            assert refused.value.status_code == 503

    asyncio.run(ask_twice())


def test_no_more_searches_wait_than_can_be_served() -> None:
    planner = PlannerProcess()

    async def flood() -> list[Any]:
        asked = [planner.ask({**ASKED, "details": False}) for _ in range(MOST_WAITING + 3)]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(flood())
    refused = [one for one in found if isinstance(one, RequestFault)]
    assert [one.status_code for one in refused] == [429] * 3
