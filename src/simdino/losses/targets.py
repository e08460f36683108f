"""From a teacher's prototype logits to the distributions that a student shall predict: centring or Sinkhorn-Knopp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from simdino.contracts import AllReduce, Logits, identity, precise


class Targets(Protocol):
    """Distributions over prototypes [..., n, K] that a student shall predict, a few of the n rows at a time."""

    def of(self, rows: slice) -> Tensor:
        """Those of some rows, float32 or better [..., rows, K]."""
        ...


@dataclass(frozen=True, kw_only=True)
class Centred:
    """Targets that are made again whenever they are asked for."""

    logits: Logits  # of the teacher
    center: Tensor  # [K]
    temperature: float

    def of(self, rows: slice) -> Tensor:
        """See `centred`."""
        return centred(self.logits.of(rows), self.center, temperature=self.temperature)


@dataclass(frozen=True, kw_only=True)
class FixedTargets:
    """Targets that are there: balanced over a batch, they cannot be made in parts."""

    classes: Tensor  # [..., n, K]

    def of(self, rows: slice) -> Tensor:
        """Those of some rows."""
        return self.classes[..., rows, :]


def centred(logits: Tensor, center: Tensor, *, temperature: float) -> Tensor:
    """softmax((l - c)/tau) over the last axis, float32 or better [..., K] (DINO, main_dino.py at 7c446df,
    DINOLoss.forward)."""
    return ((precise(logits) - center) / temperature).softmax(-1)


def moved_center(
    center: Tensor, logits: list[Logits], *,
    momentum: float, all_reduce: AllReduce = identity, shards: Sequence[Tensor] | None = None, count: int = 1,
) -> Tensor:  # fmt: skip
    """momentum * c + (1 - momentum) * mean of the batch's logits, over all rows of all parts; the centre as it was
    where there are none. The mean of logits is the logit of the mean: none of them is made.

    shards: of each row of each part, which of `count` shards it belongs to: the mean of the shards' means is taken,
    over those that have rows."""
    flat = [precise(part.features).flatten(0, -2) for part in logits]
    if shards is None:
        sums = torch.stack([part.sum(0) for part in flat]).sum(0, keepdim=True)  # [1, d]
        rows = sums.new_full((1,), sum(len(part) for part in flat))
    else:
        sums = flat[0].new_zeros(count, flat[0].shape[1])
        for part, own in zip(flat, shards, strict=True):
            sums = sums.index_add(0, own, part)
        rows = torch.cat(list(shards)).bincount(minlength=count).to(sums)
    sums, rows = all_reduce(sums), all_reduce(rows)
    used = (rows > 0).sum()
    mean = logits[0].weight @ ((sums / rows.clamp_min(1)[:, None]).sum(0) / used.clamp_min(1))
    return torch.where(used > 0, torch.lerp(mean, center.to(mean), momentum), center)


def sinkhorn(logits: Tensor, *, temperature: float, iterations: int = 3, all_reduce: AllReduce = identity) -> Tensor:
    """Sinkhorn-Knopp assignments of this process's rows [m, K]: every row sums to one, and over all rows of all
    processes the prototypes are used nearly equally (SwAV; DINOv2, dino_clstoken_loss.py at b8931f7).

    Subtracting one number from all logits changes nothing and keeps the exponentials in range."""
    rows, prototypes = logits.shape
    logits = precise(logits)
    total = all_reduce(logits.new_full((), rows)).clamp_min(1)
    highest = logits.max() if rows else logits.new_zeros(())
    processes = all_reduce(torch.ones_like(highest))
    q = ((logits - all_reduce(highest) / processes) / temperature).exp()
    tiny = torch.finfo(q.dtype).tiny
    q = q / all_reduce(q.sum()).clamp_min(tiny)
    for _ in range(iterations):
        q = q / (all_reduce(q.sum(0)).clamp_min(tiny) * prototypes)
        q = q / (q.sum(1, keepdim=True).clamp_min(tiny) * total)
    return q * total


def balanced(logits: list[Logits], *, temperature: float, all_reduce: AllReduce = identity) -> list[FixedTargets]:
    """Sinkhorn-Knopp targets of the rows of all parts together, [..., n, K] each."""
    whole = [part.of(slice(None)) for part in logits]
    rows = [part.flatten(0, -2) for part in whole]
    found = sinkhorn(torch.cat(rows), temperature=temperature, all_reduce=all_reduce).split(
        [len(part) for part in rows]
    )
    return [FixedTargets(classes=classes.view_as(part)) for classes, part in zip(found, whole, strict=True)]
