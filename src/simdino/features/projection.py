"""Features for a person's eyes: as points of a plane, and in groups of images that lie together.

Both look at directions alone, as the cosine does: vectors are brought to unit length first."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simdino.extras import optional
from simdino.features.kmeans import spherical_kmeans
from simdino.features.nearest import unit_rows
from simdino.features.pca import leading
from simdino.features.spectra import Moments

Plane = NDArray[np.float64]  # [N, 2]

UMAP_NEIGHBOURS = 15  # umap-learn's default
ITERATIONS = 100  # of k-means, at most


def principal_plane(vectors: Tensor) -> tuple[Plane, float]:
    """Return the first two principal components of unit vectors, float64 [N, 2], and the share of the variance that
    they hold, in [0, 1].

    vectors: finite [N, D] with N >= 1 and D >= 2. A component is turned so that its skew is positive, so nothing is
    left to the solver."""
    rows = unit_rows(vectors).double()
    moments = Moments.of(rows)
    directions, variances = leading(moments, 2)
    scores = (rows - moments.mean) @ directions
    scores = scores * torch.where((scores**3).sum(0) < 0, -1.0, 1.0)
    total = float(moments.covariance.trace())
    return scores.numpy(), float(variances.sum()) / total if total > 0 else 1.0


def umap_plane(vectors: Tensor, *, start: Plane, seed: int = 0) -> Plane:
    """Return UMAP's layout of vectors [N, D] by cosine, float64 [N, 2], for N > 2 (McInnes, Healy and Melville 2018,
    with umap-learn's defaults).

    start: where the points begin, such as the principal plane: what lies far apart there then tends to stay apart
    (Kobak and Linderman 2021). Raises InputError without umap-learn."""
    umap = optional("umap")
    spread = np.abs(start).max() or 1.0
    begin = (10 * start / spread).astype(np.float32)
    k = min(UMAP_NEIGHBOURS, len(start) - 1)
    reducer = umap.UMAP(n_neighbors=k, metric="cosine", init=begin, random_state=seed, n_jobs=1)
    return reducer.fit_transform(unit_rows(vectors).numpy()).astype(np.float64)


def clusters(vectors: Tensor, count: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Return the cluster of each vector, int64 [N] in [0, count), as `EmbeddingIndex.kmeans` finds them; the largest
    is 0.

    vectors: [N, D] with N >= count. Where they have fewer than `count` directions, later clusters stay empty."""
    found = spherical_kmeans(vectors, clusters=count, seed=seed, iterations=ITERATIONS, fewer=True).assignments.numpy()
    order = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    return np.argsort(order)[found].astype(np.int64)
