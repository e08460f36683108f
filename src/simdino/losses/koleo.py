"""KoLeo: spread the class tokens of a batch by the distance of each to its nearest neighbour.

    L = - 1/n sum_i log( ||x_i - x_nn(i)|| + 1e-8 ),   x of unit norm

Source: Sablayrolles et al. 2018, as in DINOv2 (koleo_loss.py at b8931f7), there on each GPU's images alone; here on the
global batch or on shards of it, so that the number of processes does not change it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simdino.contracts import AllReduce, unit


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
    """Features [b, D] as rows `places` of a global batch [batch, D] that is zero elsewhere: summed over processes, all
    of them hold the whole batch."""
    return x.new_zeros(batch, x.shape[-1]).index_copy(0, indices.to(x.device), x)


def everyone(parts: list[Tensor], indices: list[Tensor], *, batch: int, all_reduce: AllReduce) -> Tensor:
    """The features of the whole batch [batch, D] from those of this process's micro-batches."""
    own = [spread_out(x, rows, batch=batch) for x, rows in zip(parts, indices, strict=True)]
    return all_reduce(torch.stack(own).sum(0))
