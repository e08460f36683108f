"""From a teacher's prototype logits to the distributions that a student shall predict: centring or Sinkhorn-Knopp."""

from __future__ import annotations

import torch
from torch import Tensor

from simdino.contracts import Reduce, identity, precise


def centred(logits: Tensor, center: Tensor, *, temperature: float) -> Tensor:
    """softmax((l - c)/tau) over the last axis, float32 or better [..., K] (DINO, main_dino.py at 7c446df,
    DINOLoss.forward)."""
    return ((precise(logits) - center) / temperature).softmax(-1)


def moved_center(center: Tensor, logits: list[Tensor], *, momentum: float, reduce: Reduce = identity) -> Tensor:
    """momentum * c + (1 - momentum) * mean of the batch's logits, over all rows of all tensors [..., K]; the centre as
    it was where there are none."""
    flat = [precise(part).flatten(0, -2) for part in logits]
    total = reduce(torch.stack([part.sum(0) for part in flat]).sum(0))
    count = reduce(total.new_full((), sum(len(part) for part in flat)))
    return torch.where(count > 0, torch.lerp(total / count.clamp_min(1), center.to(total), momentum), center)


def sinkhorn(logits: Tensor, *, temperature: float, iterations: int = 3, reduce: Reduce = identity) -> Tensor:
    """Sinkhorn-Knopp assignments of this process's rows [m, K]: every row sums to one, and over all rows of all
    processes the prototypes are used nearly equally (SwAV; DINOv2, dino_clstoken_loss.py at b8931f7).

    Subtracting one number from all logits changes nothing and keeps the exponentials in range."""
    rows, prototypes = logits.shape
    logits = precise(logits)
    total = reduce(logits.new_full((), rows)).clamp_min(1)
    highest = logits.max() if rows else logits.new_zeros(())
    processes = reduce(torch.ones_like(highest))
    q = ((logits - reduce(highest) / processes) / temperature).exp()
    tiny = torch.finfo(q.dtype).tiny
    q = q / reduce(q.sum()).clamp_min(tiny)
    for _ in range(iterations):
        q = q / (reduce(q.sum(0)).clamp_min(tiny) * prototypes)
        q = q / (q.sum(1, keepdim=True).clamp_min(tiny) * total)
    return q * total
