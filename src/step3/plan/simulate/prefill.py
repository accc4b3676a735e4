"""What the attention's core takes for prompt tokens: many queries share one reading of the cache."""

from step3.plan.attention import Counting, cache_part, read_elements
from step3.plan.roofline import RooflineTimes, roofline
from step3.plan.shape import cache_bytes
from step3.plan.simulate.calls import PrefillCore


def roofline_prefill(times: RooflineTimes) -> PrefillCore:
    """The time of the core for a chunk of one prompt, from first principles.

    Each of the chunk's tokens scores all before it, half of the chunk on average; the cache is read once.
    """
    card, model, precision = times.deployment.attention, times.model, times.precision

    def core(layer: int, tokens: int, before: float) -> float:
        kind = model.layers[min(layer, len(model.layers) - 1)].attention
        return roofline(
            card,
            card.efficiencies.attention,
            flops=tokens * kind.core_flops(before + tokens / 2, Counting.EXACT),
            kind=getattr(precision, cache_part(kind)),
            moved=cache_bytes(kind, read_elements(kind, before + tokens), precision),
        )

    return core
