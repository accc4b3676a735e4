"""Muon: momentum whose update is brought near to an orthogonal matrix (Jordan et al., 2024).

`torch.optim.Muon` takes single matrices only; here the experts' stacked matrices are taken too, each on its
own, and what is no matrix (norms, biases, embeddings) is left to AdamW.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, distributed
from torch.optim import Optimizer

# Quintic Newton–Schulz iteration: its coefficients push every singular value into about 0.7 … 1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest matrix with singular values near one, by Newton–Schulz; `[..., rows, columns]`."""
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    # In bfloat16, which is exact enough for a direction and takes half of the time.
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


class Muon(Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    Args:
        parameters: matrices, or stacks of matrices in their last two dimensions; convolution kernels are
            taken as `[out, in * height * width]`.
        lr: step as a share of the matrix's own scale: the update's root mean square is
            `0.2 * lr`, as AdamW's would be (Liu et al., arXiv 2502.16982), so both share one rate.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            directions = [self._direction(parameter, group["momentum"]) for parameter in trained]
            for parameter, update in zip(trained, _orthogonalise_shared(directions), strict=True):
                scale = 0.2 * max(update.shape[-2:]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)
        return loss

    def _direction(self, parameter: Tensor, decay: float) -> Tensor:
        """Nesterov's direction, as a matrix or a stack of matrices."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - decay)
        direction = parameter.grad.lerp(momentum, decay)
        return direction.flatten(1) if direction.ndim == 4 else direction


def _orthogonalise_shared(matrices: list[Tensor]) -> list[Tensor]:
    """`orthogonalise` of each; where processes train together each does a part, and they exchange them."""
    if not distributed.is_initialized():
        return [orthogonalise(matrix) for matrix in matrices]
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    done = [
        orthogonalise(matrix) if i % processes == rank else torch.zeros_like(matrix)
        for i, matrix in enumerate(matrices)
    ]
    flat = torch.cat([matrix.flatten() for matrix in done])
    distributed.all_reduce(flat)
    parts = flat.split([matrix.numel() for matrix in matrices])
    return [part.view_as(matrix) for part, matrix in zip(parts, matrices, strict=True)]
