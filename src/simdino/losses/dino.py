"""DINO: the student predicts the teacher's distribution over prototypes from other views of the same image.

    L = 1/(G (G + M - 1)) sum over cross-view pairs of the mean over images of - sum_k p_t[k] log p_s[k]

Source: Caron et al. 2021, main_dino.py at 7c446df (DINOLoss); with Sinkhorn-Knopp targets, DINOv2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from simdino.contracts import AllReduce, Embeddings, Logits, Loss, identity
from simdino.losses.alignment import alignment_sums, pairs
from simdino.losses.coding_rate import (
    double,
    effective_rank,
    rate_ceiling,
    rate_floor,
    rate_from_moments,
    second_moments,
)
from simdino.losses.cross_entropy import chunks, cross_entropy_sum
from simdino.losses.targets import Centred, Targets, balanced, moved_center

CENTER = "center"


@dataclass(frozen=True, kw_only=True)
class GlobalStatistics:
    """What the student of one micro-batch shall predict, and the health of the whole batch's teacher features."""

    classes: Targets  # [G, B, K]
    health: dict[str, Tensor]


class Sums(NamedTuple):
    """Sums over the images of all processes, float64 scalars."""

    entropy: Tensor  # cross-entropy over the cross-view pairs
    distance: Tensor  # as in `AlignmentSums`
    images: Tensor


@dataclass(frozen=True, kw_only=True)
class DINO:
    """The loss of a global batch of `batch` images with `prototypes` prototypes.

    centering: "centering" subtracts a moving mean from the teacher's logits, "sinkhorn" balances the batch.
    dim, eps: of the features before the prototypes, whose coding rate is reported as health.
    """

    batch: int
    dim: int
    prototypes: int
    global_views: int = 2
    local_views: int = 0
    student_temperature: float = 0.1
    center_momentum: float = 0.9
    centering: Literal["centering", "sinkhorn"] = "centering"
    eps: float = 0.05**0.5
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.buffers.setdefault(CENTER, torch.zeros(self.prototypes))

    @property
    def needs_global_statistics(self) -> bool:
        """The targets are the teacher's alone."""
        return False

    def global_statistics(
        self,
        teachers: Sequence[Embeddings],
        students: Sequence[Embeddings] | None,
        *,
        temperature: float,
        all_reduce: AllReduce,
    ) -> list[GlobalStatistics]:
        """The targets of each micro-batch: centred by what was remembered, or balanced over the whole batch."""
        logits = [logits_of(teacher) for teacher in teachers]
        with torch.no_grad(), torch.autocast(logits[0].weight.device.type, enabled=False):
            if self.centering == "sinkhorn":
                classes = balanced(logits, temperature=temperature, all_reduce=all_reduce)
            else:
                center = self.buffers[CENTER]
                classes = [Centred(logits=part, center=center, temperature=temperature) for part in logits]
            health = self._health(teachers, classes, all_reduce)
        return [GlobalStatistics(classes=part, health=health) for part in classes]

    def update_buffers(self, teachers: Sequence[Embeddings], *, all_reduce: AllReduce) -> None:
        """Move the centre towards the batch's mean logits."""
        logits = [logits_of(teacher) for teacher in teachers]
        center = self.buffers[CENTER]
        center.copy_(moved_center(center, logits, momentum=self.center_momentum, all_reduce=all_reduce))

    def __call__(
        self,
        student: Embeddings,
        teacher: Embeddings,
        statistics: GlobalStatistics,
        *,
        all_reduce: AllReduce = identity,
    ) -> Loss:
        """The loss of the images given, as their share of the global batch."""
        with torch.autocast(student.cls.device.type, enabled=False):
            entropy = cross_entropy_sum(
                logits_of(student), statistics.classes, temperature=self.student_temperature, across=True
            )
            own = alignment_sums(student, teacher)
            sums = Sums(*all_reduce(torch.stack([double(entropy), own.distance.detach(), own.images])))
            number = pairs(global_views=self.global_views, local_views=self.local_views) * self.batch
            share = sums.images.detach() / self.batch
            health = {name: share * value for name, value in statistics.health.items()}
            health["alignment"] = share - sums.distance.detach() / number
        total = sums.entropy / number
        return Loss(total=total, terms={"cross_entropy": total.detach()}, health=health)

    def _health(
        self, teachers: Sequence[Embeddings], classes: Sequence[Targets], all_reduce: AllReduce
    ) -> dict[str, Tensor]:
        """The coding rate of the teacher's features between its bounds, their effective rank, and how the targets use
        the prototypes: the mean entropy of a target and the entropy of the mean target, both as shares of log K."""
        moments = all_reduce(torch.stack([second_moments(teacher.cls) for teacher in teachers]).sum(0))  # [G, d, d]
        sizes: dict[str, Any] = {"d": self.dim, "n": self.batch, "eps": self.eps}
        floor, ceiling = rate_floor(**sizes), rate_ceiling(**sizes)
        rate = rate_from_moments(moments, n=self.batch, eps=self.eps)[0].mean()
        entropy, used = moments.new_zeros(()), self.buffers[CENTER].new_zeros(self.prototypes)
        for teacher, part in zip(teachers, classes, strict=True):
            for rows in chunks(teacher.cls.shape[1], self.global_views * self.prototypes, teacher.cls.device):
                targets = part.of(rows)
                entropy = entropy + double(torch.special.entr(targets).sum())
                used = used + targets.sum((0, 1))
        entropies = all_reduce(entropy)
        mean = all_reduce(used) / (self.global_views * self.batch)
        return {
            "rate": rate,
            "expansion_fraction": (rate - floor) / (ceiling - floor),
            "effective_rank": effective_rank(moments.sum(0)),
            "target_entropy": entropies / (self.global_views * self.batch * log(self.prototypes)),
            "prototype_use": double(torch.special.entr(mean).sum()) / log(self.prototypes),
        }


def logits_of(embeddings: Embeddings) -> Logits:
    """The prototype logits, which these embeddings must have."""
    if embeddings.logits is None:
        raise ValueError("this loss needs prototype logits, and the projector has no prototypes")
    return embeddings.logits
