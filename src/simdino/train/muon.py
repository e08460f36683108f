"""Muon: the update of a weight matrix is its momentum with all singular values near 1, so that directions with small
gradients are learned as fast as the others (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from simdino.train.parallel import own_part, part_like, whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic whose iteration brings singular values into 0.7 to 1.2
ITERATIONS = 5
MOMENTUM = 0.95
UPDATE_SIZE = 2.0  # root mean square of an update at a rate of 1: ten times that of AdamW's (docs/log.md)


class Muon(torch.optim.Optimizer):
    """Muon for the groups that are marked `matrices`, AdamW for the others.

    A matrix W [m, n] (a convolution's kernels, one row for each) moves with Nesterov's momentum M of its gradients:

        W <- W - lr (weight_decay W + 2 sqrt(max(m, n)) U),    U = orthogonal(M)

    With 0.2 in place of 2 updates would have the size of AdamW's (Liu et al. 2025, arXiv 2502.16982, eq. 4); a tenfold
    rate learns most in short runs, and as it is in the factor, one rate fits both optimizers. torch.optim.Muon has the
    same update for matrices alone, in bfloat16, which many CPUs compute slowly.

    Where matrices are divided among processes, each keeps its part of the momentum, and puts all of it together for the
    time of an update, which every process computes."""

    def __init__(self, groups: list[dict[str, Any]], *, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.adamw = torch.optim.AdamW(groups, lr=0.0, betas=betas)
        super().__init__(self.adamw.param_groups, self.adamw.defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step with the gradients as they are. Parameters without one stay."""
        self.adamw.state = self.state  # loading a checkpoint makes new ones of both
        self.adamw.param_groups = [group for group in self.param_groups if not group["matrices"]]
        self.adamw.step()
        for group in self.param_groups:
            if group["matrices"]:
                self._step_matrices([p for p in group["params"] if p.grad is not None], group)

    def _step_matrices(self, matrices: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Update matrices, those of one shape together."""
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.flatten(1).shape, []).append(matrix)
        for (rows, columns), alike in by_shape.items():
            ahead = torch.stack([whole(self._ahead(p)).flatten(1) for p in alike])
            size = group["lr"] * UPDATE_SIZE * max(rows, columns) ** 0.5
            for p, update in zip(alike, orthogonal(ahead), strict=True):
                own = own_part(p).mul_(1 - group["lr"] * group["weight_decay"])
                own.add_(part_like(update.view(p.shape), p), alpha=-size)

    def _ahead(self, matrix: Tensor) -> Tensor:
        """Return Nesterov's momentum of a matrix, of which the mean of its gradients, this step's included, is kept. It
        starts at zero."""
        state, gradient = self.state[matrix], matrix.grad
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix)
        return gradient.lerp(state["momentum"].lerp_(gradient, 1 - MOMENTUM), MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """Return matrices [k, m, n] with the same singular vectors and singular values from 0.7 to 1.2, but for those that
    are tiny beside the largest: Newton and Schulz's iteration x <- a x + (b A + c A²) x with A = x xᵀ.

    In bfloat16 on a GPU, in the matrices' own dtype elsewhere."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
