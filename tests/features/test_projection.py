"""The plane and the clusters of features, beside numpy's SVD and plain sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from simdino.features.projection import clusters, principal_plane, umap_plane


def features(n: int = 60, width: int = 12, seed: int = 0) -> Tensor:
    spread = torch.linspace(3, 0.1, width)
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) * spread + 1


def blobs(each: int, centres: int, width: int = 8) -> tuple[Tensor, np.ndarray]:
    """Vectors about a few directions, the first group the largest, and their groups."""
    g = torch.Generator().manual_seed(1)
    sizes = [each + 3 * (centres - i) for i in range(centres)]
    groups = np.repeat(np.arange(centres), sizes)
    return torch.eye(width)[groups] * 5 + 0.2 * torch.randn(len(groups), width, generator=g), groups


def test_the_plane_is_that_of_a_singular_value_decomposition() -> None:
    vectors = features()
    rows = vectors.double().numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows - rows.mean(axis=0)
    u, s, _ = np.linalg.svd(rows, full_matrices=False)
    expected = u[:, :2] * s[:2]
    expected *= np.sign((expected**3).sum(axis=0))
    plane, share = principal_plane(vectors)
    np.testing.assert_allclose(plane, expected, atol=1e-6)
    assert share == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), rel=1e-6)


def test_the_plane_depends_on_neither_length_nor_mirror_nor_order() -> None:
    vectors = features()
    plane, _ = principal_plane(vectors)
    np.testing.assert_allclose(principal_plane(vectors * torch.rand(60, 1).add(0.5))[0], plane, atol=1e-6)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    np.testing.assert_allclose(principal_plane(vectors[order])[0], plane[order.numpy()], atol=1e-6)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(4)))[0]
    np.testing.assert_allclose(principal_plane(vectors @ rotation)[0], plane, atol=1e-5)


def test_equal_vectors_have_one_place() -> None:
    plane, share = principal_plane(torch.ones(5, 4))
    np.testing.assert_allclose(plane, 0, atol=1e-6)
    assert 0 <= share <= 1


def test_clusters_are_the_groups_there_are_and_the_largest_comes_first() -> None:
    vectors, groups = blobs(10, 4)
    order = np.random.default_rng(0).permutation(len(groups))
    found = clusters(vectors[order], 4)
    np.testing.assert_array_equal(found, groups[order])  # the groups are numbered by their size
    np.testing.assert_array_equal(found, clusters(7 * vectors[order], 4))


def test_fewer_different_vectors_than_clusters_leave_clusters_out() -> None:
    vectors = torch.eye(3).repeat_interleave(torch.tensor([4, 2, 3]), dim=0)
    assert clusters(vectors, 6).tolist() == [0] * 4 + [2] * 2 + [1] * 3
    assert clusters(torch.ones(4, 3), 3).tolist() == [0] * 4


@pytest.mark.slow
@pytest.mark.extra("umap")
def test_umap_keeps_groups_together_and_gives_the_same_numbers_again() -> None:
    vectors, groups = blobs(20, 3)
    start = principal_plane(vectors)[0]
    plane = umap_plane(vectors, start=start)
    assert plane.shape == (len(groups), 2) and plane.dtype == np.float64
    apart = np.linalg.norm(plane[:, None] - plane[None], axis=-1) + np.diag(np.full(len(groups), np.inf))
    assert (groups[apart.argmin(axis=1)] == groups).all()
    np.testing.assert_array_equal(plane, umap_plane(vectors, start=start))


@pytest.mark.slow
@pytest.mark.extra("umap")
def test_umap_takes_three_images() -> None:
    vectors = features(n=3)
    plane = umap_plane(vectors, start=principal_plane(vectors)[0])
    assert plane.shape == (3, 2) and np.isfinite(plane).all()
