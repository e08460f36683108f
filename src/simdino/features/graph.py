"""Approximate search along a graph (HNSW, Malkov and Yashunin 2016), by faiss: from vector to more alike vector."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from simdino.extras import optional
from simdino.features.nearest import COLUMNS, among, best_of, nearest, unit_rows

LINKS = 16  # of a vector in the graph
WIDTH_ADD, WIDTH = 128, 256  # candidates that are followed when a vector is added, and at least when it is looked for
SPARE = 10  # candidates beyond k whose scores are computed again


class Graph:
    """A graph over vectors [N, D], which it holds in half precision. Made by several threads, it may differ a little
    from time to time. Raises InputError without faiss.

    inverse: see `nearest.inverse_lengths`."""

    def __init__(self, vectors: Tensor, inverse: Tensor) -> None:
        self.faiss = optional("faiss")
        self.vectors, self.inverse = vectors, inverse
        kind, metric = f"HNSW{LINKS},SQfp16", self.faiss.METRIC_INNER_PRODUCT
        self.graph = self.faiss.index_factory(vectors.shape[1], kind, metric)
        self.graph.hnsw.efConstruction = WIDTH_ADD
        with self._threads():
            self.graph.train(unit_rows(vectors[:1]).cpu().numpy())  # half precision has nothing to learn
            for part in vectors.split(COLUMNS):
                self.graph.add(unit_rows(part).cpu().numpy())

    def search(self, queries: Tensor, own: Tensor | None, *, k: int) -> tuple[Tensor, Tensor]:
        """Scores [Q, k] and positions [Q, k], as `nearest` has them. own: positions of the queries, which are left out.

        A query from which the graph leads to fewer than k vectors is compared with all."""
        count = min(k + SPARE + (own is not None), len(self.vectors))
        index = torch.cat([self._found(part, count) for part in queries.split(COLUMNS)]).to(self.vectors.device)
        scores = among(self.vectors, queries, index.clamp_min(0), dtype=torch.float64)
        scores = scores.where(index >= 0, -torch.inf)
        if own is not None:
            scores = scores.where(index != own[:, None], -torch.inf)
        scores, index = best_of(scores, index.clamp_min(0), k=k)
        short = (scores[:, -1] == -torch.inf).nonzero()[:, 0]
        mine = None if own is None else own[short]
        others = nearest(self.vectors, queries[short], k=k, own=mine, exact=True, inverse=self.inverse)
        for start, *best in others:
            rows = short[start : start + len(best[0])]
            scores[rows], index[rows] = best
        return scores, index

    def _found(self, queries: Tensor, count: int) -> Tensor:
        """Positions [Q, count]; -1 where the graph leads to fewer."""
        self.graph.hnsw.efSearch = max(WIDTH, 2 * count)
        with self._threads():
            return torch.from_numpy(self.graph.search(unit_rows(queries).cpu().numpy(), count)[1])

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """As many threads as torch has, which faiss keeps for the whole process."""
        before = self.faiss.omp_get_max_threads()
        self.faiss.omp_set_num_threads(torch.get_num_threads())
        try:
            yield
        finally:
            self.faiss.omp_set_num_threads(before)
