"""How much of a card's peaks real kernels attain, by family."""

from dataclasses import dataclass, fields

from step3.plan.errors import HardwareError
from step3.plan.fields import Fields


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise HardwareError(f"{name} must be above 0 and at most 1, not {value}")


@dataclass(frozen=True)
class Efficiency:
    """Attained share, above 0 and at most 1, of the compute peak and of the memory bandwidth."""

    compute: float = 1.0
    memory: float = 1.0

    def __post_init__(self) -> None:
        for name in ("compute", "memory"):
            _check_share(f"efficiency of {name}", getattr(self, name))


@dataclass(frozen=True)
class Efficiencies:
    """Attained shares of one card by kernel family; 1.0 is the roofline itself."""

    attention: Efficiency = Efficiency()
    """The attention's core: cache in, weighted values out."""
    linear: Efficiency = Efficiency()
    """The attention side's projections, router and output head."""
    ffn: Efficiency = Efficiency()
    """Dense FFNs and experts."""
    network: float = 1.0
    """Share of the network interface's bandwidth."""
    node: float = 1.0
    """Share of the bandwidth between the cards of a node."""

    def __post_init__(self) -> None:
        for name in ("network", "node"):
            _check_share(f"efficiency of {name}", getattr(self, name))


def efficiencies_from(values: Fields) -> Efficiencies:
    """Read `{attention: 0.9, linear: {compute: 0.8, memory: 0.6}, network: 0.95}`, each family optional.

    Raises:
        HardwareError: a family is unknown or a share is not in (0, 1].
    """
    known = {field.name: field.default for field in fields(Efficiencies)}
    given: dict[str, Efficiency | float] = {}
    for name, value in values.values.items():
        if name not in known:
            raise values.fail(f"{name!r:.60} is no kernel family: choose from {', '.join(known)}")
        if isinstance(value, dict):
            if not isinstance(known[name], Efficiency):
                raise values.fail(f"{name} is one number, not compute and memory")
            inner = values.inner(name)
            if unknown := set(map(str, inner.values)) - {"compute", "memory"}:
                raise inner.fail(f"{sorted(unknown)[0]:.60} is neither compute nor memory")
            given[name] = Efficiency(inner.number("compute", 1.0), inner.number("memory", 1.0))
        else:
            share = values.as_number(name, value)
            given[name] = Efficiency(share, share) if isinstance(known[name], Efficiency) else share
    return Efficiencies(**given)  # type: ignore[arg-type]
