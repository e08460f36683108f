"""The coding rate R(Z) = ½ logdet(I + d/(n eps²) Z Zᵀ) and everything in closed form about it.

Z is d x n with the n features of one view as columns; ZZᵀ is a sum over samples, so all a batch has to send to other
micro-batches or processes is a d x d matrix. `eps` is the distortion of the paper; the released code's `eps` is eps².

Numerics: features may come in any float type; the second moments, the Cholesky factor and W are float64 outside
autocast. In float32 the splits of one batch differ by 2e-4 in gradient, and small eps fails outright.
"""

from math import log1p, sqrt

import torch
from torch import Tensor


def second_moments(z: Tensor) -> Tensor:
    """ZZᵀ of row features `z` [..., n, d]: float64 [..., d, d]."""
    z = double(z)
    return z.mT @ z


def double(x: Tensor) -> Tensor:
    """`x` in float64, on the CPU where its device has no float64."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


def rate_from_moments(moments: Tensor, *, n: int, eps: float) -> tuple[Tensor, Tensor]:
    """R and the matrix W of its gradient, from the second moments M = ZZᵀ, float64 [..., d, d].

    Returns R [...] and W = a (I + aM)⁻¹ [..., d, d] with a = d/(n eps²), so that dR/dZ = W Z. Where the factorisation
    fails (features that are not finite) R is NaN, never a plausible wrong number.
    """
    d = moments.shape[-1]
    a = d / (n * eps**2)
    with torch.autocast(moments.device.type, enabled=False):
        matrix = torch.eye(d, dtype=moments.dtype, device=moments.device) + a * moments
        factor, info = torch.linalg.cholesky_ex(matrix)
        rate = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return torch.where(info == 0, rate, torch.nan), a * torch.cholesky_inverse(factor)


def coding_rate(z: Tensor, *, eps: float, n: int | None = None) -> Tensor:
    """R of row features `z` [n, d], differentiable in `z`: float64 scalar.

    `n` is the number of samples in the scale; the features' own number unless they are a shard of a larger batch.
    Raises ValueError when `z` is not a matrix or eps is not positive.
    """
    if z.ndim != 2:
        raise ValueError(f"coding_rate takes features [n, d], got shape {tuple(z.shape)}")
    if eps <= 0:
        raise ValueError(f"coding_rate takes eps > 0, got {eps}")
    with torch.autocast(z.device.type, enabled=False):
        with torch.no_grad():
            rate, w = rate_from_moments(second_moments(z), n=n or len(z), eps=eps)
        return with_gradient(rate, half_trace(z, w))


def half_trace(z: Tensor, w: Tensor) -> Tensor:
    """½ tr(Zᵀ W Z) of row features [..., n, d] and W [..., d, d], float64 [...]. With W held constant its gradient
    is W Z: the rate's own gradient, one micro-batch at a time."""
    z = double(z)
    return 0.5 * ((z @ w) * z).sum((-2, -1))


def with_gradient(value: Tensor, surrogate: Tensor) -> Tensor:
    """The number `value` with the gradient of `surrogate`."""
    return value.detach() + (surrogate - surrogate.detach())


def rate_floor(*, d: int, n: int, eps: float, columns: int | None = None) -> float:
    """R when all features are one unit vector. `columns`: features that are summed, n of them unless sharded."""
    return 0.5 * log1p(d / (n * eps**2) * (columns or n))


def rate_ceiling(*, d: int, n: int, eps: float, columns: int | None = None, rank: int | None = None) -> float:
    """The largest R of unit features: all nonzero eigenvalues of ZZᵀ equal, which are min(d, columns), or `rank` where
    the features have no more directions."""
    columns = columns or n
    rank = min(rank or d, d, columns)
    return 0.5 * rank * log1p(d / (n * eps**2) * columns / rank)


def largest_gradient(*, d: int, n: int, eps: float, columns: int | None = None, rank: int | None = None) -> float:
    """max over Z of ||dR/dZ||_F = (1/2eps) sqrt(d min(d,n)/n), reached where all singular values equal 1/sqrt(a);
    with `rank` directions at most."""
    return sqrt(d * min(rank or d, d, columns or n) / n) / (2 * eps)


def effective_rank(moments: Tensor) -> Tensor:
    """exp of the entropy of the normalised eigenvalues of M [d, d]: between 1 and d (Roy & Vetterli 2007, on the
    eigenvalues of the second moment rather than on singular values)."""
    moments = double(moments)
    eigenvalues = torch.linalg.eigvalsh(moments.nan_to_num(0, 0, 0)).clamp_min(0)  # LAPACK raises on what is not finite
    p = eigenvalues / eigenvalues.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(moments.isfinite().all(), torch.special.entr(p).sum().exp(), torch.nan)


def collapse_is_better(*, weight: float, ceiling: float, floor: float, alignment: float = 0.6) -> bool:
    """Whether a collapsed network (alignment 1, R at its floor) has the lower loss than a healthy one that reaches
    the ceiling with the mean cosine `alignment` between views (0.6 to 0.9 in healthy runs)."""
    return alignment + weight * ceiling < 1 + weight * floor
