"""MaskCut and TokenCut: the cut against scipy's generalised problem, the rules on graphs that can be seen through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import Planted, enlarged, painted
from scipy.linalg import eigh
from scipy.ndimage import gaussian_filter, label
from scipy.sparse import linalg as sparse

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.evaluate.discovery import maskcut as module
from simdino.evaluate.discovery.maskcut import (
    DENSE,
    keys_of,
    links,
    maskcut,
    region_of,
    regions,
    resized,
    second_eigenvector,
    tokencut,
)
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


def scene(*objects: tuple[slice, slice], grid: tuple[int, int] = (8, 8)) -> np.ndarray:
    """Regions of patches: 1, 2, ... where the objects are, 0 elsewhere."""
    found = np.zeros(grid, dtype=np.int64)
    for i, place in enumerate(objects, start=1):
        found[place] = i
    return found


THREE = scene(np.s_[1:3, 1:4], np.s_[4:7, 1:3], np.s_[4:7, 5:7])


def as_set(masks: torch.Tensor) -> set[bytes]:
    return {mask.numpy().tobytes() for mask in masks}


def test_planted_objects_are_found_exactly() -> None:
    masks = maskcut(Planted(), painted(THREE), count=3, tau=0.3, size=32)
    assert masks.dtype == torch.bool
    assert as_set(masks) == {(enlarged(THREE) == region).tobytes() for region in (1, 2, 3)}
    assert as_set(maskcut(Planted(), painted(THREE), count=1, tau=0.3, size=32)) < as_set(masks)


def test_more_stages_than_objects_find_nothing_more() -> None:
    assert len(maskcut(Planted(), painted(THREE), count=9, tau=0.3, size=32)) == 3


def test_masks_have_the_size_of_the_image() -> None:
    image = painted(THREE).repeat_interleave(3, 1).repeat_interleave(2, 2)  # 96 x 64 px
    masks = maskcut(Planted(), image, count=3, tau=0.3, size=35)  # snapped to 32
    large = enlarged(THREE).repeat(3, 0).repeat(2, 1)
    assert as_set(masks) == {(large == region).tobytes() for region in (1, 2, 3)}


def test_a_size_that_a_model_cannot_take_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fixed(*_: object) -> None:
        raise AssertionError("Input height (24) doesn't match model (32).")

    encoder = vit()
    monkeypatch.setattr(encoder, "forward", fixed)
    for find in (maskcut, tokencut):
        with pytest.raises(InputError, match=r"does not take images of \d+x\d+ pixels: give --size"):
            find(encoder, painted(THREE))


def test_the_size_is_snapped_to_the_patch() -> None:
    image = torch.zeros(3, 50, 70, dtype=torch.uint8)
    assert keys_of(vit(), resized(image, (24, 24))[None].float())[1] == (3, 3)
    with pytest.raises(InputError, match="--size 15 is 1 patches of 8 pixels; give 16 to 640"):
        maskcut(vit(), image, size=15)
    with pytest.raises(InputError, match="--size 648 is 81 patches"):
        maskcut(vit(), image, size=648)


def smooth_keys(seed: int, grid: tuple[int, int]) -> torch.Tensor:
    """Keys of neighbouring patches are alike."""
    maps = np.random.default_rng(seed).standard_normal((4, *grid))
    return torch.from_numpy(np.stack([gaussian_filter(each, 1.0) for each in maps], -1).reshape(-1, 4)).float()


def stage_by_stage(vectors: torch.Tensor, grid: tuple[int, int], *, count: int, tau: float) -> tuple[list, list[str]]:
    """MaskCut written out: every stage solves the whole problem of the features that are left. Also how each ended."""
    features, previous, painted_over, ends = vectors.double().numpy().copy(), np.zeros(grid, bool), [], []
    for stage in range(count):
        _, solutions = generalised(features, tau)
        x = solutions[:, 1].reshape(grid)
        x = x * np.sign(x.flat[np.abs(x).argmax()])
        foreground, seed = x > x.mean(), x.argmax()
        if sum(foreground[i, j] for i in (0, -1) for j in (0, -1)) >= 3:
            foreground, seed = ~foreground, (-x).argmax()
        parts, _ = label(foreground)
        region = parts == parts.flat[seed]
        iou = (region & previous).sum() / (region | previous).sum()
        if stage and (iou > 0.5 or region.mean() <= 0.01):
            ends.append("alike" if iou > 0.5 else "small")
            previous = np.zeros(grid, bool)
            continue
        ends.append("again" if ends and ends[-1] == "alike" else "found")
        painted_over.append(region & ~np.any([np.zeros(grid, bool), *painted_over], axis=0))
        features[region.ravel()] = 0
        previous = region
    return [mask for mask in painted_over if mask.any()], ends


@pytest.mark.slow
def test_the_stages_are_those_of_the_algorithm_written_out() -> None:
    seen = set[str]()
    for seed in range(60):
        vectors, grid = smooth_keys(seed, (9, 13)), (9, 13)
        expected, ends = stage_by_stage(vectors, grid, count=4, tau=0.4)
        found = regions(vectors, grid, count=4, tau=0.4)
        assert len(found) == len(expected), seed
        assert all(np.array_equal(a, b) for a, b in zip(found.numpy(), expected, strict=True)), seed
        if "again" in ends and len(found) == len(ends) - ends.count("alike"):
            ends.append("kept")  # what was left of a region found again
        seen |= set(ends)
    assert seen == {"found", "alike", "again", "small", "kept"}


@pytest.mark.parametrize("vectors", [torch.ones(64, 3), torch.eye(64)], ids=["all alike", "none alike"])
def test_patches_without_a_difference_have_no_mask(vectors: torch.Tensor) -> None:
    assert regions(vectors, (8, 8), count=3, tau=0.3).shape == (0, 8, 8)


def test_a_blank_image_has_no_mask_and_is_its_own_box() -> None:
    image = torch.full((3, 20, 26), 20, dtype=torch.uint8)
    assert maskcut(Planted(noise=0), image, size=32).shape == (0, 20, 26)
    assert tokencut(Planted(noise=0), image) == (0, 0, 26, 20)


def test_tokencut_boxes_the_object_at_the_images_own_size() -> None:
    truth = scene(np.s_[2:5, 6:9], grid=(6, 9))
    image = painted(truth)[:, :22, :35]  # the last patches are cut: they are padded with the mean colour, black
    assert tokencut(Planted(), image, tau=0.3) == (24, 8, 35, 20)


def test_tokencut_boxes_the_part_around_the_seed_only() -> None:
    truth = scene(np.s_[1:5, 1:5], np.s_[6:8, 6:8])
    truth[truth == 2] = 1
    assert tokencut(Planted(), painted(truth), tau=0.3) in {(4, 4, 20, 20), (24, 24, 32, 32)}


def test_tokencut_reduces_images_of_too_many_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 64)
    large = painted(scene(np.s_[2:4, 4:7])).repeat_interleave(4, 1).repeat_interleave(3, 2)  # 128 x 96 px
    grids = []
    monkeypatch.setattr(module, "links", lambda vectors, *, tau: grids.append(len(vectors)) or links(vectors, tau=tau))
    left, top, right, bottom = tokencut(Planted(), large, tau=0.3)
    assert grids[0] <= 64
    truth = np.array([4 * 4 * 3, 2 * 4 * 4, 7 * 4 * 3, 4 * 4 * 4])
    np.testing.assert_allclose([left, top, right, bottom], truth, atol=16)


def test_the_encoder_is_left_as_it_was() -> None:
    encoder = vit()
    encoder.train()
    maskcut(encoder, painted(THREE), size=32)
    assert encoder.training


@pytest.mark.parametrize(
    ("change", "message"),
    [({"count": 0}, "--masks 0 must be 1 or more"), ({"tau": 1.0}, "--tau 1.0 must be in"), ({"tau": -0.1}, "--tau")],
)
def test_numbers_out_of_range_are_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        maskcut(vit(), painted(THREE), size=32, **change)


@pytest.mark.extra("timm")
def test_an_encoder_without_patches_is_refused() -> None:
    encoder = make_encoder(EncoderConfig(name="timm:resnet10t", image_size=32), PREPROCESS)
    for find in (maskcut, tokencut):
        with pytest.raises(InputError, match="has no patches, which this task compares: take a ViT or a CRATE"):
            find(encoder, painted(THREE))
