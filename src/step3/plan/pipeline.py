"""The time of a step in closed form.

M micro-batches (lanes) go round attention → wire → FFN → wire, layer after layer, with no barrier between
them. In steady state a lane comes round either as fast as its own chain allows, or as fast as the busiest
resource serves all M of them: `step = max(chain, M × busiest)`. For deterministic times that are the same
in every layer this is exact; with layers that differ it is a lower bound that the lanes come close to.
"""

from dataclasses import dataclass

from step3.plan.stages import StageTimes

CHAIN = "chain"
"""The binding term when every resource idles: one more micro-batch would raise throughput."""


@dataclass(frozen=True)
class Step:
    """The steady state of a pipeline."""

    seconds: float
    """From one token of a sequence to its next (without multi-token prediction)."""
    binding: str
    """`attention`, `out`, `ffn`, `back`, `card` (both on the same card), or `chain`."""
    busy: dict[str, float]
    """Share of the step that each resource is busy."""


def steady_step(times: StageTimes, lanes: int, shared_card: bool = False) -> Step:
    """The step of `lanes` micro-batches.

    Args:
        times: one micro-batch's stages.
        lanes: micro-batches in flight for each attention card.
        shared_card: attention and FFN run on the same card, one at a time (the monolith).
    """
    if shared_card:
        resources = {"card": times.attention + times.ffn, "out": times.out, "back": times.back}
    else:
        resources = {
            "attention": times.attention,
            "out": times.out,
            "ffn": times.ffn,
            "back": times.back,
        }
    terms = {name: lanes * seconds for name, seconds in resources.items()}
    terms[CHAIN] = times.chain
    binding = max(terms, key=lambda name: terms[name])
    seconds = terms[binding]
    busy = {name: lanes * value / seconds if seconds else 0.0 for name, value in resources.items()}
    if lanes == 1 and binding == CHAIN:
        binding = max(resources, key=lambda name: resources[name])
    return Step(seconds, binding, busy)
