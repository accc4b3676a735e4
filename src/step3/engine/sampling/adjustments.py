"""Changes of logits before temperature: grammar, allowed ids, bans, bias and penalties, in vLLM's order; last
the end of reasoning that has used up its budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from step3.engine.sampling.state import SamplingState

_BITS_OF_BYTE = torch.tensor([[byte >> bit & 1 for bit in range(8)] for byte in range(256)], dtype=torch.bool)


@dataclass(frozen=True)
class Row:
    """A row of logits and the sequence that it is of.

    Attributes:
        number: of the row.
        drafts: tokens between the sequence's output and the row.
    """

    number: int
    state: SamplingState
    drafts: Sequence[int] = ()


def mask_by_bits(logits: Tensor, rows: Sequence[int], bitmask: Tensor) -> None:
    """Sets to -inf, in place, what a bitmask rules out.

    Args:
        logits: `[all rows, vocab]`.
        rows: those that the bitmask is for.
        bitmask: `[rows, ceil(vocab / 32)]` int32 on the CPU; a token is allowed if bit `id % 32` of word
            `id // 32` is set.
    """
    allowed = _BITS_OF_BYTE[bitmask.view(torch.uint8).long()].flatten(1)[:, : logits.shape[-1]]
    place = torch.tensor(rows, device=logits.device)
    logits[place] = logits[place].masked_fill_(~allowed.to(logits.device), -torch.inf)


def adjust(logits: Tensor, rows: Sequence[Row]) -> None:
    """Changes rows, in place, as their sequences' parameters ask.

    Args:
        logits: `[all rows, vocab]` float32, contiguous.
    """
    for row in rows:
        if row.state.params.allowed_token_ids is not None:
            _allow_only(logits[row.number], row.state.params.allowed_token_ids)
    _ban(logits, rows)
    _bias(logits, rows)
    _penalise(logits, [row for row in rows if row.state.counts is not None])
    for row in rows:
        if (token_id := row.state.forced(row.drafts)) is not None:
            logits[row.number].fill_(-torch.inf)
            logits[row.number, token_id] = 0.0


def _allow_only(scores: Tensor, allowed: Sequence[int]) -> None:
    ids = torch.tensor(allowed, device=scores.device)
    kept = scores[ids]
    scores.fill_(-torch.inf)
    scores[ids] = kept


def _ban(logits: Tensor, rows: Sequence[Row]) -> None:
    places: list[int] = []
    for row in rows:
        banned = row.state.banned(row.drafts)
        if banned and row.state.constraint is not None:
            _ban_unless_all(logits[row.number], banned)
        else:
            places += [row.number * logits.shape[-1] + token_id for token_id in banned]
    if places:
        logits.view(-1)[torch.tensor(places, device=logits.device)] = -torch.inf


def _ban_unless_all(scores: Tensor, banned: Sequence[int]) -> None:
    """A form that is complete allows only the end: min_tokens cannot ask for more than there is."""
    ids = torch.tensor(banned, device=scores.device)
    kept = scores[ids]
    scores[ids] = -torch.inf
    if bool((scores == -torch.inf).all()):
        scores[ids] = kept


def _bias(logits: Tensor, rows: Sequence[Row]) -> None:
    places: list[int] = []
    biases: list[float] = []
    for row in rows:
        if row.state.params.logit_bias:
            places += [row.number * logits.shape[-1] + token_id for token_id in row.state.params.logit_bias]
            biases += row.state.params.logit_bias.values()
    if places:
        logits.view(-1)[torch.tensor(places, device=logits.device)] += torch.tensor(
            biases, dtype=logits.dtype, device=logits.device
        )


def _penalise(logits: Tensor, rows: Sequence[Row]) -> None:
    """Repetition, then frequency and presence, on the tokens that each sequence has seen."""
    if not rows:
        return
    seen = [row.state.counts.seen(row.drafts) for row in rows if row.state.counts is not None]
    sizes = [len(ids) for ids, _ in seen]
    starts = np.repeat(np.array([row.number * logits.shape[-1] for row in rows]), sizes)
    places = torch.from_numpy(np.concatenate([ids for ids, _ in seen]) + starts).to(logits.device)
    held = torch.from_numpy(np.concatenate([counts for _, counts in seen])).to(logits.device)
    penalties = np.array([_penalties(row.state) for row in rows], dtype=np.float32)
    repetition, frequency, presence = (
        torch.from_numpy(np.repeat(penalties, sizes, axis=0)).to(logits.device).T
    )
    values = logits.view(-1)[places]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= frequency * held
    values -= presence * (held > 0)
    logits.view(-1)[places] = values


def _penalties(state: SamplingState) -> tuple[float, float, float]:
    params = state.params
    return params.repetition_penalty, params.frequency_penalty, params.presence_penalty
