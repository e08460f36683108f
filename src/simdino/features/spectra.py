"""How features fill their space: monitors of rows [N, D] that need no labels, in float64 from second moments.

Letters: σ are the singular values of the N x D matrix of rows as they are, λ the eigenvalues of their covariance
(rows centred). A monitor is read from one or from the other, never from both: the sources differ in this.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from simdino.contracts import unit
from simdino.losses.coding_rate import double, rate_ceiling, rate_floor, rate_from_moments, second_moments

RANK_ME_EPS = 1e-7  # added to the shares of the singular values, which are not normalised again
LIDAR_EPS = 1e-8  # the same for the eigenvalues of LiDAR
LIDAR_DELTA = 1e-4  # added to the diagonal of the scatter within images
ROWS = 512  # compared with all others at once
TINY = torch.finfo(torch.float64).tiny


class Moments:
    """Running sums over rows: their number, their sum and their second moments. D x D numbers, however many rows.

    Centring by subtraction costs digits; what is left in float64 is finer than the rounding of float32 rows."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | float = 0.0  # [D]
        self.second: Tensor | float = 0.0  # [D, D], of the rows as they are

    def add(self, rows: Tensor) -> None:
        """Take rows [n, D] in."""
        rows = double(rows)
        self.count += len(rows)
        self.total = self.total + rows.sum(0)
        self.second = self.second + second_moments(rows)

    @staticmethod
    def of(rows: Tensor) -> Moments:
        """The moments of rows [N, D], a few thousand at a time."""
        moments = Moments()
        for part in rows.split(4096):
            moments.add(part)
        return moments

    @property
    def mean(self) -> Tensor:
        """[D]"""
        return torch.as_tensor(self.total) / self.count

    @property
    def scatter(self) -> Tensor:
        """Second moments about the mean, summed over rows: [D, D]."""
        return torch.as_tensor(self.second) - self.count * torch.outer(self.mean, self.mean)

    @property
    def singular_values(self) -> Tensor:
        """Of the rows as they are, largest first: [D]."""
        return spectrum_of(torch.as_tensor(self.second)).sqrt()

    @property
    def covariance(self) -> Tensor:
        """[D, D], divided by N - 1."""
        return self.scatter / max(self.count - 1, 1)


class Grouped:
    """Running sums over groups of rows, such as the views of an image: how groups differ, and how rows in one do."""

    def __init__(self) -> None:
        self.means = Moments()  # of the groups
        self.inside: Tensor | float = 0.0  # [D, D], second moments of the rows about their group's mean
        self.rows = 0  # in a group

    def add(self, groups: Tensor) -> None:
        """Take groups [n, q, D] in."""
        groups = double(groups)
        means = groups.mean(1)
        self.means.add(means)
        self.inside = self.inside + second_moments((groups - means[:, None]).flatten(0, 1))
        self.rows = groups.shape[1]

    @property
    def between(self) -> Tensor:
        """The covariance of the groups' means: [D, D]."""
        return self.means.covariance

    @property
    def within(self) -> Tensor:
        """The covariance of rows about their group's mean, divided by n (q - 1): [D, D]."""
        return torch.as_tensor(self.inside) / max(self.means.count * (self.rows - 1), 1)

    @property
    def between_share(self) -> float:
        """Of the variance of all rows, what lies between groups: 1 where the rows of a group are one, near 1/q where
        the groups mean nothing, 0 where nothing varies."""
        between = self.rows * self.means.scatter.trace()
        return float(between / (between + torch.as_tensor(self.inside).trace()).clamp_min(TINY))


def spectrum_of(matrix: Tensor) -> Tensor:
    """Eigenvalues of a symmetric matrix without negative ones, largest first; what rounding leaves in place of a zero
    is zero."""
    values = torch.linalg.eigvalsh(matrix).flip(-1).clamp_min(0)
    return values.where(values > matrix.shape[-1] * torch.finfo(values.dtype).eps * values[..., :1], 0)


def rank_me(values: Tensor, *, eps: float = RANK_ME_EPS) -> float:
    """exp of the entropy of the shares of singular values [D], each plus eps (RankMe, Garrido et al. 2023, arXiv
    2210.02885, equation 1): between 1 and D. With eps 0 the effective rank of Roy and Vetterli (2007)."""
    p = values.double() / values.double().sum().clamp_min(TINY) + eps
    return float(torch.special.entr(p).sum().exp())


def effective_rank(singular: Tensor) -> float:
    """RankMe without its eps. Of singular values: the rank that training logs is that of the second moments'
    eigenvalues (`losses.coding_rate.effective_rank`), a smaller number."""
    return rank_me(singular, eps=0)


def stable_rank(singular: Tensor) -> float:
    """Σσ² / σ₁²: between 1 and D, 0 where all rows are zero."""
    squares = singular.double().square()
    return float(squares.sum() / squares.max().clamp_min(TINY))


def participation_ratio(covariance: Tensor) -> float:
    """tr(C)² / tr(C²) of a covariance [D, D]: how many directions the variance takes part in, between 1 and D; 0
    without any variance."""
    return float(covariance.trace() ** 2 / covariance.square().sum().clamp_min(TINY))


def alpha_req(eigenvalues: Tensor, *, first: int = 1, last: int | None = None) -> tuple[float | None, tuple[int, int]]:
    """α of λ_i ~ i^-α, and the range of i it was fitted on (α-ReQ, Agrawal et al. 2022): near 1 is good, far above is
    low rank, far below is noise.

    Weighted least squares of -log λ_i on log i with weights 1/i, so that each octave counts alike.
    eigenvalues: of the covariance, largest first [D]. first, last: the range asked for, counted from 1; it ends before
    the first eigenvalue under 1e-12 of the largest. None where fewer than two are left."""
    floor = 1e-12 * float(eigenvalues[0])
    present = int((eigenvalues > max(floor, TINY)).sum())
    stop = min(last or len(eigenvalues), present)
    if stop - first < 1:
        return None, (first, stop)
    i = torch.arange(first, stop + 1, dtype=torch.float64)
    x, y, weights = i.log(), -eigenvalues[first - 1 : stop].double().cpu().log(), 1 / i
    x, y = (v - (weights * v).sum() / weights.sum() for v in (x, y))
    return float((weights * x * y).sum() / (weights * x * x).sum()), (first, stop)


def lidar(between: Tensor, within: Tensor, *, delta: float = LIDAR_DELTA, eps: float = LIDAR_EPS) -> float:
    """exp of the entropy of the shares, each plus eps, of the eigenvalues of S_w^-½ S_b S_w^-½ (LiDAR, Thilak et al.
    2023, arXiv 2312.04000; constants of stable-pretraining, callbacks/lidar.py at 9aa93f8): at most min(D, n - 1).

    between: S_b, the covariance of the means of n images over their views. within: S_w, that of the q views about
    their image's mean, divided by n (q - 1); delta goes onto its diagonal. Both float64 [D, D]."""
    factor = torch.linalg.cholesky(within + delta * torch.eye(len(within), dtype=within.dtype, device=within.device))
    half = torch.linalg.solve_triangular(factor, between, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.mT, upper=False)  # the same eigenvalues as with S_w^-½
    return rank_me(spectrum_of((whitened + whitened.mT) / 2), eps=eps)


def uniformity(vectors: Tensor, *, t: float = 2.0) -> float:
    """log of the mean over pairs of exp(-t |x - y|²) of unit vectors [N, D] (Wang and Isola 2020, arXiv 2005.10242):
    0 where all are one, near -2t where they are spread evenly. In blocks of rows, so memory grows with N, not N²."""
    x, total = double(vectors), 0.0
    for start in range(0, len(x), ROWS):
        block = x[start : start + ROWS]
        squared = (2 - 2 * (block @ x[start:].T)).clamp_min(0)  # of unit vectors
        later = torch.ones_like(squared, dtype=torch.bool).triu(1)
        total += float((-t * squared).exp()[later].sum())
    pairs = len(x) * (len(x) - 1) / 2
    return float(torch.tensor(total / pairs, dtype=torch.float64).log()) if pairs else float("nan")


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """How N rows of D numbers fill their space. Lengths count in the ranks; in the last five they do not: those are of
    the rows scaled to unit length."""

    images: int  # N
    width: int  # D
    rank_me: float
    effective_rank: float
    stable_rank: float
    participation_ratio: float
    alpha: float | None  # None where fewer than two directions vary
    alpha_range: tuple[int, int]  # which eigenvalues alpha was fitted on, counted from 1
    expansion_fraction: float  # where the coding rate lies between its floor, 0, and its ceiling, 1
    coding_rate: float
    mean_cosine: float  # between different images
    feature_std: float  # standard deviation of a coordinate, times √D: 1 where features point everywhere, 0 in one
    uniformity: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def spectrum(vectors: Tensor, *, eps: float) -> Spectrum:
    """The monitors of rows [N, D], two at least. eps: the distortion of the coding rate (the paper's; the released
    code's eps is its square). Raises ValueError for fewer rows, or none that is finite."""
    if vectors.ndim != 2 or len(vectors) < 2 or not vectors.isfinite().all():
        raise ValueError(f"spectrum takes finite rows [N, D], two at least, got shape {tuple(vectors.shape)}")
    (n, d), directions = vectors.shape, unit(vectors)
    raw, scaled = Moments.of(vectors), Moments.of(directions)
    rate = float(rate_from_moments(torch.as_tensor(scaled.second), n=n, eps=eps)[0])
    floor, ceiling = rate_floor(d=d, n=n, eps=eps), rate_ceiling(d=d, n=n, eps=eps)
    alpha, used = alpha_req(spectrum_of(raw.covariance))
    return Spectrum(
        images=n,
        width=d,
        rank_me=rank_me(raw.singular_values),
        effective_rank=effective_rank(raw.singular_values),
        stable_rank=stable_rank(raw.singular_values),
        participation_ratio=participation_ratio(raw.covariance),
        alpha=alpha,
        alpha_range=used,
        expansion_fraction=(rate - floor) / (ceiling - floor),
        coding_rate=rate,
        mean_cosine=float((torch.as_tensor(scaled.total).square().sum() - n) / (n * (n - 1))),
        feature_std=float(scaled.covariance.diagonal().clamp_min(0).sqrt().mean()) * sqrt(d),
        uniformity=uniformity(directions),
    )
