"""Every deployment within bounds, ranked by what a token costs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from step3.plan.deployment import Deployment, monolith
from step3.plan.errors import PlanError
from step3.plan.evaluate import Demand, Infeasible, Outcome, largest_batch
from step3.plan.ffn import ExpertFFN
from step3.plan.hardware import Hardware
from step3.plan.shape import ModelShape
from step3.plan.topology import Topology, TopologyError, make_topology

MONOLITH_LANES = (1, 2)
"""Without AFD one micro-batch computes while the other is on the wire; more bring nothing."""


@dataclass(frozen=True)
class Space:
    """Which deployments are tried.

    Raises:
        PlanError: a bound is out of its range, or there is no hardware.
    """

    attention: Sequence[Hardware]
    """Cards to choose from for attention."""
    ffn: Sequence[Hardware]
    """Cards to choose from for the FFN."""
    most_attention: int = 16
    """Attention instances at most."""
    most_ffn: int = 8
    """FFN instances at most."""
    most_cards: int = 1024
    attention_cards: int | None = None
    """Cards of an attention instance; None is a whole node."""
    ffn_cards: int | None = None
    lanes: Sequence[int] = (3, 4)
    """Micro-batches in flight to try with AFD: 3 for the stages attention, wire and FFN; 4 with each way of
    the wire a stage."""
    sharding: str | None = None
    """How FFN instances share the FFN; None is by expert, or by tensor where there are no experts."""
    replicas: int = 1

    def __post_init__(self) -> None:
        if not self.attention or not self.ffn:
            raise PlanError("name at least one card for attention and one for the FFN")
        limits = {"most_attention": 64, "most_ffn": 64, "most_cards": 10_000, "replicas": 64}
        for name, most in limits.items():
            if not 1 <= getattr(self, name) <= most:
                words = name.replace("_", " ")
                raise PlanError(f"{words} must be from 1 to {most}, not {getattr(self, name)}")
        if not self.lanes or not all(1 <= lanes <= 64 for lanes in self.lanes):
            raise PlanError(f"micro-batches in flight must be from 1 to 64, not {list(self.lanes)}")
        for count in (self.attention_cards, self.ffn_cards):
            if count is not None and not 1 <= count <= 1024:
                raise PlanError(f"cards of an instance must be from 1 to 1024, not {count}")


def parse_lanes(text: str) -> list[int]:
    """Read `3,4`.

    Raises:
        PlanError: it is no list of whole numbers.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise PlanError(f"{text[:60]!r} is no list of micro-batches in flight: write 3, or 3,4") from None


@dataclass(frozen=True)
class Ranking:
    """What the search found."""

    feasible: list[Outcome] = field(default_factory=list)
    """Cheapest first."""
    infeasible: list[Infeasible] = field(default_factory=list)

    @property
    def afd(self) -> list[Outcome]:
        """Those that keep attention and FFN apart."""
        return [outcome for outcome in self.feasible if not outcome.deployment.is_monolith]

    @property
    def monoliths(self) -> list[Outcome]:
        """Those that do not."""
        return [outcome for outcome in self.feasible if outcome.deployment.is_monolith]

    def best(self) -> Outcome:
        """The cheapest.

        Raises:
            PlanError: nothing is feasible; what lacked least is named for each thing that lacks.
        """
        if self.feasible:
            return self.feasible[0]
        closest: dict[str, Infeasible] = {}
        for entry in sorted(self.infeasible, key=lambda entry: entry.excess):
            closest.setdefault(entry.lack, entry)
        why = [f"{lack}: {entry.reason}" for lack, entry in closest.items() if lack != "experts"]
        raise PlanError(
            "no deployment meets this demand; closest by " + "; by ".join(why or ["nothing tried"])
        )


def candidates(model: ModelShape, space: Space) -> Iterator[tuple[Deployment, int]]:
    """Deployments to try, with their micro-batches in flight."""
    for card in _distinct([*space.attention, *space.ffn]):
        for cards in _monolith_sizes(card, space):
            for lanes in MONOLITH_LANES if cards > 1 else (1,):
                yield monolith(card, cards), lanes
    for attention in space.attention:
        for ffn in space.ffn:
            attention_cards = space.attention_cards or attention.cards_per_node
            ffn_cards = space.ffn_cards or ffn.cards_per_node
            for topology in _topologies(model, space):
                deployment = Deployment(topology, attention, attention_cards, ffn, ffn_cards)
                if deployment.cards <= space.most_cards:
                    yield from ((deployment, lanes) for lanes in space.lanes)


def _distinct(cards: Sequence[Hardware]) -> list[Hardware]:
    return list({card.name: card for card in cards}.values())


def _monolith_sizes(card: Hardware, space: Space) -> list[int]:
    """1, 2, 4, … cards up to a node, then whole nodes."""
    most = min(space.most_cards, (space.most_attention + space.most_ffn) * card.cards_per_node)
    sizes = [1 << i for i in range(card.cards_per_node.bit_length()) if 1 << i < card.cards_per_node]
    nodes = range(1, most // card.cards_per_node + 1)
    return [n for n in (*sizes, *(card.cards_per_node * count for count in nodes)) if n <= most]


def _topologies(model: ModelShape, space: Space) -> Iterator[Topology]:
    has_experts = any(isinstance(layer.ffn, ExpertFFN) for layer in model.layers)
    sharding = space.sharding or ("ep" if has_experts else "tp")
    replicas = space.replicas if space.replicas > 1 else None
    fitting, unfit = [], None
    for ffn in range(1, space.most_ffn + 1):
        try:
            fitting.append(make_topology(1, ffn, sharding, replicas))
        except TopologyError as error:
            unfit = error
    if not fitting and unfit is not None:
        raise unfit
    for shape in fitting:
        for attention in range(1, space.most_attention + 1):
            yield replace(shape, attention=attention)


def search(demand: Demand, space: Space, progress: Callable[[int, int], None] | None = None) -> Ranking:
    """Fill every candidate and rank them: cheapest first, then fewest cards.

    Args:
        demand: what is to be served.
        space: which deployments are tried.
        progress: called with (done, all) after each candidate.
    """
    todo = list(candidates(demand.model, space))
    ranking = Ranking()
    for done, (deployment, lanes) in enumerate(todo, 1):
        result = largest_batch(demand, deployment, lanes)
        if isinstance(result, Outcome):
            ranking.feasible.append(result)
        else:
            ranking.infeasible.append(result)
        if progress is not None:
            progress(done, len(todo))
    ranking.feasible.sort(key=lambda outcome: (outcome.usd_per_million, outcome.deployment.cards))
    return ranking
