"""How long every resource has worked."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Worked:
    """Seconds of work since the simulation began, the mean over instances; and the FFN's calls."""

    attention: float
    """In a monolith the FFN included."""
    out: float
    ffn: float
    """0 in a monolith."""
    back: float
    calls: int
    """Calls of lanes that the FFN answered."""
    merged_calls: int
    """Calls that it computed: fewer, where it merged them."""
    cores: tuple[float, ...] = ()
    """Of each core, where instances share a host's."""

    def since(self, before: "Worked") -> "Worked":
        """What was worked after an earlier moment."""
        return Worked(
            self.attention - before.attention,
            self.out - before.out,
            self.ffn - before.ffn,
            self.back - before.back,
            self.calls - before.calls,
            self.merged_calls - before.merged_calls,
            tuple(now - then for now, then in zip(self.cores, before.cores, strict=True)),
        )
