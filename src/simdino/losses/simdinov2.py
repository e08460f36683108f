"""SimDINOv2: SimDINO on the class tokens of masked images, and alignment of the masked patches.

    L = L_SimDINO + w * 1/(G n) sum over global crops 1/max(1, |M|) sum over masked patches of ½||z_s - z_t||²

Source: Wu et al., arXiv 2502.10385, and SimDINO/simdinov2/loss/ibot_patch_loss.py at 8149fc4, whose -cos differs from
½||z_s - z_t||² = 1 - cos by a constant. Every crop counts in 1/(G n), masked or not, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from simdino import rng as counters
from simdino.contracts import AllReduce, Embeddings, Loss, Patches, identity
from simdino.losses.coding_rate import double, half_trace, rate_from_moments, second_moments, with_gradient
from simdino.losses.simdino import SimDINO


@dataclass(frozen=True, kw_only=True)
class GlobalStatistics:
    """What a micro-batch knows of the whole batch: second moments of the class tokens and of the sampled patches, and
    how many were sampled."""

    tokens: Tensor | None
    patches: Tensor  # float64 [d, d]
    sampled: Tensor  # float64 []


@dataclass(frozen=True, kw_only=True)
class SimDINOv2:
    """The loss of a global batch.

    tokens: the part on class tokens.
    patch_weight: w of the formula.
    patch_rate: weight of the coding rate of patches as a multiple of the class tokens' own; 0 is the paper's. The rate
        is that of one masked patch of every masked crop, chosen by the image's key.
    """

    tokens: SimDINO
    patch_weight: float = 1.0
    patch_rate: float = 0.0
    buffers: dict[str, Tensor] = field(default_factory=dict)  # always empty

    @property
    def needs_global_statistics(self) -> bool:
        """As the rate does."""
        return True

    def global_statistics(
        self,
        teachers: Sequence[Embeddings],
        students: Sequence[Embeddings] | None,
        *,
        temperature: float,
        all_reduce: AllReduce,
    ) -> list[GlobalStatistics | None]:
        """The moments of the whole batch for each of its micro-batches; nothing where there is but one."""
        if students is None:
            return [None] * len(teachers)
        tokens = self.tokens.global_statistics(teachers, students, temperature=temperature, all_reduce=all_reduce)[0]
        parts = [moments_of_sample(patches_of(student)) for student in students]
        moments = all_reduce(torch.stack([part[0] for part in parts]).sum(0))
        sampled = all_reduce(torch.stack([part[1] for part in parts]).sum(0))
        return [GlobalStatistics(tokens=tokens, patches=moments, sampled=sampled)] * len(teachers)

    def update_buffers(self, teachers: Sequence[Embeddings], *, all_reduce: AllReduce) -> None:
        """Nothing."""

    def __call__(
        self,
        student: Embeddings,
        teacher: Embeddings,
        statistics: GlobalStatistics | None = None,
        *,
        all_reduce: AllReduce = identity,
    ) -> Loss:
        """The loss of the images given, as their share of the global batch."""
        result = self.tokens(student, teacher, None if statistics is None else statistics.tokens, all_reduce=all_reduce)
        with torch.autocast(student.cls.device.type, enabled=False):
            mine, theirs = patches_of(student), patches_of(teacher)
            distance = all_reduce(patch_distance_sum(mine, theirs)) / (self.tokens.global_views * self.tokens.batch)
            total = result.total + self.patch_weight * distance
            terms = {**result.terms, "patch_distance": distance.detach()}
            if self.patch_rate:
                share = all_reduce(double(student.cls.new_full((), student.cls.shape[1]))) / self.tokens.batch
                weighted = self._weighted_rate(mine, statistics, share, all_reduce)
                total, terms = total - weighted, {**terms, "patch_rate_weighted": weighted.detach()}
        return replace(result, total=total, terms=terms)

    def _weighted_rate(
        self, patches: Patches, statistics: GlobalStatistics | None, share: Tensor, all_reduce: AllReduce
    ) -> Tensor:
        """patch_rate * gamma * R of the sampled patches, the share of these images."""
        if statistics is None:
            moments, sampled = (all_reduce(part) for part in moments_of_sample(patches))
        else:
            moments, sampled = statistics.patches, statistics.sampled
        n = max(1, int(sampled))
        rate, w = rate_from_moments(moments, n=n, eps=self.tokens.eps)
        surrogate = all_reduce(half_trace(sample(patches), w))
        return self.patch_rate * self.tokens.weight * with_gradient(rate * share, surrogate)


def patches_of(embeddings: Embeddings) -> Patches:
    """The masked patches, which these views must have."""
    if embeddings.patches is None:
        raise ValueError("this loss needs masked patches, and the views have no masks")
    return embeddings.patches


def patch_distance_sum(student: Patches, teacher: Patches) -> Tensor:
    """Weighted sum over masked patches of ½||z_s - z_t||², float64."""
    distances = 0.5 * (student.features - teacher.features).square().sum(-1)
    return (double(distances) * double(student.weights)).sum()


def sample(patches: Patches) -> Tensor:
    """One masked patch of every masked crop [crops, d]: which one depends on the image's key alone."""
    if not len(patches.features):
        return patches.features
    _, lengths = torch.unique_consecutive(patches.keys, return_counts=True)
    starts = lengths.cumsum(0) - lengths
    chance = torch.from_numpy(counters.uniform(patches.keys[starts].cpu().numpy(), counters.SAMPLE, 1)[:, 0])
    offsets = (chance * lengths.cpu()).long()  # float64, which not every device has
    return patches.features[starts + offsets.to(starts.device)]


def moments_of_sample(patches: Patches) -> tuple[Tensor, Tensor]:
    """Second moments of the sampled patches, float64 [d, d], and their number, without a graph."""
    with torch.no_grad(), torch.autocast(patches.features.device.type, enabled=False):
        chosen = sample(patches)
        return second_moments(chosen), double(chosen.new_full((), len(chosen)))
