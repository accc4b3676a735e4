"""A process that searches deployments for the planner's page: a JSON line in, a JSON line out.

`step3.server.page.planner` starts it with `python -m step3.server.planner_process`; it ends with its input.
It is a process of its own so that a search never holds up the answers of the server.
"""

from __future__ import annotations

import json
import os
import sys
from functools import lru_cache
from typing import Any

from step3.errors import Step3Error
from step3.plan.errors import HardwareError, ModelError
from step3.plan.evaluate import Demand
from step3.plan.export import outcome_json
from step3.plan.frontier import Frontier, find_frontier
from step3.plan.hardware import ASSUMED, HardwareCatalogue
from step3.plan.launch import launch_command
from step3.plan.models import find_model, model_names
from step3.plan.search import Space
from step3.plan.summary import obstacles
from step3.plan.workload import Contexts

_REMEMBERED = 2048
_OBSTACLES = 4


def catalogue_json() -> dict[str, Any]:
    """The models and cards that the page offers."""
    cards = HardwareCatalogue()
    models = [find_model(name) for name in model_names()]
    return {
        "models": [
            {
                "name": model.name,
                "parameters": model.text_parameters,
                "active_parameters": model.active_parameters,
                "max_context": model.max_context,
            }
            for model in models
        ],
        "cards": [
            {
                "name": card.name,
                "usd_per_hour": card.usd_per_hour,
                "is_assumed": card.price_source == ASSUMED,
                "peak_flops": card.paper_peak,
                "memory_bandwidth": card.memory_bandwidth,
                "memory_bytes": card.memory_bytes,
            }
            for card in map(cards.__getitem__, cards.names)
        ],
    }


def deployments_json(
    model: str, context: int, tpot_ms: float, cards: list[str], details: bool
) -> dict[str, Any]:
    """The deployments that are the cheapest at some prices.

    Returns:
        `points`: for each of them `[attention card, FFN card, is split, attention cards, FFN cards, tokens a
        second]`; `outcomes`: the same ones as `step3 plan --json` has them, if `details` are asked for.

    Raises:
        Step3Error: what is asked for is unknown or cannot be.
    """
    demand, frontier = _search(model, context, tpot_ms, tuple(dict.fromkeys(cards)))
    found: dict[str, Any] = {
        "tried": frontier.tried,
        "points": [
            [
                outcome.deployment.attention.name,
                outcome.deployment.ffn.name,
                not outcome.deployment.is_monolith,
                outcome.deployment.all_attention_cards,
                outcome.deployment.all_ffn_cards,
                outcome.tokens_per_second,
            ]
            for outcome in frontier.outcomes
        ],
    }
    if details:
        found["outcomes"] = [
            {**outcome_json(demand, outcome), "launch": launch_command(outcome, model)}
            for outcome in frontier.outcomes
        ]
        found["obstacles"] = [
            {"lack": one.lack, "card": one.card, "count": one.count, "reason": one.closest.reason}
            for one in obstacles(frontier.infeasible)[:_OBSTACLES]
        ]
    return found


@lru_cache(_REMEMBERED)
def _search(model: str, context: int, tpot_ms: float, cards: tuple[str, ...]) -> tuple[Demand, Frontier]:
    # Only names: `find_model` would also read a file of this machine.
    if model not in model_names():
        raise ModelError(f"model {model[:80]!r} is not in the catalogue: {', '.join(model_names())}")
    catalogue = HardwareCatalogue()
    unknown = [name for name in cards if name not in catalogue.names]
    if unknown:
        raise HardwareError(f"hardware {unknown[0][:60]!r} is unknown: {', '.join(catalogue.names)}")
    chosen = [catalogue[name] for name in cards]
    shape = find_model(model)
    demand = Demand(shape, shape.precision, Contexts.fixed(context), tpot_ms * 1e-3)
    return demand, find_frontier(demand, Space(chosen, chosen))


def answer(line: str) -> dict[str, Any]:
    """What a line is answered with; `error` says why it cannot be."""
    asked = json.loads(line)
    try:
        return catalogue_json() if asked is None else deployments_json(**asked)
    except Step3Error as error:
        return {"error": str(error)}


def main() -> None:
    """Answers the lines of standard input."""
    os.nice(10)
    for line in sys.stdin:
        print(json.dumps(answer(line)), flush=True)


if __name__ == "__main__":
    main()
