"""SimDINOv2: SimDINO on the class tokens of masked images, and alignment of the masked patches.

    L = L_SimDINO + w * 1/(G n) sum over global crops 1/max(1, |M|) sum over masked patches of ½||z_s - z_t||²

Source: Wu et al., arXiv 2502.10385, and SimDINO/simdinov2/loss/ibot_patch_loss.py at 8149fc4, whose -cos differs from
½||z_s - z_t||² = 1 - cos by a constant. Every crop counts in 1/(G n), masked or not, as there.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from simdino import rng as counters
from simdino.contracts import AllReduce, Embeddings, Loss, Patches
from simdino.losses.coding_rate import double, half_trace, rate_from_moments, second_moments, with_gradient
from simdino.losses.objective import patches_of
from simdino.losses.simdino import SimDINO


@dataclass(frozen=True, kw_only=True)
class SimDINOv2(SimDINO):
    """The loss of a global batch.

    patch_weight: w of the formula.
    patch_rate: weight of the coding rate of patches as a multiple of the class tokens' own; 0 is the paper's. The rate
        is that of one masked patch of every masked crop, chosen by the image's key.
    """

    patch_weight: float = 1.0
    patch_rate: float = 0.0

    def statistics(self, student: Embeddings, teacher: Embeddings) -> tuple[Tensor, ...]:
        """Second moments of the class tokens and, where their rate counts, of the sampled patches with their number."""
        patches = moments_of_sample(patches_of(student)) if self.patch_rate else ()
        return *super().statistics(student, teacher), *patches

    def loss(self, student: Embeddings, teacher: Embeddings, statistics: Any, all_reduce: AllReduce) -> Loss:
        """SimDINO's, with the distance of masked patches."""
        result = super().loss(student, teacher, statistics, all_reduce)
        patches = patches_of(student)
        distance = all_reduce(patch_distance_sum(patches, patches_of(teacher))) / (self.global_views * self.batch)
        total, terms = result.total + self.patch_weight * distance, {**result.terms, "patch_distance": distance}
        if self.patch_rate:
            _, moments, sampled = statistics
            rate, w = rate_from_moments(moments, n=max(1, int(sampled)), eps=self.eps)
            share = all_reduce(double(student.cls.new_full((), student.cls.shape[1]))) / self.batch
            surrogate = all_reduce(half_trace(sample(patches), w))
            weighted = self.patch_rate * self.weight * with_gradient(rate * share, surrogate)
            total, terms = total - weighted, {**terms, "patch_rate_weighted": weighted}
        return replace(result, total=total, terms=terms)


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
