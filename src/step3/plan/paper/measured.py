"""Tables 8 and 9, which the paper measured: what the roofline says, and what the one implies for the other.

Table 9 times attention layers at two contexts. Between them only the attention's core grows, so the two
times give two efficiencies: the core's and the projections'. FFN and head, which table 9 does not time,
are taken to run at the projections' efficiency; links at their full bandwidth. With these, and nothing
fitted to table 8, the throughput of its deployments follows.
"""

from dataclasses import dataclass, replace
from typing import Any

from step3.plan.deployment import Deployment, monolith
from step3.plan.efficiency import Efficiencies, Efficiency
from step3.plan.evaluate import Demand, Outcome, at_batch
from step3.plan.hardware import Hardware, HardwareCatalogue
from step3.plan.paper.printed import printed_tables
from step3.plan.paper.tables import K8, K32, Inputs, paper_inputs
from step3.plan.roofline import RooflineTimes
from step3.plan.topology import parse_topology
from step3.plan.workload import Contexts

TABLE9_MODELS = {"MFA-Step3": "Step-3", "MLA-DSv3": "DSv3", "GQA-Qwen3": "Qwen3 MoE"}
TABLE9_CARDS = 4
TABLE9_BATCH = 256
LANES = 3
NODE = 8


def attention_bound(inputs: Inputs, row: str, card: Hardware, context: int) -> dict[str, float]:
    """Seconds of table 9's attention layer by kernel, at the card's own efficiencies.

    bf16 cache, 8-bit projections, 256 sequences on four cards: each serves 64 of them (MFA, MLA), or all of
    them with a quarter of the heads (GQA); either way a card does a quarter of the work.
    """
    model = inputs.models[TABLE9_MODELS[row]]
    weights = "fp8" if card.fp8_flops else "int8"
    precision = replace(model.precision, attention_weights=weights, kv="bf16", kv_windowed="bf16")
    times = RooflineTimes(model, monolith(card, 1), precision)
    if row != "GQA-Qwen3":
        return times.attention_parts(0, TABLE9_BATCH / TABLE9_CARDS, Contexts.fixed(context))
    whole = times.attention_parts(0, TABLE9_BATCH, Contexts.fixed(context))
    return {kernel: seconds / TABLE9_CARDS for kernel, seconds in whole.items()}


def table9(inputs: Inputs) -> dict[str, Any]:
    """The roofline bound of each of table 9's layers, in microseconds."""
    bounds: dict[str, Any] = {}
    for label, context in (("8k", K8), ("32k", K32)):
        bounds[label] = {}
        for row in TABLE9_MODELS:
            bounds[label][row] = {}
            for name in ("H800", "H20", "A800"):
                parts = attention_bound(inputs, row, inputs.cards[name], context)
                bounds[label][row][name] = (parts["core"] + parts["linear"]) * 1e6
    return bounds


def implied_efficiencies(inputs: Inputs, card: Hardware, row: str = "MFA-Step3") -> Efficiencies:
    """The efficiencies that table 9's two times of a row imply for a card (H800, H20 or A800)."""
    measured = printed_tables()["table9_us_per_attention_layer"]
    near, far = (measured[label][row][card.name] * 1e-6 for label in ("8k", "32k"))
    near_bound = attention_bound(inputs, row, card, K8)
    far_bound = attention_bound(inputs, row, card, K32)
    core = (far_bound["core"] - near_bound["core"]) / (far - near)
    linear = near_bound["linear"] / (near - near_bound["core"] / core)
    attention, matrices = (Efficiency(share, share) for share in (core, linear))
    return Efficiencies(attention=attention, linear=matrices, ffn=matrices)


def with_table9_efficiencies(catalogue: HardwareCatalogue) -> HardwareCatalogue:
    """The catalogue, with H800, H20 and A800 as efficient as table 9 implies for Step-3's attention."""
    inputs = paper_inputs()
    cards = [catalogue[name] for name in ("H800", "H20", "A800")]
    return catalogue.changed(
        {
            card.name: replace(card, efficiencies=implied_efficiencies(inputs, inputs.cards[card.name]))
            for card in cards
        }
    )


@dataclass(frozen=True)
class Run:
    """One of table 8's own deployments."""

    topology: str
    batch: int
    context: int
    kv: str


RUNS = (
    Run("3A2F", 6048, 4096, "bf16"),
    Run("2A2F", 6144, 4096, "fp8"),
    Run("4A2F", 6144, 8192, "fp8"),
)
"""In the order of table 8's last three rows; batches from section 7."""


def predicted(inputs: Inputs, run: Run) -> Outcome:
    """A run of table 8 at its own batch, with the efficiencies that table 9 implies for H800."""
    card = inputs.cards["H800"]
    card = replace(card, efficiencies=implied_efficiencies(inputs, card))
    deployment = Deployment(parse_topology(run.topology), card, NODE, card, NODE)
    model = inputs.models["Step-3"]
    demand = Demand(
        model=model,
        precision=replace(model.precision, kv=run.kv),
        contexts=Contexts.fixed(run.context),
        tpot=0.050,
    )
    return at_batch(demand, deployment, LANES, run.batch // LANES // deployment.all_attention_cards)


def table8(inputs: Inputs) -> list[dict[str, Any]]:
    """Table 8; its first two rows are quoted from others."""
    rows: list[dict[str, Any]] = [{"model": "DSv3-blog"}, {"model": "DSv3-profile"}]
    for run in RUNS:
        outcome = predicted(inputs, run)
        rows.append(
            {
                "model": f"Step-3 ({run.kv.upper()} attention)",
                "context_len_avg": run.context,
                "n_gpus": outcome.deployment.cards,
                "deployment": run.topology,
                "peak_tgs": outcome.tgs,
            }
        )
    return rows
