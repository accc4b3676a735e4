"""The numbers in the paper's text: sections 4 to 7 and the introduction's claims."""

import math
from typing import Any

from step3.plan.attention import Counting, MultiMatrixAttention
from step3.plan.ffn import ExpertFFN
from step3.plan.paper.measured import RUNS, predicted
from step3.plan.paper.printed import printed_tables
from step3.plan.paper.tables import (
    K8,
    K32,
    PAPER_CARDS,
    Inputs,
    afd_usd,
    minimum_sparsity,
)
from step3.plan.shape import ModelShape, effective_rank, token_work

TARGET_SECONDS = 0.050
STAGES = 3
STAGE_SECONDS = 0.0166
"""The paper's budget of a stage, 50 ms over three, cut off."""
CARDS_PER_SERVER = 8
OUTPUT_SPLIT = 8
"""Cards that share the output projection in section 6: what makes its 67 MB come out."""

THREE = ("Step-3", "DSv3", "Qwen3 MoE")


def sparsity_of(model: ModelShape) -> tuple[int, int]:
    """Experts that a token uses, shared ones included, and routed experts."""
    ffn = next(layer.ffn for layer in model.layers if isinstance(layer.ffn, ExpertFFN))
    return ffn.top_k + ffn.shared_intermediate // ffn.intermediate, ffn.experts


def section5_4(inputs: Inputs) -> dict[str, Any]:
    """Sparsity: what the network allows, and what the models use."""
    model = inputs.models["Step-3"]
    h800 = inputs.cards["H800"]
    layers = len(model.layers)
    used, experts = sparsity_of(inputs.models["DSv3"])
    step3_used, step3_experts = sparsity_of(model)
    return {
        "stage_budget_ms": TARGET_SECONDS / STAGES * 1e3,
        "rhs_ms": TARGET_SECONDS / STAGES * 2 / 3 * 1e3,
        "dsv3_required_experts_h800": minimum_sparsity(h800, model.hidden, layers) * experts,
        "s_h800_at_40GBps_nic": minimum_sparsity(h800, model.hidden, layers, nic_bytes=40e9),
        "step3_sparsity_approx": step3_used / step3_experts,
        "dsv3_S": f"{used}/{experts}",
        "nic_gbps_per_card": {name: inputs.cards[name].network_bandwidth * 8e-9 for name in PAPER_CARDS},
    }


def section6(inputs: Inputs) -> dict[str, Any]:
    """Step-3 on L20 and L4, at full precision where the paper goes on from rounded numbers.

    In a layer's 272 µs (the stage's 16.6 ms over 61 layers, without the fraction) an attention card reads
    its projections, of which eight cards share the output's, and caches; an FFN card reads weights for half
    of them.
    """
    model, l20, l4 = inputs.models["Step-3"], inputs.cards["L20"], inputs.cards["L4"]
    attention = model.layers[0].attention
    assert isinstance(attention, MultiMatrixAttention)
    layers = len(model.layers)
    budget = math.floor(STAGE_SECONDS / layers * 1e6) * 1e-6
    output = attention.query_heads * attention.head_dim * model.hidden
    weights = attention.linear_parameters(model.hidden) - output + output / OUTPUT_SPLIT
    cached = attention.kept_elements(1)
    caches = l20.memory_bandwidth * budget - weights
    ffn_layer = l20.memory_bandwidth * budget / 2
    servers, servers_l4 = (
        math.ceil(model.ffn_parameters / (card.memory_bandwidth * budget / 2 * layers * CARDS_PER_SERVER))
        for card in (l20, l4)
    )
    return {
        "layer_budget_us": STAGE_SECONDS / layers * 1e6,
        "l20_bw": l20.memory_bandwidth,
        "l20_bytes_in_budget_mb": l20.memory_bandwidth * budget / 1e6,
        "attn_linear_weights_mb": weights / 1e6,
        "kv_budget_mb": caches / 1e6,
        "kv_bytes_per_token_layer": cached,
        "max_total_context_tokens": caches / cached,
        "max_batch_at_8k": caches / cached / K8,
        "l4_bw": l4.memory_bandwidth,
        "l20_ffn_mb_per_layer": ffn_layer / 1e6,
        "l20_ffn_gb_per_card": ffn_layer * layers / 1e9,
        "l20_ffn_gb_per_server": ffn_layer * layers * CARDS_PER_SERVER / 1e9,
        "ffn_weights_gb_approx": model.ffn_parameters / 1e9,
        "l20_servers": servers,
        "l20_cards": servers * CARDS_PER_SERVER,
        "l4_cards": servers_l4 * CARDS_PER_SERVER,
    }


def extrapolated_tgs(measured: float, cards: int, more_cards: int) -> float:
    """Tokens per card and second when only attention cards are added: the same tokens, over more cards."""
    return measured * cards / more_cards


def upcycled_tgs(micro_batch: int, cards: int, tpot: float = TARGET_SECONDS) -> float:
    """Tokens per card and second of three micro-batches that just meet the target."""
    return STAGES * micro_batch / (tpot * cards)


def section7(inputs: Inputs) -> dict[str, Any]:
    """Batches, extrapolations and gains; what was measured is predicted where the model reaches."""
    printed = printed_tables()["text_values"]["sec7"]
    rows = {row["deployment"] or row["model"]: row["peak_tgs"] for row in printed_tables()["table8_peak_tgs"]}
    by_topology = {run.topology: predicted(inputs, run).tgs for run in RUNS}
    return {
        "batch_2A2F": STAGES * printed["microbatch"],
        "batch_3A2F": STAGES * printed["samples_per_A_3A2F"] * 3,
        "tgs_2A2F_peak": by_topology["2A2F"],
        "tgs_4A2F_extrapolated": extrapolated_tgs(rows["2A2F"], 32, 48),
        "tgs_4A2F_measured": by_topology["4A2F"],
        "tgs_16A2F_extrapolated": extrapolated_tgs(rows["2A2F"], 32, 144),
        "tgs_3A4F_upcycle": upcycled_tgs(printed["upcycle_microbatch"], 56),
        "gain_vs_dsv3_pct": (rows["2A2F"] / rows["DSv3-profile"] - 1) * 100,
        "bf16_vs_fp8_drop_pct": (1 - rows["3A2F"] / rows["2A2F"]) * 100,
    }


def intro(inputs: Inputs) -> dict[str, Any]:
    """The introduction's claims, costs at 32K."""
    usd = {name: afd_usd(inputs, inputs.models[name], K32) for name in THREE}
    qwen, deepseek = inputs.models["Qwen3 MoE"], inputs.models["DSv3"]
    stated = {name: inputs.models[name].stated_active_billions or 0.0 for name in THREE}
    nearest = min(usd["DSv3"], usd["Qwen3 MoE"])
    return {
        "qwen3moe_cheaper_than_dsv3_pct": (1 - usd["Qwen3 MoE"] / usd["DSv3"]) * 100,
        "step3_cheaper_than_both_pct": (1 - usd["Step-3"] / nearest) * 100,
        "qwen_fewer_total_pct": (1 - qwen.text_parameters / deepseek.text_parameters) * 100,
        "qwen_fewer_active_pct": (1 - stated["Qwen3 MoE"] / stated["DSv3"]) * 100,
    }


def text_values(inputs: Inputs) -> dict[str, Any]:
    """All of them."""
    models = {name: inputs.models[name] for name in THREE}
    return {
        "sec4_afd_8k_usd": {name: afd_usd(inputs, model, K8) for name, model in models.items()},
        "sec4_afd_32k_usd": {name: afd_usd(inputs, model, K32) for name, model in models.items()},
        "sec5_1_arithmetic_intensity": {
            name: token_work(model, K8, Counting.PAPER).intensity for name, model in models.items()
        },
        "sec5_1_effective_rank": {
            name: effective_rank(model.layers[0].attention) for name, model in models.items()
        },
        "sec5_4": section5_4(inputs),
        "sec6": section6(inputs),
        "sec7": section7(inputs),
        "intro_claims": intro(inputs),
    }
