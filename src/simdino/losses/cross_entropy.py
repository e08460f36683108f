"""The cross-entropy of logits with targets, a few rows at a time: its memory does not grow with the batch (targets that
Sinkhorn-Knopp balances over a batch do).

The gradient is made in the same pass: with p the softmax of a row, t its targets and m their sum, it is (m p - t)/tau,
from which follow those of the features and of the prototypes. Nothing of size [V, B, K] is ever built: with 65,536
prototypes and 1,024 images that would be 3 GB for the student's logits alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from simdino.contracts import Logits, precise
from simdino.losses.targets import Targets

AT_ONCE = {"cpu": 2**24, "cuda": 2**26}
"""Logits that are made at a time: enough for matrix products at full speed."""


def chunks(rows: int, logits: int, device: torch.device) -> Iterator[slice]:
    """Slices of the rows, for each of which so many logits are made."""
    size = max(1, AT_ONCE.get(device.type, 2**24) // logits)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def cross_entropy_sum(
    student: Logits, targets: Targets, *, temperature: float, across: bool, weights: Tensor | None = None
) -> Tensor:
    """The sum over rows, views and their targets of - sum_k t[k] log softmax(l/temperature)[k], a scalar in float32 or
    better, differentiable in the student's features and prototypes.

    student: [V, n, K]; targets: [G, n, K]. across: a view shall predict the targets of all views but its own; else
    those of its own alone. weights: of the rows [n].
    """
    sizes = temperature, across
    return CrossEntropy.apply(precise(student.features), student.weight, targets, weights, *sizes)  # pyright: ignore[reportReturnType]


class CrossEntropy(torch.autograd.Function):
    """See above."""

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
