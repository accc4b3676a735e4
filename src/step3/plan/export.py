"""A plan as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from step3.plan.advice import Variation, Verdict
from step3.plan.attention import Counting
from step3.plan.deployment import Deployment
from step3.plan.evaluate import Demand, Infeasible, Outcome
from step3.plan.launch import launch_command
from step3.plan.search import Ranking, Space
from step3.plan.shape import token_work
from step3.plan.summary import stages, theory


def plan_json(
    demand: Demand,
    space: Space,
    ranking: Ranking,
    verdict: Verdict,
    variations: Sequence[Variation],
    checkpoint: str,
    top: int,
) -> dict[str, Any]:
    """Everything that `step3 plan` shows, in SI units unless a name says otherwise."""
    best = ranking.feasible[0] if ranking.feasible else None
    return {
        "model": model_json(demand),
        "demand": {
            "tpot_ms": demand.tpot * 1e3,
            "mean_context": demand.contexts.mean,
            "longest_context": demand.contexts.longest,
            "drafts": demand.speculation.drafts,
            "acceptance": demand.speculation.acceptance,
            "expert_imbalance": demand.imbalance,
            "memory_share": demand.memory_share,
        },
        "deployments": [outcome_json(demand, outcome) for outcome in ranking.feasible[:top]],
        "endless_batch": asdict(theory(demand, space)),
        "feasible": len(ranking.feasible),
        "infeasible": [infeasible_json(entry) for entry in ranking.infeasible],
        "verdict": asdict(verdict),
        "sensitivity": [
            {
                "change": variation.change,
                "usd_per_million": variation.usd_per_million,
                "best": None if variation.best is None else outcome_json(demand, variation.best),
            }
            for variation in variations
        ],
        "launch": None if best is None else launch_command(best, checkpoint),
    }


def model_json(demand: Demand) -> dict[str, Any]:
    """The model and the work of one of its tokens."""
    model = demand.model
    return {
        "name": model.name,
        "parameters": model.text_parameters,
        "active_parameters": model.active_parameters,
        "precision": asdict(demand.precision),
        "token": asdict(token_work(model, demand.contexts.mean, Counting.EXACT, demand.precision)),
    }


def deployment_json(deployment: Deployment) -> dict[str, Any]:
    """The cards of a deployment."""
    topology = deployment.topology
    return {
        "topology": str(topology),
        "attention": {
            "hardware": deployment.attention.name,
            "instances": topology.attention,
            "cards_each": deployment.attention_cards,
        },
        "ffn": {
            "hardware": deployment.ffn.name,
            "instances": topology.ffn,
            "cards_each": deployment.ffn_cards,
            "expert_parallel": topology.expert_parallel,
            "tensor_parallel": topology.tensor_parallel,
            "replicas": topology.replicas,
        },
        "cards": deployment.cards,
        "usd_per_hour": deployment.usd_per_second * 3600,
    }


def outcome_json(demand: Demand, outcome: Outcome) -> dict[str, Any]:
    """What a deployment achieves."""
    memory = outcome.memory
    return {
        **deployment_json(outcome.deployment),
        "micro_batches": outcome.lanes,
        "sequences_per_card_and_micro_batch": outcome.sequences,
        "batch": outcome.batch,
        "tpot_ms": outcome.tpot * 1e3,
        "tgs": outcome.tgs,
        "usd_per_million": outcome.usd_per_million,
        "bound_by": outcome.reason,
        "memory_full": outcome.full,
        "stages": [
            {"name": stage.name, "ms_per_step": stage.seconds * 1e3, "slack": stage.slack}
            for stage in stages(demand, outcome)
        ],
        "busy": outcome.step.busy,
        "memory_bytes": {
            "attention_weights": memory.attention_weights,
            "caches": memory.sequence * outcome.sequences * outcome.lanes,
            "attention_room": memory.attention_room,
            "ffn_weights": memory.ffn_weights,
            "ffn_room": memory.ffn_room,
        },
        "network_gbit_s": {"attention_card": outcome.attention_gbit_s, "ffn_card": outcome.ffn_gbit_s},
    }


def infeasible_json(entry: Infeasible) -> dict[str, Any]:
    """A deployment that cannot serve, and why."""
    return {
        **deployment_json(entry.deployment),
        "micro_batches": entry.lanes,
        "lack": entry.lack,
        "reason": entry.reason,
    }
