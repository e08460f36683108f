"""DINOv2: DINO on class tokens, iBOT on masked patches, KoLeo on the backbone's class tokens.

    L = L_DINO + w_ibot * L_iBOT + w_koleo * sum over global crops of KoLeo

Source: Oquab et al. 2023, ssl_meta_arch.py at b8931f7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from simdino.contracts import AllReduce, Embeddings, Loss, identity, precise
from simdino.losses import dino
from simdino.losses.coding_rate import double, with_gradient
from simdino.losses.dino import DINO
from simdino.losses.ibot import masked_cross_entropy_sum, masked_patches, patch_logits
from simdino.losses.koleo import everyone, koleo, spread_out
from simdino.losses.targets import Centred, Targets, balanced, moved_center

PATCH_CENTER = "patch_center"


@dataclass(frozen=True, kw_only=True)
class GlobalStatistics:
    """What one micro-batch needs to know of the whole batch."""

    tokens: dino.GlobalStatistics
    patches: Targets | None  # [1, m, K], of its masked patches
    features: Tensor | None  # [G, n, D], the backbone's class tokens of the whole batch, where it has several parts


@dataclass(frozen=True, kw_only=True)
class DINOv2:
    """The loss of a global batch. `patch_weight` and `koleo_weight` are w_ibot and w_koleo; 0 leaves a part out.

    shard_size: KoLeo looks for neighbours among so many consecutive images, and iBOT's centre moves to the mean of the
    shards' means: what the official code computes on batch/shard_size processes. None: among all of the batch."""

    tokens: DINO
    patch_prototypes: int
    patch_weight: float = 1.0
    koleo_weight: float = 0.1
    shard_size: int | None = None

    def __post_init__(self) -> None:
        self.buffers.setdefault(PATCH_CENTER, torch.zeros(self.patch_prototypes))

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Both centres."""
        return self.tokens.buffers

    @property
    def needs_global_statistics(self) -> bool:
        """KoLeo compares with images of other micro-batches."""
        return self.koleo_weight > 0

    def global_statistics(
        self,
        teachers: Sequence[Embeddings],
        students: Sequence[Embeddings] | None,
        *,
        temperature: float,
        all_reduce: AllReduce,
    ) -> list[GlobalStatistics]:
        """Targets of class tokens and patches, and where the batch is in parts the student's features of all."""
        tokens = self.tokens.global_statistics(teachers, None, temperature=temperature, all_reduce=all_reduce)
        patches = self._patch_targets(teachers, temperature=temperature, all_reduce=all_reduce)
        features = None if students is None else self._everyones_features(students, all_reduce)
        return [GlobalStatistics(tokens=t, patches=p, features=features) for t, p in zip(tokens, patches, strict=True)]

    def update_buffers(self, teachers: Sequence[Embeddings], *, all_reduce: AllReduce) -> None:
        """Move both centres."""
        self.tokens.update_buffers(teachers, all_reduce=all_reduce)
        if self.patch_weight:
            center, logits = self.buffers[PATCH_CENTER], [patch_logits(teacher) for teacher in teachers]
            moves: dict[str, Any] = {"momentum": self.tokens.center_momentum, "all_reduce": all_reduce}
            if self.shard_size is not None:
                shards = [patches.indices // self.shard_size for patches in map(masked_patches, teachers)]
                moves |= {"shards": shards, "count": self.tokens.batch // self.shard_size}
            center.copy_(moved_center(center, logits, **moves))

    def __call__(
        self,
        student: Embeddings,
        teacher: Embeddings,
        statistics: GlobalStatistics,
        *,
        all_reduce: AllReduce = identity,
    ) -> Loss:
        """The loss of the images given, as their share of the global batch."""
        result = self.tokens(student, teacher, statistics.tokens, all_reduce=all_reduce)
        total, terms, batch = result.total, dict(result.terms), self.tokens.batch
        with torch.autocast(student.cls.device.type, enabled=False):
            if self.patch_weight and statistics.patches is not None and student.patches is not None:
                temperature = self.tokens.student_temperature
                entropy = masked_cross_entropy_sum(student.patches, statistics.patches, temperature=temperature)
                patches = all_reduce(double(entropy)) / (self.tokens.global_views * batch)
                total, terms["patch_cross_entropy"] = total + self.patch_weight * patches, patches.detach()
            if self.koleo_weight:
                spread = double(self._koleo(student, statistics.features, all_reduce))
                total, terms["koleo"] = total + self.koleo_weight * spread, spread.detach()
        return replace(result, total=total, terms=terms)

    def _everyones_features(self, students: Sequence[Embeddings], all_reduce: AllReduce) -> Tensor:
        """The backbone's class tokens of the global views of the whole batch, without a graph: [G, n, D]."""
        batch, indices = self.tokens.batch, [student.indices for student in students]
        with torch.no_grad():
            views = [[precise(s.backbone[v]) for s in students] for v in range(self.tokens.global_views)]
            return torch.stack([everyone(view, indices, batch=batch, all_reduce=all_reduce) for view in views])

    def _patch_targets(
        self, teachers: Sequence[Embeddings], *, temperature: float, all_reduce: AllReduce
    ) -> Sequence[Targets | None]:
        """Targets of the masked patches of each micro-batch: all of the batch are balanced together."""
        if not self.patch_weight:
            return [None] * len(teachers)
        logits = [patch_logits(teacher) for teacher in teachers]
        if self.tokens.centering == "sinkhorn":
            with torch.no_grad():
                return balanced(logits, temperature=temperature, all_reduce=all_reduce)
        return [Centred(logits=part, center=self.buffers[PATCH_CENTER], temperature=temperature) for part in logits]

    def _koleo(self, student: Embeddings, statistics: Tensor | None, all_reduce: AllReduce) -> Tensor:
        """The sum over global crops of the whole batch's KoLeo loss, the share of these images."""
        batch, own = self.tokens.batch, precise(student.backbone[: self.tokens.global_views])
        among = partial(koleo, among=self.shard_size)
        if statistics is None:
            return torch.stack([among(all_reduce(spread_out(x, student.indices, batch=batch))) for x in own]).sum()
        share = all_reduce(own.new_full((), own.shape[1])) / batch
        rows = student.indices.to(own.device)
        value = torch.stack([among(x) for x in statistics]).sum() * share
        surrogate = torch.stack(
            [among(rest.index_copy(0, rows, x)) for rest, x in zip(statistics, own, strict=True)]
        ).sum()
        return with_gradient(value, all_reduce(surrogate))
