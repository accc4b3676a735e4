"""Speculation on a lane: fills in its sequences' drafts, and learns from its steps what they are worth."""

from __future__ import annotations

from step3.engine.request import Sequence
from step3.engine.sampling.speculation import Speculation, SpeculationCounts


class Drafter:
    """Drafts for the sequences of one lane.

    Args:
        speculation: decides how many are tried.
    """

    def __init__(self, speculation: Speculation) -> None:
        self._speculation = speculation

    @property
    def counts(self) -> SpeculationCounts:
        """What came of the drafts so far."""
        return self._speculation.counts

    def fill(self, sequences: list[Sequence]) -> None:
        """Sets the drafts of sequences that are about to decode."""
        sources = []
        for sequence in sequences:
            if sequence.draft_source is None:
                sequence.draft_source = self._speculation.source(sequence.tokens)
            sources.append(sequence.draft_source)
        for sequence, drafts in zip(sequences, self._speculation.draft(sources), strict=True):
            sequence.drafts = sequence.sampling.possible(drafts) if drafts else drafts

    def observe(self, rows: int, seconds: float, drafted: int, accepted: int) -> None:
        """Learns from a step that only decoded (see `Speculation.observe`)."""
        self._speculation.observe(rows, seconds, drafted, accepted)
