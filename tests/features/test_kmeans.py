"""Spherical k-means against loops in float64 and scikit-learn's k-means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from simdino.features import kmeans
from simdino.features.index import EmbeddingIndex
from simdino.features.kmeans import assigned, fill_empty, first_centres


def around(centres: int, count: int, *, noise: float, width: int = 16, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Vectors of several lengths around as many directions, and which each is of."""
    random = np.random.default_rng(seed)
    labels = random.integers(centres, size=count)
    made = random.normal(size=(centres, width))[labels] + noise * random.normal(size=(count, width))
    return torch.from_numpy((made * random.uniform(0.5, 5, (count, 1))).astype(np.float32)), labels


def directions(vectors: Tensor) -> np.ndarray:
    given = vectors.double().numpy()
    return given / np.linalg.norm(given, axis=1, keepdims=True)


def test_planted_clusters_are_found() -> None:
    vectors, labels = around(12, 600, noise=0.1)
    found = EmbeddingIndex(vectors).kmeans(12)
    assert adjusted_rand_score(labels, found.assignments.numpy()) == 1
    assert found.sizes.tolist() == np.bincount(found.assignments.numpy()).tolist() and found.sizes.sum() == 600
    assert found.centres.shape == (12, 16) and found.centres.dtype == torch.float32
    assert found.assignments.dtype == torch.int64


@pytest.mark.parametrize("part", [64, 2**13])
def test_what_is_found_is_a_fixed_point_of_the_algorithm_in_float64(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "PART", part)
    vectors, _ = around(5, 400, noise=1)
    found = EmbeddingIndex(vectors).kmeans(9, seed=3)
    units, assignments = directions(vectors), found.assignments.numpy()
    assert 1 < found.iterations < 100
    for cluster in range(9):
        mean = np.zeros(16)
        for row in np.flatnonzero(assignments == cluster):
            mean += units[row]
        assert np.allclose(found.centres[cluster].numpy(), mean / np.linalg.norm(mean), atol=1e-6)
    scores = units @ found.centres.double().numpy().T
    assert np.array_equal(scores.argmax(1), assignments)
    assert np.allclose(scores.max(1), found.scores.numpy(), atol=1e-6)


def test_the_mean_cosine_is_that_of_the_best_of_many_starts_of_lloyd_s_loop() -> None:
    """scikit-learn's k-means of unit vectors, its centres brought to length 1 and iterated on as above, in float64."""
    vectors, _ = around(8, 500, noise=0.7)
    units = directions(vectors)
    best = 0.0
    for seed in range(5):
        centres = KMeans(8, n_init=1, random_state=seed).fit(units).cluster_centers_
        for _ in range(50):
            labels = (units @ centres.T).argmax(1)
            sums = np.stack([units[labels == i].sum(0) for i in range(8)])
            centres = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        best = max(best, float((units @ centres.T).max(1).mean()))
    ours = [float(EmbeddingIndex(vectors).kmeans(8, seed=seed).scores.mean()) for seed in range(5)]
    assert max(ours) >= best - 1e-4 and np.mean(ours) > best - 0.02


def test_the_same_seed_gives_the_same_clusters_and_lengths_do_not_matter() -> None:
    vectors, _ = around(5, 300, noise=1)
    first, again, other = (EmbeddingIndex(vectors).kmeans(7, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.assignments, again.assignments) and torch.equal(first.centres, again.centres)
    assert not torch.equal(first.assignments, other.assignments)
    doubled = EmbeddingIndex(vectors * 2.0 ** torch.arange(300).remainder(5)[:, None]).kmeans(7, seed=1)
    assert torch.equal(doubled.assignments, first.assignments)


def test_iterations_are_bounded_and_what_is_told_fits_together() -> None:
    vectors, _ = around(5, 400, noise=1)
    found = EmbeddingIndex(vectors).kmeans(9, seed=3, iterations=1)
    assert found.iterations == 1
    scores = directions(vectors) @ found.centres.double().numpy().T
    assert np.array_equal(scores.argmax(1), found.assignments.numpy())


def test_one_cluster_and_as_many_as_vectors() -> None:
    vectors, _ = around(5, 30, noise=1)
    one = EmbeddingIndex(vectors).kmeans(1)
    mean = directions(vectors).sum(0)
    assert np.allclose(one.centres[0].numpy(), mean / np.linalg.norm(mean), atol=1e-6) and one.sizes.tolist() == [30]
    every = EmbeddingIndex(vectors).kmeans(30)
    assert sorted(every.assignments.tolist()) == list(range(30)) and torch.allclose(every.scores, torch.ones(30))


def test_first_centres_are_all_different_and_lie_in_different_clusters() -> None:
    vectors, labels = around(10, 3000, noise=0.01)
    units = torch.from_numpy(directions(vectors)).float()
    chosen = (first_centres(vectors, clusters=10, seed=0) @ units.T).argmax(1)
    assert sorted(labels[chosen.numpy()]) == list(range(10))


def test_rare_directions_are_found_where_a_sample_of_many_vectors_lacks_them() -> None:
    """Three directions, two of them of one vector each: among 2,000, of which 768 are drawn."""
    vectors = torch.eye(3)[torch.zeros(2000, dtype=torch.int64)]
    vectors[700], vectors[1800] = torch.eye(3)[1], torch.eye(3)[2]
    for seed in range(4):
        assert sorted(EmbeddingIndex(vectors).kmeans(3, seed=seed).sizes.tolist()) == [1, 1, 1998]


def test_an_empty_cluster_gets_the_vector_farthest_from_its_centre() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 1.0], [0.0, 1.0]])
    assignments, scores = torch.tensor([0, 0, 0, 2]), torch.tensor([0.99, 0.98, 0.5, 0.1])
    units = torch.nn.functional.normalize(vectors.double())
    sums = torch.stack([units[:3].sum(0), torch.zeros(2, dtype=torch.float64), units[3]])
    fill_empty(vectors, assignments, scores, sums)  # the vector with .1 is the only one of its cluster
    assert assignments.tolist() == [0, 0, 1, 2]
    assert torch.allclose(sums, torch.stack([units[:2].sum(0), units[2], units[3]]), atol=1e-6)


def test_no_cluster_is_empty_where_centres_start_far_from_every_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = around(3, 200, noise=0.3)
    away = -vectors[:4] / vectors[:4].norm(dim=1, keepdim=True)
    monkeypatch.setattr(kmeans, "first_centres", lambda *_, **__: torch.cat([away, vectors[:1]]))
    assert (assigned(vectors, torch.cat([away, vectors[:1]]))[0].bincount(minlength=5) == 0).any()
    assert (EmbeddingIndex(vectors).kmeans(5).sizes > 0).all()


def test_vectors_that_cancel_each_other_leave_their_centre_where_it_was() -> None:
    vectors = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    found = EmbeddingIndex(vectors).kmeans(1)
    assert found.centres.norm() == 1 and found.assignments.tolist() == [0, 0]
