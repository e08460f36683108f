"""DINOv2: DINO on class tokens, iBOT on masked patches, KoLeo on the backbone's class tokens.

    L       = L_DINO + w_ibot * L_iBOT + w_koleo * sum over global crops of L_KoLeo
    L_iBOT  = 1/(G n) sum over global crops 1/max(1, |M|) sum over masked patches of - sum_k t[k] log s[k]
    L_KoLeo = - 1/n sum_i log( ||x_i - x_nn(i)|| + 1e-8 ),   x of unit norm

iBOT: the student predicts, from the mask token, the teacher's distribution of the patch that was hidden; every crop
counts in 1/(G n), masked or not. KoLeo spreads the class tokens of a batch by the distance of each to its nearest
neighbour: there among each GPU's images, here among the global batch or shards of it, so that the number of processes
does not change it.

Source: Oquab et al. 2023 (ssl_meta_arch.py, ibot_patch_loss.py, koleo_loss.py at b8931f7); iBOT is of Zhou et al. 2021,
KoLeo of Sablayrolles et al. 2018.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from simdino.contracts import AllReduce, Embeddings, Logits, Loss, Patches, identity, precise, unit
from simdino.losses.coding_rate import double, with_gradient
from simdino.losses.cross_entropy import Targets, cross_entropy_sum
from simdino.losses.dino import DINO
from simdino.losses.objective import MicroBatches, patches_of

PATCH_CENTER = "patch_center"


@dataclass(frozen=True, kw_only=True)
class GlobalStatistics:
    """What one micro-batch needs to know of the whole batch."""

    tokens: Targets  # [G, B, K]
    patches: Targets | None  # [1, m, K], of its masked patches
    features: Tensor | None  # [G, n, D], the backbone's class tokens of the whole batch, where it has several parts


@dataclass(frozen=True, kw_only=True)
class DINOv2(DINO):
    """The loss of a global batch. `patch_weight` and `koleo_weight` are w_ibot and w_koleo; 0 leaves a part out.

    shard_size: KoLeo looks for neighbours among so many consecutive images, and iBOT's centre moves to the mean of the
    shards' means: what the official code computes on batch/shard_size processes. None: among all of the batch."""

    patch_weight: float = 1.0
    koleo_weight: float = 0.1
    shard_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.buffers.setdefault(PATCH_CENTER, torch.zeros(self.prototypes))

    @property
    def needs_global_statistics(self) -> bool:
        """KoLeo compares with images of other micro-batches."""
        return self.koleo_weight > 0

    def global_statistics(
        self, teachers: MicroBatches, students: MicroBatches | None, *, temperature: float, all_reduce: AllReduce
    ) -> Sequence[Any]:
        """Targets of class tokens and patches, and where the batch is in parts the student's features of all."""
        given: dict[str, Any] = {"temperature": temperature, "all_reduce": all_reduce}
        patches: Sequence[Targets | None] = [None] * len(teachers)
        if self.patch_weight:
            patches = self.targets([patch_logits(teacher) for teacher in teachers], PATCH_CENTER, **given)
        features = None
        if students is not None:
            with torch.no_grad():
                features = all_reduce(torch.stack([self._spread_out(student) for student in students]).sum(0))
        tokens = super().global_statistics(teachers, students, **given)
        return [GlobalStatistics(tokens=t, patches=p, features=features) for t, p in zip(tokens, patches, strict=True)]

    def loss(self, student: Embeddings, teacher: Embeddings, statistics: Any, all_reduce: AllReduce) -> Loss:
        """See the formula above."""
        result = super().loss(student, teacher, statistics.tokens, all_reduce)
        total, terms = result.total, dict(result.terms)
        if self.patch_weight:
            entropy = masked_cross_entropy_sum(
                patches_of(student), statistics.patches, temperature=self.student_temperature
            )
            patches = all_reduce(double(entropy)) / (self.global_views * self.batch)
            total, terms["patch_cross_entropy"] = total + self.patch_weight * patches, patches
        if self.koleo_weight:
            spread = double(self._koleo(student, statistics.features, all_reduce))
            total, terms["koleo"] = total + self.koleo_weight * spread, spread
        return replace(result, total=total, terms=terms)

    def health(
        self, teachers: MicroBatches, statistics: Sequence[Any], *, all_reduce: AllReduce = identity
    ) -> dict[str, Tensor]:
        """DINO's, of the class tokens."""
        return super().health(teachers, [part.tokens for part in statistics], all_reduce=all_reduce)

    def update_buffers(self, teachers: MicroBatches, *, all_reduce: AllReduce) -> None:
        """Move both centres."""
        super().update_buffers(teachers, all_reduce=all_reduce)
        if self.patch_weight:
            shards: dict[str, Any] = {}
            if self.shard_size is not None:
                own = [patches_of(teacher).indices // self.shard_size for teacher in teachers]
                shards = {"shards": own, "count": self.batch // self.shard_size}
            logits = [patch_logits(teacher) for teacher in teachers]
            self.move_center(PATCH_CENTER, logits, all_reduce=all_reduce, **shards)

    def _spread_out(self, student: Embeddings) -> Tensor:
        """The backbone's class tokens of the global views, see `spread_out`: [G, n, D]."""
        return spread_out(precise(student.backbone[: self.global_views]), student.indices, batch=self.batch)

    def _koleo(self, student: Embeddings, features: Tensor | None, all_reduce: AllReduce) -> Tensor:
        """The sum over global crops of the whole batch's KoLeo loss, the share of these images."""
        among = partial(koleo, among=self.shard_size)
        if features is None:
            return torch.stack([among(x) for x in all_reduce(self._spread_out(student))]).sum()
        own = precise(student.backbone[: self.global_views])
        share = all_reduce(own.new_full((), own.shape[1])) / self.batch
        value = torch.stack([among(x) for x in features]).sum() * share
        replaced = features.index_copy(1, student.indices.to(own.device), own)
        return with_gradient(value, all_reduce(torch.stack([among(x) for x in replaced]).sum()))


def patch_logits(embeddings: Embeddings) -> Logits:
    """The prototype logits [1, m, K] of the masked patches, which these embeddings must have."""
    if embeddings.patches is None or embeddings.patches.logits is None:
        why = "the views have no masks" if embeddings.patches is None else "their head has no prototypes"
        raise ValueError(f"this loss needs prototype logits of masked patches, and {why}")
    return embeddings.patches.logits


def masked_cross_entropy_sum(patches: Patches, targets: Targets, *, temperature: float) -> Tensor:
    """The weighted sum over masked patches of their cross-entropy, float32 or better. targets: [1, m, K]."""
    assert patches.logits is not None
    return cross_entropy_sum(patches.logits, targets, temperature=temperature, across=False, weights=patches.weights)


def koleo(x: Tensor, *, among: int | None = None) -> Tensor:
    """The KoLeo loss of features [n, D], normalised here: float32 or better, scalar. among: neighbours are looked for
    in groups of so many consecutive rows; None: in all of them."""
    shards = unit(x).unflatten(0, (-1, among or len(x)))  # [S, m, D]
    with torch.no_grad():
        cosines = shards @ shards.mT
        cosines.diagonal(dim1=1, dim2=2).fill_(-1)
        nearest = cosines.argmax(2, keepdim=True)
    distances = (shards - shards.take_along_dim(nearest, dim=1)).square().sum(2).clamp_min(1e-16).sqrt()
    return -(distances + 1e-8).log().mean()


def spread_out(x: Tensor, indices: Tensor, *, batch: int) -> Tensor:
    """Features [..., b, D] as the rows `indices` of a global batch [..., batch, D] that is zero elsewhere: summed over
    micro-batches and processes, these are the whole batch."""
    return x.new_zeros(*x.shape[:-2], batch, x.shape[-1]).index_copy(-2, indices.to(x.device), x)
