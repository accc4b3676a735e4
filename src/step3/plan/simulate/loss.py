"""What failures cost."""

from dataclasses import dataclass

from step3.plan.simulate.result import Result


@dataclass(frozen=True)
class Loss:
    """What the failures of a scenario cost, against the same scenario without them."""

    tokens: float
    """Output tokens fewer in the counted time."""
    seconds: float
    """The same as seconds of undisturbed output."""
    longest_gap: float
    """The longest that a running request waited for its next token, in seconds."""
    longest_gap_before: float
    """Without the failures."""
    recomputed_tokens: float


def loss(disturbed: Result, undisturbed: Result) -> Loss:
    """Compare two runs of a scenario, with and without its failures."""
    tokens = undisturbed.tokens - disturbed.tokens
    rate = undisturbed.tokens_per_second
    return Loss(
        tokens,
        tokens / rate if rate else 0.0,
        disturbed.token.greatest or 0.0,
        undisturbed.token.greatest or 0.0,
        disturbed.recomputed_tokens,
    )
