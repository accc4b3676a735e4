"""Every printed number beside the computed one, and the reason where they differ."""

from dataclasses import dataclass
from typing import Any

from step3.plan.paper.measured import table8, table9
from step3.plan.paper.printed import Path, leaves, printed_tables, rounding
from step3.plan.paper.tables import SECTIONS, Inputs, paper_inputs
from step3.plan.paper.text import text_values

INPUT = "input of the paper"
_MEASURED9 = "roofline bound, {share:.0%} of the measured"
_PREDICTED = "predicted from table 9, {error:+.1%}"
_MEASURED_TGS = ("peak_tgs", "tgs_2A2F_peak", "tgs_4A2F_measured")
_CUT = "cut off, not rounded"
_FROM_ROUNDED = "the paper goes on from rounded numbers"
_LIGHTNING = "fitted constant: 10 FLOPs a state element; first principles give 5"
_STATED = "as the model's authors state it; counted from the sizes: {counted:.1f}"

_NOTES: dict[Path, str] = {
    ("table5_unit_cost", "H800", "usd_per_flop"): "misprint: 2.806e-19 is printed 2.80e-19",
    ("fig3_cost_h800_usd_per_1m", "Llama 4 M", "128K"): "misprint: 1.177 is plotted at 1.117",
    ("fig4_910b_usd_per_1m", "Pangu Pro MoE", "decode_8k"): "the paper adds table 6's rounded cells",
    ("fig4_910b_usd_per_1m", "Step-3", "decode_8k"): "the paper adds table 6's rounded cells",
    ("fig5_plotted_hw_line_slopes_flop_per_byte", "H800"): "plotted at 637, table 4 says 591",
    ("fig5_plotted_hw_line_slopes_flop_per_byte", "_endpoints", "H800", 1): "plotted with slope 637, not 591",
    ("text_values", "sec5_4", "stage_budget_ms"): _CUT,
    ("text_values", "sec5_4", "dsv3_required_experts_h800"): f"{_CUT}: 14 routed experts and the shared one",
    ("text_values", "sec6", "attn_linear_weights_mb"): "all projections, the output's shared by eight cards",
    ("text_values", "sec6", "max_total_context_tokens"): f"{_FROM_ROUNDED}: 168 MB / 512",
    ("text_values", "sec6", "max_batch_at_8k"): f"{_FROM_ROUNDED}, and 8K as 8,000: 328,000 / 8,000",
    ("text_values", "sec6", "l20_ffn_mb_per_layer"): "117.5 rounded down",
    ("text_values", "sec6", "l20_ffn_gb_per_card"): f"{_FROM_ROUNDED}: 117 MB × 61",
    ("text_values", "sec6", "l20_ffn_gb_per_server"): f"{_FROM_ROUNDED}: 8 × 7.1 GB",
    ("text_values", "sec6", "l4_cards"): "the paper scales the rounded 48 L20 by the bandwidths' ratio",
    ("text_values", "sec7", "tgs_2A2F_long_term"): "measured",
    ("text_values", "sec7", "upcycle_microbatch"): "follows from no formula of the paper",
    ("text_values", "sec7", "tgs_upcycle_bf16_attn"): "measured",
    ("text_values", "sec7", "tgs_3A4F_upcycle"): "at 50 ms a token; 4039 implies 47.5 ms",
    ("text_values", "sec7", "mtp_gain_pct"): "expected, without a derivation",
    ("text_values", "sec7", "dsv3_decode_gpus"): "quoted from DeepSeek's report",
    ("text_values", "sec7", "microbatch"): INPUT,
    ("text_values", "sec7", "samples_per_A_3A2F"): INPUT,
    ("text_values", "intro_claims", "qwen3moe_cheaper_than_dsv3_pct"): "about; computed at 32K",
    ("text_values", "intro_claims", "step3_cheaper_than_both_pct"): (
        "holds at 32K (39 % and 33 %); at 8K it is 19 % and 11 %"
    ),
    ("text_values", "intro_claims", "qwen_fewer_active_pct"): "about",
}  # fmt: skip
"""Why a cell differs, or what to know of it."""


@dataclass(frozen=True)
class Cell:
    """One printed number or text."""

    where: str
    """Section of `paper_tables.json`."""
    path: Path
    """Keys below it."""
    computed: Any
    """At full precision; None where nothing can be computed."""
    printed: Any
    within_rounding: bool | None
    """Whether `computed` rounds to `printed`; None where nothing is computed."""
    note: str | None

    @property
    def is_measured(self) -> bool:
        """Whether the paper measured what is computed here."""
        return self.where.startswith(("table8", "table9")) or self.path[-1] in _MEASURED_TGS

    def as_json(self) -> dict[str, Any]:
        """As `step3 paper --json` prints it."""
        return {**vars(self), "path": list(self.path)}


def computed_sections(inputs: Inputs) -> dict[str, Any]:
    """All that is computed, in the shape of `paper_tables.json`."""
    sections = {where: compute(inputs) for where, compute in SECTIONS.items()}
    sections["table8_peak_tgs"] = table8(inputs)
    sections["table9_us_per_attention_layer"] = table9(inputs)
    sections["text_values"] = text_values(inputs)
    return sections


def paper_cells(inputs: Inputs | None = None) -> list[Cell]:
    """Every cell of every table, figure and text value, in the paper's order."""
    inputs = inputs or paper_inputs()
    sections = computed_sections(inputs)
    return [
        _cell(where, path, printed, sections[where], inputs)
        for where, section in printed_tables().items()
        if where in sections
        for path, printed in leaves(section)
        if path[-1] != "_setup"
    ]


def _cell(where: str, path: Path, printed: Any, section: Any, inputs: Inputs) -> Cell:
    computed = _find(section, path)
    within = None
    if computed is not None:
        if isinstance(printed, str):
            within = computed == printed
        else:
            within = rounding(where, path, printed).holds(computed, printed)
    return Cell(where, path, computed, printed, within, _note(where, path, computed, printed, inputs))


def _find(section: Any, path: Path) -> Any:
    """The value at `path`, or None where the section has none."""
    for key in path:
        try:
            section = section[key]
        except (KeyError, IndexError):
            return None
    return section


def _note(where: str, path: Path, computed: Any, printed: Any, inputs: Inputs) -> str | None:
    if (where, *path) in _NOTES:
        return _NOTES[(where, *path)]
    if where == "table9_us_per_attention_layer" and computed is not None:
        return _MEASURED9.format(share=computed / printed)
    if (
        path[-1] == "peak_tgs" or path[-1] in ("tgs_2A2F_peak", "tgs_4A2F_measured")
    ) and computed is not None:
        return _PREDICTED.format(error=computed / printed - 1)
    if path[0] == "MM M1" and path[-1] == "attn_core_flops":
        return _LIGHTNING
    if path[-1] == "activated_b" or where == "table6_caption_activated_params_b":
        return _STATED.format(counted=inputs.models[str(path[0])].active_parameters / 1e9)
    given = where == "table4_accelerators" and path[-1] != "roofline_flop_per_byte"
    if given or path[-1] in ("_H", "_L", "l20_bw", "l4_bw") or "nic_gbps_per_card" in path:
        return INPUT
    if where == "table8_peak_tgs":
        quoted = computed is None
        return "quoted from DeepSeek's reports" if quoted else INPUT if path[-1] != "n_gpus" else None
    if "_endpoints" in path and path[-1] == 0:
        return INPUT
    return None
