"""What one deployment achieves: the largest batch that keeps the target, and everything that follows."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from step3.plan.deployment import Deployment
from step3.plan.errors import PlanError
from step3.plan.ffn import ExpertFFN
from step3.plan.memory import MemoryFit, memory_fit
from step3.plan.pipeline import CHAIN, Step, steady_step
from step3.plan.precision import Precision, wire_bytes
from step3.plan.roofline import RooflineTimes, Speculation
from step3.plan.shape import ModelShape
from step3.plan.stages import StageTimes, stage_times
from step3.plan.workload import Contexts

ROUND_TRIP = "round trip"
"""The reason when no card is the bottleneck: one more micro-batch in flight would raise throughput."""

MAX_SEQUENCES = 1 << 20
"""Sequences of one micro-batch of one card beyond which none is tried."""


@dataclass(frozen=True)
class Demand:
    """What is to be served, and how fast.

    Raises:
        PlanError: a value is out of its range, or the contexts are longer than the model's longest.
    """

    model: ModelShape
    precision: Precision
    contexts: Contexts
    tpot: float
    """Most seconds from one token of a sequence to its next."""
    speculation: Speculation = field(default_factory=Speculation)
    imbalance: float = 1.0
    """Tokens of the busiest range of experts over the mean."""
    memory_share: float = 0.9
    """Share of a card's memory for weights and caches."""

    def __post_init__(self) -> None:
        if not self.tpot > 0:
            raise PlanError(f"the TPOT target must be above 0 ms, not {self.tpot * 1e3:g}")
        if not 1 <= self.imbalance <= 1000:
            raise PlanError(f"the imbalance of experts must be from 1 to 1000, not {self.imbalance:g}")
        if not 0 < self.memory_share <= 1:
            raise PlanError(f"the share of memory must be above 0 and at most 1, not {self.memory_share:g}")
        if not 0 <= self.speculation.drafts <= 16 or not 0 <= self.speculation.acceptance <= 1:
            raise PlanError("multi-token prediction takes 0 to 16 drafts and an acceptance from 0 to 1")
        longest = self.model.max_context
        if longest is not None and self.contexts.mean > longest:
            raise PlanError(
                f"{self.model.name} takes at most {longest:,} tokens, and the contexts average "
                f"{self.contexts.mean:,.0f}"
            )


@dataclass(frozen=True)
class Outcome:
    """What a deployment achieves at its batch."""

    deployment: Deployment
    lanes: int
    sequences: int
    """Of one micro-batch on one attention card."""
    batch: int
    """Sequences in decoding on the whole deployment."""
    times: StageTimes
    step: Step
    tokens_per_step: float
    memory: MemoryFit
    full: bool
    """Whether memory, not the target, ends the batch."""
    reason: str
    """What binds, in words."""
    attention_gbit_s: float
    """Mean load of one attention card's network interface, out and back together."""
    ffn_gbit_s: float
    """The same of one FFN card's."""

    @property
    def tpot(self) -> float:
        """Seconds from token to token."""
        return self.step.seconds / self.tokens_per_step

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens of the whole deployment."""
        return self.batch / self.tpot

    @property
    def tgs(self) -> float:
        """Tokens per card and second."""
        return self.tokens_per_second / self.deployment.cards

    @property
    def usd_per_million(self) -> float:
        """USD for 1,000,000 tokens."""
        return self.deployment.usd_per_second / self.tokens_per_second * 1e6


@dataclass(frozen=True)
class Infeasible:
    """Why a deployment cannot serve the demand."""

    deployment: Deployment
    lanes: int
    lack: str
    """What is lacking: `experts`, `FFN memory`, `memory` or `time`."""
    reason: str
    excess: float
    """How many times what there is would be needed."""


def roofline_times(demand: Demand, deployment: Deployment) -> RooflineTimes:
    """The time model of a deployment under a demand."""
    return RooflineTimes(demand.model, deployment, demand.precision, demand.speculation, demand.imbalance)


def largest_batch(demand: Demand, deployment: Deployment, lanes: int) -> Outcome | Infeasible:
    """The deployment filled until the target or the memory ends it; a larger batch is always cheaper.

    Args:
        demand: what is to be served.
        deployment: the cards.
        lanes: micro-batches in flight for each attention card.
    """
    memory = _memory(demand, deployment)
    lacking = _too_many_ranges(demand, deployment, lanes) or _too_little_memory(
        demand, deployment, memory, lanes
    )
    if lacking is not None:
        return lacking
    times = roofline_times(demand, deployment)

    def tpot(sequences: int) -> float:
        stages = stage_times(times, sequences, deployment.merged(sequences), demand.contexts)
        return steady_step(stages, lanes, deployment.is_monolith).seconds / demand.speculation.tokens_per_step

    room = min(memory.sequences // lanes, MAX_SEQUENCES)
    if tpot(1) > demand.tpot:
        outcome = at_batch(demand, deployment, lanes, 1)
        why = (
            f"one sequence a micro-batch already takes {outcome.tpot * 1e3:.2f} ms a token, not "
            f"{demand.tpot * 1e3:g}: {outcome.reason}"
        )
        return Infeasible(deployment, lanes, "time", why, outcome.tpot / demand.tpot)
    return at_batch(demand, deployment, lanes, _last(room, tpot, demand.tpot))


def _last(most: int, grows: Callable[[int], float], limit: float) -> int:
    """The largest number from 1 to `most` at which a growing function keeps its limit; it does at 1.

    The function is close to a line: each round tries where the line between the bracket's ends meets the
    limit, then its neighbour, which is likely to close the bracket, then the middle.
    """
    low, high = 1, most
    at_low, at_high = grows(low), grows(high)
    if at_high <= limit:
        return most
    last, turn = low, 0
    while high - low > 1:
        if turn % 3 == 0:
            guess = int(low + (high - low) * (limit - at_low) / (at_high - at_low))
        elif turn % 3 == 1:
            guess = low + 1 if last == low else high - 1
        else:
            guess = (low + high) // 2
        last = guess = min(max(guess, low + 1), high - 1)
        value = grows(guess)
        if value <= limit:
            low, at_low = guess, value
        else:
            high, at_high = guess, value
        turn += 1
    return low


def at_batch(demand: Demand, deployment: Deployment, lanes: int, sequences: int) -> Outcome:
    """The deployment with so many sequences in each micro-batch of each attention card."""
    times = roofline_times(demand, deployment)
    stages = stage_times(times, sequences, deployment.merged(sequences), demand.contexts)
    step = steady_step(stages, lanes, deployment.is_monolith)
    memory = _memory(demand, deployment)
    full = (sequences + 1) * lanes > memory.sequences
    attention_load, ffn_load = _network_loads(demand, deployment, times, sequences)
    return Outcome(
        deployment=deployment,
        lanes=lanes,
        sequences=sequences,
        batch=sequences * lanes * deployment.all_attention_cards,
        times=stages,
        step=step,
        tokens_per_step=demand.speculation.tokens_per_step,
        memory=memory,
        full=full,
        reason=_reason(demand, times, step, sequences, full),
        attention_gbit_s=lanes * attention_load / step.seconds * 8e-9,
        ffn_gbit_s=lanes * ffn_load / step.seconds * 8e-9,
    )


def _memory(demand: Demand, deployment: Deployment) -> MemoryFit:
    drafts = demand.speculation.drafts
    return memory_fit(
        demand.model, deployment, demand.precision, demand.contexts, drafts, demand.memory_share
    )


def _too_many_ranges(demand: Demand, deployment: Deployment, lanes: int) -> Infeasible | None:
    """Why the experts cannot be divided like this, or None."""
    experts = [layer.ffn.experts for layer in demand.model.layers if isinstance(layer.ffn, ExpertFFN)]
    ways = deployment.expert_ways
    if experts and ways > min(experts):
        why = f"{ways} ranges of experts are more than the {min(experts)} experts"
        return Infeasible(deployment, lanes, "experts", why, ways / min(experts))
    if not experts and not deployment.is_monolith and ways > 1:
        why = f"{demand.model.name} has no experts to divide: cut its FFN by tensor (tp{ways})"
        return Infeasible(deployment, lanes, "experts", why, float(ways))
    return None


def _too_little_memory(
    demand: Demand, deployment: Deployment, memory: MemoryFit, lanes: int
) -> Infeasible | None:
    """Which weights or caches do not fit, or None."""
    if not deployment.is_monolith and not memory.ffn_fits:
        why = (
            f"FFN weights take {_gib(memory.ffn_weights)} on each {deployment.ffn.name}, "
            f"which offers {_gib(memory.ffn_room)}"
        )
        return Infeasible(deployment, lanes, "FFN memory", why, memory.ffn_weights / memory.ffn_room)
    if memory.attention_weights > memory.attention_room:
        why = (
            f"weights take {_gib(memory.attention_weights)} on each {deployment.attention.name}, "
            f"which offers {_gib(memory.attention_room)}"
        )
        excess = memory.attention_weights / memory.attention_room
        return Infeasible(deployment, lanes, "memory", why, excess)
    if memory.sequences < lanes:
        free, needed = memory.attention_room - memory.attention_weights, memory.sequence * lanes
        why = (
            f"each {deployment.attention.name} has {_gib(free)} left for caches, and a sequence of "
            f"{demand.contexts.mean:,.0f} tokens takes {_gib(memory.sequence)}, one for each of the "
            f"micro-batches in flight ({lanes})"
        )
        return Infeasible(
            deployment, lanes, "memory", why, (needed + memory.attention_weights) / memory.attention_room
        )
    return None


def _gib(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB"


def _network_loads(
    demand: Demand, deployment: Deployment, times: RooflineTimes, sequences: int
) -> tuple[float, float]:
    """Bytes through one attention card's and one FFN card's network interface in one step of one lane."""
    each = demand.model.hidden * (
        wire_bytes(demand.precision.wire_out) + wire_bytes(demand.precision.wire_back)
    )
    attention = ffn = 0.0
    for layer, count in Counter(times.layer_kinds).items():
        mine = each * sequences * times.tokens_per_sequence(layer)
        load = times.network_load(layer, mine, deployment.merged(mine))
        attention += count * load.attention_card
        ffn += count * load.ffn_card
    return attention, ffn


def _reason(demand: Demand, times: RooflineTimes, step: Step, sequences: int, full: bool) -> str:
    deployment = times.deployment
    if full:
        return f"memory of {deployment.attention.name}"
    if step.binding == CHAIN:
        return ROUND_TRIP
    if step.binding in ("out", "back"):
        return f"the wire, way {step.binding}"
    parts = dict.fromkeys(("core", "linear", "router", "head"), 0.0)
    parts["head"] = times.head(sequences)
    ffn = 0.0
    for layer, count in Counter(times.layer_kinds).items():
        for part, seconds in times.attention_parts(layer, sequences, demand.contexts).items():
            parts[part] += count * seconds
        ffn += count * times.ffn(layer, deployment.merged(sequences))
    longest = max(parts, key=lambda part: parts[part])
    if step.binding == "ffn" or (step.binding == "card" and ffn > parts[longest]):
        return f"FFN on {deployment.ffn.name}"
    names = {"core": "attention's core", "linear": "projections", "router": "router", "head": "output head"}
    return f"{names[longest]} on {deployment.attention.name}"
