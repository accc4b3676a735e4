"""What the paper prints, and to which precision."""

import json
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

from step3.plan.catalogue import packaged

Path = tuple[str | int, ...]
"""Keys from a section of `paper_tables.json` down to one number."""


@cache
def printed_tables() -> dict[str, Any]:
    """The transcription of the paper."""
    with packaged("paper_tables.json").open(encoding="utf-8") as file:
        return json.load(file)


def leaves(value: Any, path: Path = ()) -> list[tuple[Path, Any]]:
    """Every printed number or text under `value` with its path, in the paper's order; no empty cells."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in leaves(value[key], (*path, key))]
    if isinstance(value, list):
        return [leaf for index, entry in enumerate(value) for leaf in leaves(entry, (*path, index))]
    return [] if value is None else [(path, value)]


@dataclass(frozen=True)
class Rounding:
    """How a section is printed: to so many decimals, or to so many significant digits."""

    decimals: int | None = None
    digits: int | None = None

    def half_step(self, printed: float) -> float:
        """How far an unrounded number may lie from the printed one."""
        if self.decimals is not None:
            return 0.5 * 10.0**-self.decimals
        if not printed or self.digits is None:
            return 1e-12 * abs(printed)
        return 0.5 * 10.0 ** (math.floor(math.log10(abs(printed))) + 1 - self.digits)

    def holds(self, computed: float, printed: float) -> bool:
        """Whether `computed` rounds to `printed`."""
        return abs(computed - printed) <= self.half_step(printed) + 1e-9 * abs(printed)


EXACT = Rounding()
"""Printed in full."""

_COUNT = Rounding(decimals=0)
_TENTH = Rounding(decimals=1)
_USD = Rounding(decimals=3)

_SECTIONS: dict[str, Rounding] = {
    "table1_step3_model_card": _COUNT,
    "table2_8k": Rounding(digits=3),
    "table3_32k": Rounding(digits=3),
    "table4_accelerators": EXACT,
    "table5_unit_cost": Rounding(digits=3),
    "table6_usd_per_1m_tokens": _USD,
    "table7_min_moe_sparsity": _USD,
    "table8_peak_tgs": _COUNT,
    "table9_us_per_attention_layer": _COUNT,
    "fig1_pareto_8k": _USD,
    "fig2_8k_usd_per_1m": _USD,
    "fig2_32k_usd_per_1m": _USD,
    "fig3_kv_gb": Rounding(decimals=2),
    "fig3_cost_h800_usd_per_1m": _USD,
    "fig4_910b_usd_per_1m": _USD,
    "fig5_points_gb_gflop": Rounding(digits=3),
    "fig5_plotted_hw_line_slopes_flop_per_byte": _COUNT,
    "text_values": EXACT,
}

_KEYS: dict[str, Rounding] = {
    "roofline_flop_per_byte": _COUNT,
    "sec4_afd_8k_usd": _USD,
    "sec4_afd_32k_usd": _USD,
    "sec5_1_arithmetic_intensity": _COUNT,
    "stage_budget_ms": _TENTH,
    "rhs_ms": _TENTH,
    "dsv3_required_experts_h800": _COUNT,
    "s_h800_at_40GBps_nic": _USD,
    "step3_sparsity_approx": Rounding(decimals=2),
    "layer_budget_us": _COUNT,
    "l20_bytes_in_budget_mb": _COUNT,
    "attn_linear_weights_mb": _COUNT,
    "kv_budget_mb": _COUNT,
    "max_total_context_tokens": Rounding(digits=3),
    "max_batch_at_8k": _COUNT,
    "l20_ffn_mb_per_layer": _COUNT,
    "l20_ffn_gb_per_card": _TENTH,
    "l20_ffn_gb_per_server": _TENTH,
    "ffn_weights_gb_approx": Rounding(digits=1),
    "sec7": _COUNT,
    "intro_claims": _COUNT,
}
"""Where a number is printed to another precision than its section's."""


def rounding(where: str, path: Path, printed: Any) -> Rounding:
    """The precision to which a number is printed."""
    if path[-1] == "activated_b" or where == "table6_caption_activated_params_b":
        return _COUNT if float(printed).is_integer() else _TENTH
    for key in reversed(path):
        if key in _KEYS:
            return _KEYS[str(key)]
    return _SECTIONS[where]
