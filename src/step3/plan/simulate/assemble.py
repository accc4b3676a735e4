"""Scenarios from what a user knows: a model, cards, a topology, a load."""

import math
from dataclasses import dataclass, replace

from step3.plan.deployment import Deployment
from step3.plan.evaluate import Demand, Infeasible, largest_batch, roofline_times
from step3.plan.pipeline import Step, steady_step
from step3.plan.simulate.cache import cache_room
from step3.plan.simulate.errors import SimulationError
from step3.plan.simulate.measured import MeasuredTimes
from step3.plan.simulate.prefill import roofline_prefill
from step3.plan.simulate.requests import Arrivals, ClosedLoop, Lengths, Trace, parse_arrivals
from step3.plan.simulate.scenario import Cards, Scenario
from step3.plan.stages import stage_times
from step3.plan.topology import Topology
from step3.plan.workload import Contexts, parse_contexts


@dataclass(frozen=True)
class Load:
    """The load in the user's words.

    Raises:
        SimulationError: both a context and a prompt are given.
    """

    context: str | None = None
    """Mean context in decoding; None is 8K, unless a prompt or a trace says it."""
    prompt: str | None = None
    output: str = "1K"
    arrivals: str = "closed"

    def __post_init__(self) -> None:
        if self.context is not None and self.prompt is not None:
            raise SimulationError(
                "--context and --prompt contradict each other: a context is the prompt and, on average, half "
                "of the output; give one of them"
            )

    def lengths(self) -> Lengths:
        """How long prompts and outputs are.

        Raises:
            SimulationError, WorkloadError: a length cannot be read, or the context is too short.
        """
        arrivals = parse_arrivals(self.arrivals, 1)
        if isinstance(arrivals, Trace):
            return arrivals.lengths()
        output = parse_contexts(self.output)
        if self.prompt is not None:
            return Lengths(parse_contexts(self.prompt), output)
        return Lengths.around(parse_contexts(self.context or "8K"), output)

    def requests(self, capacity: int) -> Arrivals:
        """How requests come, `capacity` being what `closed` alone keeps under way.

        Raises:
            SimulationError: it cannot be read.
        """
        return parse_arrivals(self.arrivals, capacity)


def planned_scenario(
    demand: Demand, deployment: Deployment, load: Load, lanes: int, batch: int | None, pods: int = 1
) -> Scenario:
    """A scenario with the planner's roofline times.

    Args:
        demand: model, precision and memory; its target fills the deployment where `batch` is None.
        deployment: the cards.
        load: what comes.
        lanes: micro-batches in flight.
        batch: sequences of one micro-batch over all attention cards.
        pods: deployments like this one.

    Raises:
        SimulationError: the weights do not fit, the FFN cannot be divided so, or a value is wrong.
        WorkloadError: a length cannot be read.
    """
    lengths = load.lengths()
    contexts = lengths.decoding_contexts()
    demand = replace(demand, contexts=contexts)
    if batch is not None:
        demand = replace(demand, tpot=math.inf)
    largest = largest_batch(demand, deployment, lanes)
    if isinstance(largest, Infeasible):
        advice = "; give --batch to simulate it all the same" if largest.lack == "time" else ""
        raise SimulationError(f"{deployment.topology} cannot serve this: {largest.reason}{advice}")
    seats = largest.sequences if batch is None else seats_for(batch, deployment.all_attention_cards)
    times = roofline_times(demand, deployment)
    speculation = demand.speculation
    cards = Cards(deployment.attention_cards, deployment.ffn_cards, deployment.usd_per_second)
    room = cache_room(
        demand.model,
        deployment,
        demand.precision,
        contexts.mean,
        speculation.drafts,
        demand.memory_share,
    )
    return Scenario(
        topology=deployment.topology,
        cards=cards,
        times=times,
        prefill_core=roofline_prefill(times),
        arrivals=load.requests(seats * lanes * deployment.all_attention_cards * pods),
        lengths=lengths,
        lanes=lanes,
        seats=seats,
        room=room,
        width=speculation.width,
        tokens_per_step=speculation.tokens_per_step,
        pods=pods,
    )


def measured_scenario(
    times: MeasuredTimes,
    topology: Topology,
    cards: Cards,
    load: Load,
    lanes: int,
    batch: int,
    pods: int = 1,
) -> Scenario:
    """A scenario with measured times.

    Args:
        times: measured.
        topology: the deployment's.
        cards: of its instances.
        load: what comes.
        lanes: micro-batches in flight.
        batch: sequences of one micro-batch over all attention cards.
        pods: deployments like this one.

    Raises:
        SimulationError, WorkloadError: a value is wrong.
    """
    all_cards = topology.attention * cards.attention
    seats = seats_for(batch, all_cards)
    return Scenario(
        topology=topology,
        cards=cards,
        times=times,
        prefill_core=times.prefill_core,
        arrivals=load.requests(seats * lanes * all_cards * pods),
        lengths=load.lengths(),
        lanes=lanes,
        seats=seats,
        pods=pods,
        host=times.host,
    )


def seats_for(batch: int, attention_cards: int) -> int:
    """Sequences of a micro-batch on each card, so that all cards together have room for `batch`.

    Raises:
        SimulationError: the batch is below 1.
    """
    if batch < 1:
        raise SimulationError(f"--batch must be at least 1, not {batch}")
    return -(-batch // attention_cards)


DURATION = 20.0
"""Seconds that are counted unless the user says otherwise."""

SETTLING = 2.0
"""Seconds until a closed loop that begins in mid-decoding runs evenly."""


def with_run(
    scenario: Scenario, duration: float | None, requests: int | None, warmup: float | None
) -> Scenario:
    """The scenario with a beginning and an end.

    A finite number of requests without a duration runs until all have ended. Else `DURATION` is counted,
    after `SETTLING` where a closed loop begins in mid-decoding, and after twice the time that an average
    request takes where it begins empty.

    Raises:
        SimulationError: the values contradict each other.
    """
    ends = requests is not None or isinstance(scenario.arrivals, Trace)
    if duration is None and ends:
        return replace(scenario, duration=None, requests=requests, warmup=warmup or 0.0)
    if warmup is None:
        steady = scenario.steady and isinstance(scenario.arrivals, ClosedLoop)
        whole = scenario.lengths.output.mean * closed_form(scenario).seconds / scenario.tokens_per_step
        warmup = SETTLING if steady else 2 * whole
    return replace(
        scenario, duration=DURATION if duration is None else duration, requests=requests, warmup=warmup
    )


def closed_form(scenario: Scenario) -> Step:
    """What the planner says of the scenario with every seat taken."""
    cards, topology = scenario.cards, scenario.topology
    everyone = cards.attention if topology.is_monolith else cards.attention * topology.attention
    contexts: Contexts = scenario.lengths.decoding_contexts()
    times = stage_times(scenario.times, scenario.seats, scenario.seats * everyone, contexts)
    return steady_step(times, scenario.lanes, topology.is_monolith)
