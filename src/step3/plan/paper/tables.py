"""Tables 1 to 7 and figures 1 to 5, computed; each in the shape of its section of `paper_tables.json`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from step3.plan.attention import Counting, MultiMatrixAttention
from step3.plan.cost import cheapest_pair, token_cost, training_cost, unit_cost
from step3.plan.ffn import ExpertFFN
from step3.plan.hardware import Hardware, HardwareCatalogue
from step3.plan.models import find_model
from step3.plan.shape import ModelShape, token_work

PAPER_MODELS = (
    "DSv3",
    "Kimi K2",
    "Qwen3 MoE",
    "Qwen3 32B",
    "Llama 4 M",
    "MM M1",
    "ERNIE 4.5",
    "Pangu Pro MoE",
    "Step-3",
)
PAPER_CARDS = ("H800", "H20", "A800", "910B")
K8, K32, K128 = 8192, 32768, 131072
MILLION = 1e6

NICS_PER_NODE = 8
BACK_SECONDS = 0.0111
"""Two thirds of a stage's 16.6 ms: bf16 partial sums take twice the bytes of fp8 activations."""


@dataclass(frozen=True)
class Inputs:
    """What the paper's numbers are computed from."""

    models: dict[str, ModelShape]
    cards: dict[str, Hardware]

    @property
    def paper_cards(self) -> list[Hardware]:
        """The four cards that the paper prices."""
        return [self.cards[name] for name in PAPER_CARDS]


def paper_inputs() -> Inputs:
    """The catalogue's models and cards that the paper names."""
    catalogue = HardwareCatalogue()
    cards = {name: catalogue[name] for name in (*PAPER_CARDS, "L20", "L4")}
    return Inputs({name: find_model(name) for name in PAPER_MODELS}, cards)


def table1(inputs: Inputs) -> dict[str, Any]:
    """The model card of Step-3."""
    model = inputs.models["Step-3"]
    attention = model.layers[0].attention
    assert isinstance(attention, MultiMatrixAttention)
    experts = {i: layer.ffn for i, layer in enumerate(model.layers) if isinstance(layer.ffn, ExpertFFN)}
    first = min(experts)
    words = {4: "four"}
    ends = " and last layer" if len(model.layers) - 1 not in experts else " layers"
    return {
        "n_layers": len(model.layers),
        "hidden_dim": model.hidden,
        "attention": "MFA",
        "low_rank_query_dim": attention.query_rank,
        "n_query_heads": attention.query_heads,
        "head_dim": attention.head_dim,
        "n_shared_experts": experts[first].shared_intermediate // experts[first].intermediate,
        "moe_layers": f"all except the first {words.get(first, first)}{ends}",
        "total_params_llm_b": model.text_parameters / 1e9,
        "activated_params_per_token_b": model.active_parameters / 1e9,
        "total_params_vlm_b": (model.text_parameters + model.vision_parameters) / 1e9,
    }


def work_table(inputs: Inputs, context: int) -> dict[str, Any]:
    """Tables 2 and 3: work of one token."""
    table = {}
    for name, model in inputs.models.items():
        work = token_work(model, context, Counting.PAPER)
        table[name] = {
            "kv_state_bytes": work.kv_bytes,
            "attn_core_flops": work.core_flops,
            "attn_linear_flops": work.linear_flops,
            "ffn_flops": work.ffn_flops,
        }
    return table


def table4(inputs: Inputs) -> dict[str, Any]:
    """Accelerators: inputs, and the roofline's corner, which the paper takes at fp8 where there is fp8."""
    return {
        card.name: {
            "usd_per_hour": card.usd_per_hour,
            "bf16_flops": card.bf16_flops,
            "fp8_flops": card.fp8_flops,
            "mem_bw_bytes_per_s": card.memory_bandwidth,
            "roofline_flop_per_byte": card.paper_peak / card.memory_bandwidth,
        }
        for card in inputs.paper_cards
    }


def table5(inputs: Inputs) -> dict[str, Any]:
    """Cost of one FLOP and of one byte."""
    return {card.name: vars(unit_cost(card)) for card in inputs.paper_cards}


def table6(inputs: Inputs) -> dict[str, Any]:
    """USD for a million tokens, by part and card."""
    table = {}
    for name, model in inputs.models.items():
        parts: dict[str, dict[str, float]] = {"attn_8k": {}, "attn_32k": {}, "ffn": {}}
        for card in inputs.paper_cards:
            near, far = token_cost(model, K8, card), token_cost(model, K32, card)
            parts["attn_8k"][card.name] = near.attention * MILLION
            parts["attn_32k"][card.name] = far.attention * MILLION
            parts["ffn"][card.name] = near.ffn * MILLION
        table[name] = parts
    return table


def table6_caption(inputs: Inputs) -> dict[str, Any]:
    """Active parameters as the models' authors state them: an input."""
    return {name: model.stated_active_billions for name, model in inputs.models.items()}


def minimum_sparsity(card: Hardware, hidden: int, layers: int, nic_bytes: float | None = None) -> float:
    """The least share of experts a token must use for the network to keep up (section 5.4).

    S ≥ H × FLOPs × L / (Net × Bandwidth × 11.1 ms): to compute for as long as its fp8 weights are read, the
    FFN needs FLOPs / (2 × Bandwidth × S) tokens, whose bf16 partial sums, 2 × H bytes a token and layer,
    must pass the node's interfaces in time.
    """
    network = NICS_PER_NODE * (card.network_bandwidth if nic_bytes is None else nic_bytes)
    return hidden * card.paper_peak * layers / (network * card.memory_bandwidth * BACK_SECONDS)


def table7(inputs: Inputs) -> dict[str, Any]:
    """The minimum sparsity of an MoE by card."""
    model = inputs.models["Step-3"]
    hidden, layers = model.hidden, len(model.layers)
    table: dict[str, Any] = {card.name: minimum_sparsity(card, hidden, layers) for card in inputs.paper_cards}
    return {**table, "_H": hidden, "_L": layers}


def afd_usd(inputs: Inputs, model: ModelShape, context: int) -> float:
    """USD for a million tokens with the cheapest card for attention and the cheapest for the FFN."""
    attention, ffn = cheapest_pair(model, context, inputs.paper_cards, inputs.paper_cards)
    return token_cost(model, context, attention, ffn).total * MILLION


def figure1(inputs: Inputs) -> dict[str, Any]:
    """Cost at 8K against active parameters."""
    return {
        name: {
            "cost_usd_per_1m_8k": afd_usd(inputs, model, K8),
            "activated_b": model.stated_active_billions,
        }
        for name, model in inputs.models.items()
    }


def figure2(inputs: Inputs, context: int) -> dict[str, Any]:
    """Cost on each card alone, and with AFD."""
    figure = {}
    for name in ("DSv3", "Qwen3 MoE", "Qwen3 32B", "Step-3"):
        model = inputs.models[name]
        alone = {card.name: token_cost(model, context, card).total * MILLION for card in inputs.paper_cards}
        figure[name] = {**alone, "AFD": afd_usd(inputs, model, context)}
    return figure


_FIGURE3_MODELS = ("Llama 4 M", "MM M1", "Step-3")
_CONTEXTS = {"8K": K8, "32K": K32, "128K": K128}


def figure3_kv(inputs: Inputs) -> dict[str, Any]:
    """Cache and state moved for one token, in GB."""
    return {
        name: {
            label: token_work(inputs.models[name], context, Counting.PAPER).kv_bytes / 1e9
            for label, context in _CONTEXTS.items()
        }
        for name in _FIGURE3_MODELS
    }


def figure3_cost(inputs: Inputs) -> dict[str, Any]:
    """Cost on H800 alone."""
    card = inputs.cards["H800"]
    return {
        name: {
            label: token_cost(inputs.models[name], context, card).total * MILLION
            for label, context in _CONTEXTS.items()
        }
        for name in _FIGURE3_MODELS
    }


def figure4(inputs: Inputs) -> dict[str, Any]:
    """Decoding and training on 910B."""
    card = inputs.cards["910B"]
    return {
        name: {
            "decode_8k": token_cost(inputs.models[name], K8, card).total * MILLION,
            "decode_32k": token_cost(inputs.models[name], K32, card).total * MILLION,
            "train_8k": training_cost(inputs.models[name], K8, card) * MILLION,
        }
        for name in ("Pangu Pro MoE", "Step-3")
    }


def figure5_points(inputs: Inputs) -> dict[str, Any]:
    """Attention on the roofline: GB of cache and GFLOP of core."""
    figure = {}
    for name in ("DSv3", "Qwen3 MoE", "Step-3"):
        works = {
            label: token_work(inputs.models[name], context, Counting.PAPER)
            for label, context in (("8K", K8), ("32K", K32))
        }
        figure[name] = {label: [w.kv_bytes / 1e9, w.core_flops / 1e9] for label, w in works.items()}
    return figure


def figure5_lines(inputs: Inputs) -> dict[str, Any]:
    """Slopes of the cards' lines, and their heights where the paper's plot ends."""
    ends = {"H800": 1.02, "910B": 3.5, "A800": 3.5, "H20": 3.5}
    slopes = {name: inputs.cards[name].paper_peak / inputs.cards[name].memory_bandwidth for name in ends}
    return {**slopes, "_endpoints": {name: [x, slopes[name] * x] for name, x in ends.items()}}


SECTIONS: dict[str, Callable[[Inputs], Any]] = {
    "table1_step3_model_card": table1,
    "table2_8k": lambda inputs: work_table(inputs, K8),
    "table3_32k": lambda inputs: work_table(inputs, K32),
    "table4_accelerators": table4,
    "table5_unit_cost": table5,
    "table6_usd_per_1m_tokens": table6,
    "table6_caption_activated_params_b": table6_caption,
    "table7_min_moe_sparsity": table7,
    "fig1_pareto_8k": figure1,
    "fig2_8k_usd_per_1m": lambda inputs: figure2(inputs, K8),
    "fig2_32k_usd_per_1m": lambda inputs: figure2(inputs, K32),
    "fig3_kv_gb": figure3_kv,
    "fig3_cost_h800_usd_per_1m": figure3_cost,
    "fig4_910b_usd_per_1m": figure4,
    "fig5_points_gb_gflop": figure5_points,
    "fig5_plotted_hw_line_slopes_flop_per_byte": figure5_lines,
}
"""How each section is computed."""
