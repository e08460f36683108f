"""The distributions over prototypes that a student shall predict, and its cross-entropy with them.

A teacher's logits become targets by centring, with a moving mean or with what Sinkhorn-Knopp finds for the batch.
Targets and cross-entropy take a few rows at a time: their memory does not grow with the batch. The gradient is made in
the same pass: with p the softmax of a row, t its targets and m their sum, it is (m p - t)/tau, from which those
of the features and of the prototypes follow. Nothing of size [V, B, K] is ever built: with 65,536 prototypes and 1,024
images that would be 3 GB for the student's logits alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from simdino.contracts import AllReduce, Logits, identity, precise

AT_ONCE = {"cpu": 2**24, "cuda": 2**26}
"""Logits that are made at a time: enough for matrix products at full speed."""


class Targets(Protocol):
    """Distributions over prototypes [..., n, K] that a student shall predict, a few of the n rows at a time."""

    def of(self, rows: slice) -> Tensor:
        """Those of some rows, float32 or better [..., rows, K]."""
        ...


@dataclass(frozen=True, kw_only=True)
class Centred:
    """Targets from logits less a centre, made anew for the rows that are asked for."""

    logits: Logits  # of the teacher
    center: Tensor  # [K]
    temperature: float

    def of(self, rows: slice) -> Tensor:
        """See `centred`."""
        return centred(self.logits.of(rows), self.center, temperature=self.temperature)


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
    processes the prototypes are used nearly equally (SwAV; DINOv2, dino_clstoken_loss.py at b8931f7)."""
    logits = precise(logits)
    center = sinkhorn_center(
        lambda: [logits], logits.new_zeros(logits.shape[1]),
        temperature=temperature, iterations=iterations, all_reduce=all_reduce,
    )  # fmt: skip
    return centred(logits, center, temperature=temperature)


def sinkhorn_center(
    rows: Callable[[], Iterable[Tensor]], start: Tensor, *,
    temperature: float, iterations: int = 3, all_reduce: AllReduce = identity,
) -> Tensor:  # fmt: skip
    """The centre [K] with which `centred` targets are those of Sinkhorn-Knopp.

    It multiplies exp(l/tau) in turn by a number c for each prototype, so that all are used equally, and by a number r
    for each row, which then sums to one; a row comes last. A softmax divides each row by its sum, so that c is all that
    must be known of the batch: as a centre, -tau log c. Subtracting one number from all logits changes nothing and
    keeps the exponentials in range.

    rows: gives the logits [m, K] of this process, some rows at a time, as often as it is called. start: zeros [K]."""
    tops = [part.max() for part in rows() if len(part)]
    highest = torch.stack(tops).max() if tops else start.sum()
    highest = all_reduce(highest) / all_reduce(torch.ones_like(highest))
    tiny = torch.finfo(start.dtype).tiny
    c = torch.ones_like(start)
    for i in range(iterations):
        used = torch.zeros_like(start)
        for part in rows():
            q = ((part - highest) / temperature).exp()
            used += q.sum(0) if i == 0 else (1 / (q @ c).clamp_min(tiny)) @ q
        c = 1 / (all_reduce(used).clamp_min(tiny) * len(start))
    return -temperature * c.log()


def balanced(logits: list[Logits], *, temperature: float, all_reduce: AllReduce = identity) -> list[Centred]:
    """Sinkhorn-Knopp targets of the rows of all parts together, [..., n, K] each. The logits are kept while the targets
    are balanced if they are few, else made anew for each pass over them."""
    prototypes, device = logits[0].weight.shape[0], logits[0].weight.device

    def made() -> Iterator[Tensor]:
        for part in logits:
            views, rows = part.features.shape[:-2].numel(), part.features.shape[-2]
            yield from (part.of(some).flatten(0, -2) for some in chunks(rows, views * prototypes, device))

    count = sum(part.features.shape[:-1].numel() for part in logits) * prototypes
    few = list(made()) if count <= at_once(device) else None
    start = precise(logits[0].weight.new_zeros(prototypes))
    center = sinkhorn_center(
        lambda: made() if few is None else few, start, temperature=temperature, all_reduce=all_reduce
    )
    return [Centred(logits=part, center=center, temperature=temperature) for part in logits]


def at_once(device: torch.device) -> int:
    """How many logits are made at a time."""
    return AT_ONCE.get(device.type, AT_ONCE["cpu"])


def chunks(rows: int, logits: int, device: torch.device) -> Iterator[slice]:
    """Slices of the rows; `logits` of them are made for each row."""
    size = max(1, at_once(device) // logits)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def cross_entropy_sum(
    student: Logits, targets: Targets, *, temperature: float, across: bool, weights: Tensor | None = None
) -> Tensor:
    """The sum over rows, views and their targets of - sum_k t[k] log softmax(l/temperature)[k], a scalar in float32 or
    better, differentiable in the student's features and prototypes.

    student: [V, n, K]; targets: [G, n, K]. across: a view shall predict the targets of all views but its own; else
    those of its own alone. weights: of the rows [n].
    """
    return CrossEntropy.apply(precise(student.features), student.weight, targets, weights, temperature, across)  # pyright: ignore[reportReturnType]


class CrossEntropy(torch.autograd.Function):
    """`cross_entropy_sum`, whose gradient is made with its value."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, prototypes: Tensor, targets: Targets, weights: Tensor | None, temperature: float,
        across: bool,
    ) -> Tensor:  # fmt: skip
        """Value and gradient in one pass over the rows."""
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        gradients = (torch.zeros_like(features), torch.zeros_like(prototypes)) if wanted else None
        total = features.new_zeros(())
        for rows in chunks(features.shape[1], len(features) * len(prototypes), features.device):
            given = targets.of(rows)
            if weights is not None:
                given = given * weights[rows, None]
            everyones = given.sum(0)
            x = features[:, rows]
            scaled = F.linear(x, prototypes).div_(temperature)
            for view, logits in enumerate(scaled):
                t = everyones if across else given[view]
                if across and view < len(given):
                    t = everyones - given[view]
                normaliser, mass = logits.logsumexp(-1, keepdim=True), t.sum(-1, keepdim=True)
                total += (mass * normaliser).sum() - (t * logits).sum()
                if wanted:
                    logits.sub_(normaliser).exp_().mul_(mass).sub_(t).div_(temperature)  # now the gradient
            if gradients is not None:
                gradients[0][:, rows] = scaled @ prototypes
                gradients[1].addmm_(scaled.flatten(0, 1).mT, x.flatten(0, 1))
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that are there already, times the one of the total."""
        features, prototypes = (part * upstream[0] for part in ctx.gradients)
        return features, prototypes, None, None, None, None
