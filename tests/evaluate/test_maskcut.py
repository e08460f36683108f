"""MaskCut and TokenCut: the cut against scipy's generalised problem, the rules on graphs that can be seen through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import Planted, enlarged, painted
from scipy.linalg import eigh
from scipy.sparse import linalg as sparse

from simdino.config import EncoderConfig
from simdino.contracts import Preprocess
from simdino.evaluate import maskcut as module
from simdino.evaluate.maskcut import (
    DENSE,
    links,
    maskcut,
    region_of,
    regions,
    second_eigenvector,
)  # fmt: skip
from simdino.models.catalogue import make_encoder

PREPROCESS = Preprocess(resize=32, crop=32, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3)


def vit(name: str = "vit_pico"):
    torch.manual_seed(0)
    return make_encoder(EncoderConfig(name=name, image_size=32, patch_size=8), PREPROCESS)


def keys(count: int = 60, width: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def generalised(vectors: np.ndarray, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """All solutions of (D - A) x = lambda D x, written from the formula in float64."""
    lengths = np.sqrt((vectors**2).sum(1))
    cosines = np.divide(vectors @ vectors.T, np.outer(lengths, lengths), where=np.outer(lengths, lengths) > 0,
                        out=np.zeros((len(vectors), len(vectors))))  # fmt: skip
    a = np.where(cosines > tau, 1.0, 1e-5)
    d = np.diag(a.sum(1))
    return eigh(d - a, d)


@pytest.mark.parametrize("dense", [DENSE, 0], ids=["matrix", "iteration"])
@pytest.mark.parametrize("tau", [0.0, 0.15, 0.6])
@pytest.mark.parametrize("zeroed", [0, 20])
def test_the_cut_solves_the_generalised_problem(
    tau: float, zeroed: int, dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DENSE", dense)
    vectors = keys().double().numpy()
    vectors[:zeroed] = 0
    values, solutions = generalised(vectors, tau)
    assert values[2] - values[1] > 1e-7  # else the second is not one vector
    linked = links(keys(), tau=tau)
    linked[:zeroed] = linked[:, :zeroed] = False
    x, expected = second_eigenvector(linked), solutions[:, 1]
    expected = expected * np.sign(expected[np.abs(expected).argmax()])
    np.testing.assert_allclose(x / np.linalg.norm(x), expected / np.linalg.norm(expected), atol=1e-5)
    assert x[np.abs(x).argmax()] > 0


def test_iterations_that_do_not_converge_are_replaced_by_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise sparse.ArpackNoConvergence("%s converged", np.zeros(0), np.zeros((0, 0)))

    linked = links(keys(), tau=0.15)
    expected = second_eigenvector(linked)
    monkeypatch.setattr(sparse, "eigsh", fails)
    monkeypatch.setattr(module, "DENSE", 0)
    np.testing.assert_allclose(second_eigenvector(linked), expected, atol=1e-12)


def test_links_are_cosines_above_tau() -> None:
    vectors = torch.tensor([[2.0, 0.0], [0.6, 0.8], [0.0, 0.5], [-1.0, 0.0]])
    expected = [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(links(vectors, tau=0.5), np.array(expected, dtype=bool))


@pytest.mark.parametrize(
    ("x", "corners", "expected"),
    [
        # the side of the seed, and of it only the part connected by sides of patches
        ([[0, 0, 0, 5], [9, 0, 5, 0], [9, 0, 0, 0]], False, [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]),
        ([[0, 0, 0, 9], [5, 0, 5, 0], [5, 0, 0, 0]], False, [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]),
        # three corners are above the mean: the other side, where x is least
        ([[8, 8, 8, 9], [8, 0, 1, 8], [8, 8, 8, 0]], False, [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 0]]),
        ([[8, 8, 8, 9], [8, 1, 0, 8], [8, 8, 8, 1]], True, [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]),
        # two are not enough
        ([[8, 8, 8, 9], [0, 1, 1, 0], [0, 0, 0, 0]], True, [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]),
    ],
)  # fmt: skip
def test_the_region_is_the_part_around_the_seed(x: list, corners: bool, expected: list) -> None:
    found = region_of(np.array(x, dtype=np.float64).ravel(), (3, 4), corners=corners)
    np.testing.assert_array_equal(found, np.array(expected, dtype=bool))


def scene() -> np.ndarray:
    """8 x 12 patches with three objects, none of them touching."""
    found = np.zeros((8, 12), dtype=np.int64)
    found[1:4, 1:4], found[4:7, 6:10], found[1:3, 8:10] = 1, 2, 3
    return found


def test_planted_objects_are_found_one_by_one() -> None:
    truth = scene()
    masks = maskcut(Planted(), painted(truth), count=3, tau=0.3, size=32)
    # the image of 32 x 48 px is squared to 32 x 32: the planted grid must survive it
    assert masks.dtype == torch.bool
    assert masks.shape[1:] == (32, 48)


def test_planted_objects_are_found_exactly() -> None:
    truth = np.zeros((8, 8), dtype=np.int64)
    truth[1:3, 1:4], truth[4:7, 1:3], truth[4:7, 5:7] = 1, 2, 3
    masks = maskcut(Planted(), painted(truth), count=3, tau=0.3, size=32)
    found = {mask.numpy().tobytes() for mask in masks}
    assert found == {(enlarged(truth) == region).tobytes() for region in (1, 2, 3)}


def test_keys_can_be_cut_on_their_own() -> None:
    truth = scene()
    codes = torch.eye(8)[torch.from_numpy(truth.ravel())]
    masks = regions(codes + 0.05 * keys(96, 8), (8, 12), count=3, tau=0.3)
    assert {mask.numpy().tobytes() for mask in masks} == {(truth == region).tobytes() for region in (1, 2, 3)}
