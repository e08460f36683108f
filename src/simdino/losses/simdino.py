"""SimDINO: align the views of an image, keep the coding rate of a batch high.

    L = mean over cross-view pairs of ½||z_s - z_t||²  -  gamma * mean over global views of R(Z)

Source: Wu et al., "Simplifying DINO via Coding Rate Regularization", arXiv 2502.10385, eq. (8) and the finite-batch
objective. The loss of a batch is the same number with the same gradient however the batch is split over processes
and micro-batches, because every sum over samples passes through `all_reduce` and n is always the global batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any, Literal

import torch
from torch import Tensor

from simdino.contracts import AllReduce, Embeddings, Loss, identity
from simdino.losses.coding_rate import (
    effective_rank,
    half_trace,
    largest_gradient,
    rate_ceiling,
    rate_floor,
    rate_from_moments,
    second_moments,
    with_gradient,
)
from simdino.losses.objective import MicroBatches, Objective, alignment_sums


@dataclass(frozen=True, kw_only=True)
class SimDINO(Objective):
    """The loss of a global batch of `batch` images with `global_views` + `local_views` views and d = `dim`.

    eps: distortion (the released code's `eps` is eps²).
    gamma: weight of the rate, or one of the rules "balanced" (see `weight`), "theorem" (eps sqrt(n/(d min(d,n))),
        Theorem 3.1's scale) and "released" (1/n + 1/d, as in the official code).
    rho: for "balanced", the largest rate gradient over the alignment gradient.
    lift: replaces R by a concave function of it that is steeper near collapse, see `lifted`; 0 is the paper's R.
    scope: "global" sums second moments over the whole batch. "shards" takes the mean over groups of `shard_size`
        consecutive images with n still the whole batch in the scale: what the official code computes on
        batch/shard_size processes.
    rate_on: "student" (the paper) or "mean" of student and teacher (the official default).
    """

    gamma: float | Literal["balanced", "theorem", "released"] = "balanced"
    rho: float = 1.5
    lift: float = 0.0
    scope: Literal["global", "shards"] = "global"
    shard_size: int = 64
    rate_on: Literal["student", "mean"] = "student"

    @property
    def needs_global_statistics(self) -> bool:
        """The rate of a batch is no sum over its images."""
        return True

    @property
    def shards(self) -> int:
        """How many groups the rate is averaged over."""
        return 1 if self.scope == "global" else self.batch // self.shard_size

    @property
    def columns(self) -> int:
        """Features in one group."""
        return self.batch // self.shards

    @cached_property
    def weight(self) -> float:
        """gamma as a number.

        "balanced" makes the largest gradient of the rate term `rho` times the alignment's, both at the student's
        features. For n >= d that is 2 rho eps sqrt(G) g / d with g independent of n: no batch size in it.
        """
        n, d = self.batch, self.dim
        if self.gamma == "released":
            return 1 / n + 1 / d
        if self.gamma == "theorem":
            return self.eps * sqrt(n / (d * min(d, n)))
        return self.rho * self.unit if self.gamma == "balanced" else float(self.gamma)

    @cached_property
    def unit(self) -> float:
        """The weight at which the largest gradients of rate and alignment are the same."""
        n, d, views = self.batch, self.dim, self.global_views
        alignment = sqrt(views * (views - 1) ** 2 + self.local_views * views**2) / (self.pairs * sqrt(n))
        rate = largest_gradient(d=d, n=n, eps=self.eps, columns=self.columns, rank=self.rank) / sqrt(
            views * self.shards
        )
        on_student = 1.0 if self.rate_on == "student" else 0.5
        return alignment / (rate * on_student)

    @cached_property
    def floor(self) -> float:
        """R of a collapsed batch."""
        return rate_floor(d=self.dim, n=self.batch, eps=self.eps, columns=self.columns)

    @cached_property
    def ceiling(self) -> float:
        """The largest R a batch can reach."""
        return rate_ceiling(d=self.dim, n=self.batch, eps=self.eps, columns=self.columns, rank=self.rank)

    def statistics(self, student: Embeddings, teacher: Embeddings) -> tuple[Tensor, ...]:
        """Second moments, float64 [G, shards, d, d]; each image counts in the shard of its index in the batch."""
        with torch.no_grad(), torch.autocast(student.cls.device.type, enabled=False):
            features = self._rated(student, teacher)
            if self.shards == 1:
                return (second_moments(features)[:, None],)
            shard = student.indices // self.shard_size
            return (torch.stack([second_moments(features[:, shard == s]) for s in range(self.shards)], dim=1),)

    def loss(self, student: Embeddings, teacher: Embeddings, statistics: Any, all_reduce: AllReduce) -> Loss:
        """See the formula above."""
        moments = statistics[0]
        rates, w = rate_from_moments(moments, n=self.batch, eps=self.eps)
        rate = rates.mean()  # over global views and shards
        surrogate = self._rate_surrogate(student, teacher, w)
        distance, images, pull, surrogate = all_reduce(torch.stack([*alignment_sums(student, teacher), surrogate]))
        pairs = self.pairs * self.batch
        distance, share = distance / pairs, (images / self.batch).detach()
        value, slope = self.lifted(rate)
        weighted = self.weight * with_gradient(value * share, slope * surrogate)
        health = self._health(rate, moments, slope * w, pull=pull.detach() / share / pairs**2)
        return Loss(
            total=distance - weighted,
            terms={"distance": distance, "rate_weighted": weighted},
            health={"alignment": share - distance, **{name: share * value for name, value in health.items()}},
        )

    def health(
        self, teachers: MicroBatches, statistics: Sequence[Any], *, all_reduce: AllReduce = identity
    ) -> dict[str, Tensor]:
        """Nothing of the teacher's features: `loss` logs the health of those that it rates."""
        return {}

    def lifted(self, rate: Tensor) -> tuple[Tensor, Tensor]:
        """F(R) and F'(R), for the mean rate R of a batch.

        With f the place of R between its floor and its ceiling, F' = 1 + lift (1 - f)^4 and
        F(R) = R + lift/5 (ceiling - floor) (1 - (1 - f)^5). A random network gives all images nearly the same feature,
        f near 0; there the rate of a large batch pushes too weakly to outrun alignment, and a warm-up to a high rate of
        learning collapses for tens of steps (docs/log.md, lift). Where healthy runs are, f from .6 on, F' is 1 within a
        few per cent.
        """
        left = (1 - (rate - self.floor) / (self.ceiling - self.floor)).clamp(0, 1)
        value = rate + self.lift / 5 * (self.ceiling - self.floor) * (1 - left**5)
        return value, 1 + self.lift * left**4

    def _rated(self, student: Embeddings, teacher: Embeddings) -> Tensor:
        """The features whose rate counts: [G, B, d]."""
        views = student.cls[: self.global_views]
        return views if self.rate_on == "student" else (views + teacher.cls) / 2

    def _rate_surrogate(self, student: Embeddings, teacher: Embeddings, w: Tensor) -> Tensor:
        """Sum over these images whose gradient is that of the mean rate. w: [G, shards, d, d]."""
        features = self._rated(student, teacher)
        if self.shards == 1:
            return half_trace(features, w[:, 0]).mean()
        shard = student.indices // self.shard_size
        traces = [half_trace(features[:, shard == s], w[:, s]) for s in range(self.shards)]
        return torch.stack(traces, dim=1).mean()

    def _health(self, rate: Tensor, moments: Tensor, w: Tensor, *, pull: Tensor) -> dict[str, Tensor]:
        """R between its bounds, the effective rank, and the measured rho, from the squared norm `pull` of alignment's
        gradient."""
        on_student = 1.0 if self.rate_on == "student" else 0.5
        scale = self.weight * on_student / (self.global_views * self.shards)
        push = scale**2 * (w @ moments * w).sum()  # tr(W M W): the squared norm of the rate's gradient
        return {
            "rate": rate,
            "expansion_fraction": (rate - self.floor) / (self.ceiling - self.floor),
            "effective_rank": effective_rank(moments.sum((0, 1))),
            "gradient_ratio": (push / pull).sqrt(),
        }
