"""Approximate search in inverted lists (Jégou et al. 2011, without quantised residuals), by faiss: vectors are put into
lists by the nearest of many centres, and a query is compared with those in a few lists alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt

import torch
from torch import Tensor

from simdino.extras import optional
from simdino.features.nearest import COLUMNS, among, best_of, nearest, unit

TRAINING = 64  # vectors for each list from which its centre is learned; faiss warns below 39
ITERATIONS = 10
LEAST, SHARE = 8, 64  # lists looked into: one in SHARE, and LEAST at least
SPARE = 10  # candidates beyond k whose scores are computed again


class Lists:
    """Vectors [N, D] in 4 √N lists, in half precision. The same vectors always give the same lists. Raises InputError
    without faiss.

    inverse: see `nearest.inverse_lengths`."""

    def __init__(self, vectors: Tensor, inverse: Tensor) -> None:
        self.faiss = optional("faiss")
        self.vectors, self.inverse = vectors, inverse
        count = max(1, min(4 * isqrt(len(vectors)), len(vectors) // TRAINING))
        some = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))[: TRAINING * count]
        kind = f"IVF{count},SQfp16"
        self.lists = self.faiss.index_factory(vectors.shape[1], kind, self.faiss.METRIC_INNER_PRODUCT)
        self.lists.nprobe, self.lists.cp.niter = min(count, max(LEAST, count // SHARE)), ITERATIONS
        with self._threads():
            self.lists.train(unit(vectors[some.sort().values.to(vectors.device)]).cpu().numpy())
            for part in vectors.split(COLUMNS):
                self.lists.add(unit(part).cpu().numpy())

    def search(self, queries: Tensor, own: Tensor | None, *, k: int) -> tuple[Tensor, Tensor]:
        """Scores [Q, k] and positions [Q, k], as `nearest` has them. own: positions of the queries, which are left out.

        A query whose lists hold fewer than k vectors is compared with all."""
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
        """Positions [Q, count]; -1 where the lists that were looked into hold fewer."""
        with self._threads():
            return torch.from_numpy(self.lists.search(unit(queries).cpu().numpy(), count)[1])

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """As many threads as torch has, which faiss keeps for the whole process."""
        before = self.faiss.omp_get_max_threads()
        self.faiss.omp_set_num_threads(torch.get_num_threads())
        try:
            yield
        finally:
            self.faiss.omp_set_num_threads(before)
