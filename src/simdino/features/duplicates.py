"""Near duplicates: the groups of vectors that a chain of cosines above a threshold connects. Exact, in blocks."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from simdino.features.nearest import ROWS, among, full_precision, rounding, unit_rows

COLUMNS = 2**13  # of a block of cosines: 16 MB, and up to eight times that where all are above the threshold
HELD = 2**20  # pairs held before their groups are joined
Pairs = NDArray[np.int64]  # [2, pairs]


def groups_above(vectors: Tensor, *, threshold: float, inverse: Tensor) -> list[list[int]]:
    """The groups of two vectors [N, D] or more, positions in rising order, the largest group first, of equal ones the
    one with the earliest vector. inverse: see `nearest.inverse_lengths`."""
    group = np.arange(len(vectors))  # of each vector
    held, count = list[Pairs](), 0
    for pairs in pairs_above(vectors, threshold=threshold, inverse=inverse):
        ends = group[pairs]
        keys = np.unique((ends[0] * len(group) + ends[1])[ends[0] != ends[1]])
        held.append(np.stack([keys // len(group), keys % len(group)]))
        count += len(keys)
        if count > HELD:
            group, held, count = joined(group, held), [], 0
    group = joined(group, held)
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return sorted((one.tolist() for one in members if len(one) > 1), key=lambda one: (-len(one), one[0]))


def joined(group: NDArray[np.int64], held: list[Pairs]) -> NDArray[np.int64]:
    """The group of each vector once groups that a pair connects are one. held: pairs of groups."""
    pairs = np.concatenate(held, axis=1) if held else np.empty((2, 0), dtype=np.int64)
    links = coo_array((np.ones(pairs.shape[1], dtype=bool), (pairs[0], pairs[1])), shape=(len(group), len(group)))
    return connected_components(links, directed=False)[1].astype(np.int64)[group]


def pairs_above(vectors: Tensor, *, threshold: float, inverse: Tensor) -> Iterator[Pairs]:
    """Pairs of positions whose cosine, in float64 and rounded to float32, is at least the threshold; a block at a time,
    each pair once. A product in float32 decides all but those that its rounding leaves open."""
    limit = float(np.float32(threshold))
    open_within = rounding(vectors.shape[1])
    for start in range(0, len(vectors), ROWS):
        block = unit_rows(vectors[start : start + ROWS])
        for first in range(start, len(vectors), COLUMNS):
            part = slice(first, first + COLUMNS)
            with full_precision():
                cosines = (block @ vectors[part].T).mul_(inverse[part])
            near = cosines >= limit - open_within
            if first < start + ROWS:  # a vector with itself, and pairs the other way round
                near = near.triu(1 + start - first)
            at = near.nonzero()
            certain = cosines[at[:, 0], at[:, 1]] > limit + open_within
            left, right = at[:, 0] + start, at[:, 1] + first
            for some in (~certain).nonzero()[:, 0].split(COLUMNS):
                again = among(vectors, vectors[left[some]], right[some][:, None], dtype=torch.float64)
                certain[some] = again[:, 0] >= limit
            yield torch.stack([left[certain], right[certain]]).cpu().numpy()
