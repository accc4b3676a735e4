"""Log-probabilities to tell: the chosen token's, its rank, and the likeliest ones'."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_VALUES = 2**22


@dataclass(frozen=True)
class TokenLogprobs:
    """What was likely at one position.

    Attributes:
        token_id: the token that stands there.
        logprob: its log-probability.
        rank: 1 and how many tokens are likelier.
        top_ids: the likeliest tokens, likeliest first and of equal ones the lower id first; not those that
            have no chance at all.
        top_logprobs: their log-probabilities.
    """

    token_id: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


def rank_tokens(logprobs: Tensor, chosen: Tensor, counts: Sequence[int]) -> list[TokenLogprobs]:
    """Looks up chosen tokens and finds the likeliest.

    Args:
        logprobs: `[rows, vocab]` float32.
        chosen: `[rows]` int64.
        counts: how many of the likeliest each row tells; -1 is all.
    """
    vocab = logprobs.shape[-1]
    wanted = [vocab if count == -1 else min(count, vocab) for count in counts]
    own = logprobs.gather(-1, chosen[:, None])
    ranks = (logprobs > own).sum(dim=-1, dtype=torch.int32) + 1
    ids, values = _likeliest(logprobs, max(wanted))
    told = zip(
        chosen.tolist(),
        own[:, 0].tolist(),
        ranks.tolist(),
        ids.tolist(),
        values.tolist(),
        wanted,
        strict=True,
    )
    return [
        TokenLogprobs(token_id, logprob, rank, *_possible(top_ids[:count], top_values[:count]))
        for token_id, logprob, rank, top_ids, top_values, count in told
    ]


def prompt_logprobs(logits: Tensor, targets: Tensor, count: int) -> list[TokenLogprobs]:
    """What was likely at each position of a prompt.

    Args:
        logits: `[tokens, vocab]`; row t is what the model expects behind token t.
        targets: `[tokens]` int64; token t + 1.
        count: how many of the likeliest are told; -1 is all.
    """
    step = max(1, _CHUNK_VALUES // logits.shape[-1])
    told = []
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        logprobs = torch.log_softmax(logits[rows].float(), dim=-1)
        told += rank_tokens(logprobs, targets[rows], [count] * len(logprobs))
    return told


def _likeliest(logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` likeliest of each row, likeliest first and of equal ones the lower id first."""
    if count == 0:
        return logprobs.new_empty(len(logprobs), 0, dtype=torch.int64), logprobs[:, :0]
    values, ids = logprobs.topk(min(count + 1, logprobs.shape[-1]), dim=-1)
    if bool((values[:, 1:] == values[:, :-1]).any()):
        # Which of equal ones topk takes, and in what order, is not said.
        values, ids = logprobs.sort(dim=-1, descending=True, stable=True)
    return ids[:, :count], values[:, :count]


def _possible(ids: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    possible = len(values) - values.count(-math.inf)
    return ids[:possible], values[:possible]
