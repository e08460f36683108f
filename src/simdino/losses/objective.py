"""What a loss of a run is, and what is logged of every one: alignment, and the health of the teacher's features."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simdino.contracts import AllReduce, Embeddings, Loss, Patches, identity
from simdino.losses.coding_rate import (
    double,
    effective_rank,
    rate_ceiling,
    rate_floor,
    rate_from_moments,
    second_moments,
)

MicroBatches = Sequence[Embeddings]
"""The embeddings of a batch, one micro-batch after another."""


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """A loss of the global batch of `batch` images with embeddings of dimension `dim`. It owns no trained parameters.

    A step calls `global_statistics`, the loss for each micro-batch, and `update_buffers`. A loss that is a sum over
    images defines `loss` alone. One that is a function of sums over the batch gives these by `statistics`, and says so
    by `needs_global_statistics`.

    rank: the directions that the embeddings can have; None: all d. Behind a linear projector they are no more than the
        encoder's width and one, of its bias.
    eps: the distortion of the coding rate, which is logged where it is not part of the loss.
    buffers: kept from step to step, changed in place and saved with the run (DINO's centres)."""

    batch: int
    dim: int
    rank: int | None = None
    global_views: int = 2
    local_views: int = 0
    eps: float = 0.05**0.5
    buffers: dict[str, Tensor] = field(default_factory=dict)

    @property
    def needs_global_statistics(self) -> bool:
        """Whether a micro-batch needs the student's features of all the others."""
        return False

    @property
    def pairs(self) -> int:
        """Cross-view pairs: a teacher's global view with every other view of the student."""
        return self.global_views * (self.global_views + self.local_views - 1)

    @abstractmethod
    def loss(self, student: Embeddings, teacher: Embeddings, statistics: Any, all_reduce: AllReduce) -> Loss:
        """The share of the given images in the loss of the global batch, computed outside autocast: shares and their
        gradients add up to those of the batch. Every sum over images goes through `all_reduce`.

        statistics: what `global_statistics` gave to this micro-batch."""

    def statistics(self, student: Embeddings, teacher: Embeddings) -> tuple[Tensor, ...]:
        """The sums over the given images that `loss` needs of the whole batch, without a graph."""
        return ()

    def global_statistics(
        self, teachers: MicroBatches, students: MicroBatches | None, *, temperature: float, all_reduce: AllReduce
    ) -> Sequence[Any]:
        """What each micro-batch needs to know of the whole batch and of the buffers, without a graph: the sums of
        `statistics`, or None where there is only one micro-batch.

        students: given where there are several and the loss needs global statistics. temperature: the teacher's, for
        losses with prototypes."""
        if students is None:
            return [None] * len(teachers)
        parts = [self.statistics(student, teacher) for student, teacher in zip(students, teachers, strict=True)]
        whole = tuple(all_reduce(torch.stack(part).sum(0)) for part in zip(*parts, strict=True))
        return [whole] * len(teachers)

    def __call__(
        self, student: Embeddings, teacher: Embeddings, statistics: Any = None, *, all_reduce: AllReduce = identity
    ) -> Loss:
        """`loss`, with the alignment of views in its health, terms and health detached. Without statistics the given
        images of all processes are the batch."""
        with torch.autocast(student.cls.device.type, enabled=False):
            if statistics is None:
                statistics = tuple(map(all_reduce, self.statistics(student, teacher)))
            found = self.loss(student, teacher, statistics, all_reduce)
            with torch.no_grad():
                health = found.health
                if "alignment" not in health:
                    distance, images, _ = all_reduce(torch.stack(alignment_sums(student, teacher)))
                    health = {**health, "alignment": (images - distance / self.pairs) / self.batch}
        terms, health = ({name: x.detach() for name, x in named.items()} for named in (found.terms, health))
        return replace(found, terms=terms, health=health)

    def health(
        self, teachers: MicroBatches, statistics: Sequence[Any], *, all_reduce: AllReduce = identity
    ) -> dict[str, Tensor]:
        """The health of the whole batch: the coding rate of the teacher's features [G, n, d] between its bounds, and
        their effective rank. statistics: of each micro-batch, for losses that log more of it."""
        with torch.no_grad(), torch.autocast(teachers[0].cls.device.type, enabled=False):
            moments = all_reduce(torch.stack([second_moments(teacher.cls) for teacher in teachers]).sum(0))
            rate = rate_from_moments(moments, n=self.batch, eps=self.eps)[0].mean()
            floor = rate_floor(d=self.dim, n=self.batch, eps=self.eps)
            ceiling = rate_ceiling(d=self.dim, n=self.batch, eps=self.eps, rank=self.rank)
            return {
                "rate": rate,
                "expansion_fraction": (rate - floor) / (ceiling - floor),
                "effective_rank": effective_rank(moments.sum(0)),
            }

    def update_buffers(self, teachers: MicroBatches, *, all_reduce: AllReduce) -> None:  # noqa: B027 (most have none)
        """Update the buffers with the batch, after the weights have changed."""


class AlignmentSums(NamedTuple):
    """Sums over images, float64 scalars."""

    distance: Tensor  # ½||z_s - z_t||² over the cross-view pairs of each
    images: Tensor  # 1 for each
    pull: Tensor  # the squared norm of the gradient of -<z_s, z_t> at the student's features


def alignment_sums(student: Embeddings, teacher: Embeddings) -> AlignmentSums:
    """How alike the views of the given images are, as sums to be reduced over processes."""
    s, t = student.cls, teacher.cls
    distances = 0.5 * (s[None] - t[:, None]).square().sum(-1)  # [G, V, B]
    different = ~torch.eye(len(t), len(s), dtype=torch.bool, device=s.device)
    count = double(distances.new_full((), s.shape[1]))
    pulls = torch.einsum("gv,gbd->vbd", different.to(t), t)
    return AlignmentSums(double(distances[different]).sum(), count, double(pulls).square().sum())


def patches_of(embeddings: Embeddings) -> Patches:
    """The masked patches, which these views must have."""
    if embeddings.patches is None:
        raise ValueError("this loss needs masked patches, and the views have no masks")
    return embeddings.patches
