"""DINO: the student predicts the teacher's distribution over prototypes from other views of the same image.

    L = 1/(G (G + M - 1)) sum over cross-view pairs of the mean over images of - sum_k p_t[k] log p_s[k]

Source: Caron et al. 2021, main_dino.py at 7c446df (DINOLoss); with Sinkhorn-Knopp targets, DINOv2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Literal

import torch
from torch import Tensor

from simdino.contracts import AllReduce, Embeddings, Logits, Loss, identity
from simdino.losses.coding_rate import double
from simdino.losses.cross_entropy import Centred, Targets, balanced, chunks, cross_entropy_sum, moved_center
from simdino.losses.objective import MicroBatches, Objective

CENTER = "center"


@dataclass(frozen=True, kw_only=True)
class DINO(Objective):
    """The loss of a global batch with `prototypes` prototypes.

    centering: "centering" subtracts a moving mean from the teacher's logits, "sinkhorn" balances the batch.
    """

    prototypes: int
    student_temperature: float = 0.1
    center_momentum: float = 0.9
    centering: Literal["centering", "sinkhorn"] = "centering"

    def __post_init__(self) -> None:
        self.buffers.setdefault(CENTER, torch.zeros(self.prototypes))

    def global_statistics(
        self, teachers: MicroBatches, students: MicroBatches | None, *, temperature: float, all_reduce: AllReduce
    ) -> Sequence[Any]:
        """The targets [G, B, K] of each micro-batch."""
        return self.targets(
            [logits_of(teacher) for teacher in teachers], CENTER, temperature=temperature, all_reduce=all_reduce
        )

    def targets(
        self, logits: list[Logits], center: str, *, temperature: float, all_reduce: AllReduce
    ) -> Sequence[Targets]:
        """The targets of each micro-batch: centred by a buffer, or balanced over the whole batch."""
        if self.centering == "centering":
            return [Centred(logits=part, center=self.buffers[center], temperature=temperature) for part in logits]
        with torch.no_grad(), torch.autocast(logits[0].weight.device.type, enabled=False):
            return balanced(logits, temperature=temperature, all_reduce=all_reduce)

    def loss(self, student: Embeddings, teacher: Embeddings, statistics: Any, all_reduce: AllReduce) -> Loss:
        """See the formula above."""
        entropy = cross_entropy_sum(logits_of(student), statistics, temperature=self.student_temperature, across=True)
        total = all_reduce(double(entropy)) / (self.pairs * self.batch)
        return Loss(total=total, terms={"cross_entropy": total})

    def health(
        self, teachers: MicroBatches, statistics: Sequence[Any], *, all_reduce: AllReduce = identity
    ) -> dict[str, Tensor]:
        """That of the features, and how the targets use the prototypes: the mean entropy of a target and the entropy of
        the mean target, both as shares of log K."""
        count = self.global_views * self.batch
        entropy, used = (self.buffers[CENTER].new_zeros(size) for size in ((), self.prototypes))
        with torch.no_grad(), torch.autocast(teachers[0].cls.device.type, enabled=False):
            entropy = double(entropy)
            for teacher, part in zip(teachers, statistics, strict=True):
                for rows in chunks(teacher.cls.shape[1], self.global_views * self.prototypes, teacher.cls.device):
                    targets = part.of(rows)
                    entropy = entropy + double(torch.special.entr(targets).sum())
                    used = used + targets.sum((0, 1))
            mean = all_reduce(used) / count
            entropies = {
                "target_entropy": all_reduce(entropy) / count,
                "prototype_use": double(torch.special.entr(mean).sum()),
            }
        shares = {name: value / log(self.prototypes) for name, value in entropies.items()}
        return super().health(teachers, statistics, all_reduce=all_reduce) | shares

    def update_buffers(self, teachers: MicroBatches, *, all_reduce: AllReduce) -> None:
        """Move the centre towards the batch's mean logits."""
        self.move_center(CENTER, [logits_of(teacher) for teacher in teachers], all_reduce=all_reduce)

    def move_center(self, name: str, logits: list[Logits], **settings: Any) -> None:
        """Move the centre of that name, see `cross_entropy.moved_center`."""
        center = self.buffers[name]
        center.copy_(moved_center(center, logits, momentum=self.center_momentum, **settings))


def logits_of(embeddings: Embeddings) -> Logits:
    """The prototype logits, which these embeddings must have."""
    if embeddings.logits is None:
        raise ValueError("this loss needs prototype logits, and the projector has no prototypes")
    return embeddings.logits
