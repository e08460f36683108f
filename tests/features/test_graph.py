"""Approximate search: what it finds, beside the exact search."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from simdino.contracts import InputError
from simdino.features.index import EmbeddingIndex


def clustered(count: int, *, seed: int = 0) -> Tensor:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(40, 32))
    made = centres[random.integers(40, size=count)] + random.normal(size=(count, 32))
    return torch.from_numpy(made.astype(np.float32))


@pytest.mark.extra("faiss")
@pytest.mark.slow
def test_nearly_all_neighbours_are_found_and_their_scores_are_exact() -> None:
    index, queries = EmbeddingIndex(clustered(5000)), clustered(100, seed=1)
    exact, found = index.search(queries), index.search(queries, approximate=True)
    shared = [len(set(a) & set(b)) for a, b in zip(exact.indices.tolist(), found.indices.tolist(), strict=True)]
    assert np.mean(shared) > 9.8
    for i in range(100):
        known = dict(zip(exact.indices[i].tolist(), exact.scores[i].tolist(), strict=True))
        pairs = zip(found.indices[i].tolist(), found.scores[i].tolist(), strict=True)
        assert all(known.get(at, score) == score for at, score in pairs)
    assert (found.scores.diff(dim=1) <= 0).all()


@pytest.mark.extra("faiss")
def test_rows_leave_themselves_out_and_one_query_is_enough() -> None:
    index = EmbeddingIndex(clustered(300), names=[f"{i}.jpg" for i in range(300)])
    for queries in ("7.jpg", list(range(300)), clustered(1, seed=2)[0]):
        found, exact = index.search(queries, k=4, approximate=True), index.search(queries, k=4)
        assert (found.indices == exact.indices).double().mean() > 0.99
        if isinstance(queries, list):
            assert not (found.indices == torch.arange(300)[:, None]).any()


@pytest.mark.extra("faiss")
def test_every_vector_is_found_however_many_are_asked_for() -> None:
    index = EmbeddingIndex(clustered(50))
    queries = clustered(3, seed=3)
    assert torch.equal(index.search(queries, 50, approximate=True).indices, index.search(queries, 50).indices)
    assert torch.equal(index.search(0, 49, approximate=True).indices, index.search(0, 49).indices)


@pytest.mark.extra("faiss")
def test_where_the_graph_leads_to_too_few_all_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    index, queries = EmbeddingIndex(clustered(80)), clustered(5, seed=3)
    exact = index.search(queries, 6)

    def few(queries: Tensor, count: int) -> Tensor:
        keys = torch.full((len(queries), count), -1)
        keys[:, :6] = exact.indices
        keys[1, 2:], keys[3] = -1, -1
        return keys

    monkeypatch.setattr(index._graph, "_found", few)
    found = index.search(queries, 6, approximate=True)
    assert torch.equal(found.indices, exact.indices) and torch.equal(found.scores, exact.scores)


@pytest.mark.extra("faiss")
def test_the_threads_of_faiss_are_as_before() -> None:
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(before + 1)
    EmbeddingIndex(clustered(40)).search(0, approximate=True)
    assert faiss.omp_get_max_threads() == before + 1
    faiss.omp_set_num_threads(before)


def test_without_the_extra_the_error_says_what_to_install(hide: Callable[[str], None]) -> None:
    hide("faiss")
    index = EmbeddingIndex(clustered(20))
    index.search(0)
    with pytest.raises(InputError, match=r"approximate search needs faiss-cpu: pip install 'simdino\[index\]'"):
        index.search(0, approximate=True)
