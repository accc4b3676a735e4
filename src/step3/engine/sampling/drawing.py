"""Draws one token a row from softmax(logits / temperature), filtered."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from step3.engine.sampling.filters import FAR, apply_min_p, apply_top_k, apply_top_p
from step3.engine.sampling.random_numbers import gumbels
from step3.kernels.cpu import Library, open_library
from step3.kernels.cpu.draw import draw_tokens

_CHUNK_VALUES = 2**17


@dataclass(frozen=True)
class Draws:
    """What decides the draws of some rows besides their logits; all `[rows]`.

    Attributes:
        temperature: float32, above 0.
        top_k: int64, 0 is all.
        top_p: float64, 1 is all.
        min_p: float32, 0 is all.
        seed, choice, position: int64; the random numbers are a function of them.
        filtered: a bool, whether top_k, top_p or min_p leaves anything out in any of the rows.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    choice: Tensor
    position: Tensor
    filtered: bool

    def of(self, rows: Tensor | slice) -> "Draws":
        """The same for some of the rows."""
        chosen = {name: value[rows] for name, value in vars(self).items() if name != "filtered"}
        return Draws(**chosen, filtered=self.filtered)


def draw(logits: Tensor, best: Tensor, draws: Draws) -> Tensor:
    """Draws a token for each row; equal rows with equal draws give equal tokens, whatever stands beside them.

    Args:
        logits: `[rows, vocab]` float32, not changed.
        best: `[rows]`, the largest of each row.

    Returns:
        Token ids `[rows]` int64; of no meaning where the best logit is not finite, or one is NaN.
    """
    vocab = logits.shape[-1]
    block = 2 ** round(math.log2(vocab) / 2)
    if logits.device.type == "cpu" and (library := open_library()):
        return _draw_compiled(library, logits, best, draws, block)
    blocks = -(-vocab // block)
    noise = gumbels(draws.seed, draws.choice, draws.position, blocks + block)
    # A row at a time keeps large vocabularies in the cache, many keep small ones from being all overhead.
    step = max(1, _CHUNK_VALUES // vocab)
    tokens = []
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        distances = _distances(logits[rows], best[rows], draws.temperature[rows], blocks * block)
        if draws.filtered:
            _filter(distances, draws.of(rows))
        tokens.append(_two_level_gumbel_max(distances.view(-1, blocks, block), noise[rows]))
    return torch.cat(tokens)


def _draw_compiled(library: Library, logits: Tensor, best: Tensor, draws: Draws, block: int) -> Tensor:
    """`draw` with the CPU kernels: the same random numbers, sums and logarithms, up to rounding."""
    if draws.filtered:
        distances = _distances(logits, best, draws.temperature, logits.shape[-1])
        _filter(distances, draws)
        # Numbers whose best is 0 and whose temperature is 1 have these distances.
        logits, best = distances.neg_(), torch.where(best.isfinite(), torch.zeros_like(best), best)
        draws = replace(draws, temperature=torch.ones_like(draws.temperature))
    return draw_tokens(
        library, logits, best, draws.temperature, draws.seed, draws.choice, draws.position, block
    )


def _distances(logits: Tensor, best: Tensor, temperature: Tensor, size: int) -> Tensor:
    """How far each token is from the best, `[rows, size]`; `FAR` beyond the vocabulary."""
    distances = logits.new_full((len(logits), size), FAR)
    own = distances[:, : logits.shape[-1]]
    torch.sub(best[:, None], logits, out=own).div_(temperature[:, None]).clamp_(max=FAR)
    is_number = best.isfinite()
    if not bool(is_number.all()):
        distances[~is_number] = 0.0
    return distances


def _filter(distances: Tensor, draws: Draws) -> None:
    _apply(apply_min_p, distances, draws.min_p, draws.min_p > 0)
    size = distances.shape[-1]
    _apply(apply_top_k, distances, draws.top_k, (draws.top_k > 0) & (draws.top_k < size))
    _apply(apply_top_p, distances, draws.top_p, draws.top_p < 1)


def _apply(
    narrow: Callable[[Tensor, Tensor], None], distances: Tensor, limits: Tensor, limited: Tensor
) -> None:
    """Narrows the limited rows, in place."""
    if bool(limited.all()):
        narrow(distances, limits)
    elif bool(limited.any()):
        some = distances[limited]
        narrow(some, limits[limited])
        distances[limited] = some


def _two_level_gumbel_max(distances: Tensor, noise: Tensor) -> Tensor:
    """Draws a block of ids by its mass, then an id within it: exact by the chain rule.

    The Gumbel-max trick at both levels: a small change of the logits seldom changes the token, as with noise
    for each token, but V tokens need only about 2 √V numbers.

    Args:
        distances: `[rows, blocks, block]` float32.
        noise: `[rows, blocks + block]` float64 Gumbel numbers.

    Returns:
        `[rows]` int64 places in the flattened blocks.
    """
    rows, blocks, block = distances.shape
    masses = (-distances).exp().sum(dim=-1)
    chosen = (masses.to(torch.float64).log() + noise[:, :blocks]).argmax(dim=-1)
    within = distances[torch.arange(rows, device=distances.device), chosen]
    return chosen * block + (noise[:, blocks:] - within).argmax(dim=-1)
