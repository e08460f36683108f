"""Approximate search along a graph (HNSW, Malkov and Yashunin 2016), by usearch.

usearch and not faiss: faiss-cpu brings an OpenMP of its own, beside which torch's ends the process on some systems.
"""

import torch
from torch import Tensor

from simdino.extras import optional
from simdino.features.nearest import among, best_of, nearest, unit

LINKS = 32  # of a vector in the graph
WIDTH_ADD, WIDTH = 128, 128  # how many candidates are followed when vectors are added, and when they are looked for
PART = 2**14  # vectors added together
SPARE = 10  # candidates beyond k whose scores are computed again


class Graph:
    """A graph over vectors [N, D]. Raises InputError without usearch.

    inverse: see `nearest.inverse_lengths`."""

    def __init__(self, vectors: Tensor, inverse: Tensor) -> None:
        usearch = optional("usearch.index")
        self.vectors, self.inverse = vectors, inverse
        self.graph = usearch.Index(
            ndim=vectors.shape[1], metric="cos", dtype="f16", connectivity=LINKS, expansion_add=WIDTH_ADD,
            expansion_search=WIDTH,
        )  # fmt: skip
        for start in range(0, len(vectors), PART):
            part = unit(vectors[start : start + PART]).cpu().numpy()
            keys = torch.arange(start, start + len(part)).numpy()
            self.graph.add(keys, part, copy=True, threads=torch.get_num_threads())

    def search(self, queries: Tensor, own: Tensor | None, *, k: int) -> tuple[Tensor, Tensor]:
        """Scores [Q, k] and positions [Q, k], as `nearest` has them. own: positions of the queries that are left out.

        A query for which the graph leads to fewer than k vectors is compared with all."""
        count = min(k + SPARE + (own is not None), len(self.vectors))
        self.graph.expansion_search = max(WIDTH, 2 * count)
        found = [self._found(part, count) for part in queries.split(PART)]
        index = torch.cat([one for one, _ in found]).to(self.vectors.device)
        counts = torch.cat([one for _, one in found]).to(self.vectors.device)
        scores = among(self.vectors, queries, index, dtype=torch.float64)
        scores = scores.where(torch.arange(count, device=scores.device) < counts[:, None], -torch.inf)
        if own is not None:
            scores = scores.where(index != own[:, None], -torch.inf)
        scores, index = best_of(scores, index, k=k)
        short = scores[:, -1] == -torch.inf
        if short.any():
            mine = None if own is None else own[short]
            for start, *best in nearest(self.vectors, queries[short], k=k, own=mine, exact=True, inverse=self.inverse):
                rows = short.nonzero()[start : start + len(best[0]), 0]
                scores[rows], index[rows] = best
        return scores, index

    def _found(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Positions [Q, count] and how many of them there are [Q]."""
        asked = unit(queries).cpu().numpy()
        if len(asked) == 1:  # of a single query usearch gives another shape
            asked = asked.repeat(2, axis=0)
        found = self.graph.search(asked, count, threads=torch.get_num_threads())
        keys, counts = (torch.from_numpy(one.astype("int64")) for one in (found.keys, found.counts))
        return keys[: len(queries)], counts[: len(queries)]
