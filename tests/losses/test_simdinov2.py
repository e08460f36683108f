"""SimDINOv2's loss: SimDINO on class tokens, masked patches as in the formula, and on request their coding rate."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from test_simdino import slow_distance, slow_rate
from torch import Tensor
from written_out import (
    BATCH,
    DIM,
    DTYPES,
    GRID,
    SPLITS,
    TOLERANCE,
    Batch,
    G,
    M,
    check_parts,
    check_same,
    evaluate,
    make_batch,
    norm_one,
    slow_patch_cosines,
)

from simdino.contracts import Patches
from simdino.losses.simdinov2 import SimDINOv2, sample

EPS = 0.3


def objective(*, patch_weight: float = 1.0, patch_rate: float = 0.0, **tokens: Any) -> SimDINOv2:
    settings = {"batch": BATCH, "dim": DIM, "local_views": M, "eps": EPS, "gamma": 0.4} | tokens
    return SimDINOv2(**settings, patch_weight=patch_weight, patch_rate=patch_rate)


def slow_tokens(batch: Batch, *, gamma: float = 0.4, rate_on: str = "student", shards: int = 1) -> Tensor:
    student, teacher = (norm_one(side.cls.double()) for side in (batch.student, batch.teacher))
    rate = slow_rate(student, teacher, eps=EPS, shards=shards, rate_on=rate_on)
    return slow_distance(student, teacher) - gamma * rate


def slow_patches(batch: Batch) -> Tensor:
    """The formula has -cos, we have 1 - cos: one for each masked crop, over 2B."""
    masked = sum(bool(batch.masks[g, b].any()) for g in range(G) for b in range(BATCH))
    return slow_patch_cosines(batch) + masked / (G * BATCH)


def slow_patch_rate(batch: Batch) -> Tensor:
    """½ logdet(I + d/(n eps²) Z Zᵀ) of the sampled patches, by autograd of logdet."""
    z = sample(batch.embeddings(batch.student).patches).double()
    eye = torch.eye(DIM, dtype=torch.float64)
    return 0.5 * torch.logdet(eye + DIM / (len(z) * EPS**2) * z.T @ z)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("patch_weight", [1.0, 0.0, 2.5])
@pytest.mark.parametrize("rate_on", ["student", "mean"])
def test_value_and_gradient_are_those_of_the_loops(rate_on: Any, patch_weight: float, dtype: torch.dtype) -> None:
    batch = make_batch(dtype)
    expected = slow_tokens(batch, rate_on=rate_on) + patch_weight * slow_patches(batch)
    total, terms = evaluate(objective(patch_weight=patch_weight, rate_on=rate_on), batch)
    check_same(total, expected, batch, tolerance=TOLERANCE[dtype])
    assert terms["patch_distance"] == pytest.approx(slow_patches(batch).item(), rel=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("patch_rate", [0.5, 100.0])
def test_the_rate_of_patches_is_a_multiple_of_gamma_times_that_of_the_sampled_ones(
    patch_rate: float, dtype: torch.dtype
) -> None:
    batch = make_batch(dtype)
    weighted = patch_rate * 0.4 * slow_patch_rate(batch)
    total, terms = evaluate(objective(patch_rate=patch_rate), batch)
    check_same(total, slow_tokens(batch) + slow_patches(batch) - weighted, batch, tolerance=TOLERANCE[dtype])
    assert terms["patch_rate_weighted"] == pytest.approx(weighted.item(), rel=TOLERANCE[dtype])


@pytest.mark.parametrize("patch_rate", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("options", [{}, {"scope": "shards", "shard_size": 4, "rate_on": "mean"}], ids=str)
def test_parts_of_a_batch_add_up_to_the_batch(options: Any, sizes: list[int], patch_rate: float) -> None:
    check_parts(objective(patch_rate=patch_rate, **options), make_batch(), sizes)


def test_collapse_in_the_formula_is_bounded_by_the_share_of_masked_crops() -> None:
    """Equal patches cost nothing, opposite ones 2 for each masked crop over all crops, masked or not."""
    batch = make_batch()
    batch.teacher.patches.copy_(-batch.student.patches)
    masked = batch.masks.any(-1).sum().item()
    assert 0 < masked < G * BATCH
    assert evaluate(objective(), batch)[1]["patch_distance"] == pytest.approx(2 * masked / (G * BATCH), rel=1e-9)
    batch.teacher.patches.copy_(batch.student.patches)
    assert evaluate(objective(), batch)[1]["patch_distance"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("patch_rate", [0.0, 1.0])
@pytest.mark.parametrize("sizes", [[8], [5, 3]], ids=str)
def test_a_batch_without_a_masked_patch_is_simdino(sizes: list[int], patch_rate: float) -> None:
    batch = dataclasses.replace(make_batch(), masks=torch.zeros(G, BATCH, GRID, dtype=torch.bool))
    total, _ = evaluate(objective(patch_rate=patch_rate), batch, sizes)
    check_same(total, slow_tokens(batch), batch, tolerance=1e-9)


def test_there_is_nothing_to_remember() -> None:
    loss = objective()
    loss.update_buffers([make_batch().embeddings(make_batch().teacher)], all_reduce=lambda x: x)
    assert loss.buffers == {} and loss.needs_global_statistics


def test_views_without_masks_are_refused() -> None:
    batch = make_batch()
    bare = [dataclasses.replace(batch.embeddings(side), patches=None) for side in (batch.student, batch.teacher)]
    with pytest.raises(ValueError, match="views have no masks"):
        objective()(*bare)


# --- the sample -----------------------------------------------------------------------------------------------------


def chosen(keys: list[int], counts: list[int]) -> list[tuple[int, int]]:
    """(crop, patch of the crop) that are sampled from crops with these keys and numbers of masked patches."""
    rows = [(crop, patch) for crop, count in enumerate(counts) for patch in range(count)]
    patches = Patches(
        features=torch.tensor(rows, dtype=torch.float64), weights=torch.ones(len(rows)),
        keys=torch.tensor([keys[crop] for crop, _ in rows]), indices=torch.tensor([crop for crop, _ in rows]),
    )  # fmt: skip
    return [(int(crop), int(patch)) for crop, patch in sample(patches)]


def test_one_patch_of_every_masked_crop_is_sampled() -> None:
    assert [crop for crop, _ in chosen([5, 9, -3, 2**62], [3, 1, 7, 2])] == [0, 1, 2, 3]


def test_the_sample_depends_on_the_key_and_the_crops_own_patches_alone() -> None:
    together = chosen([5, 9, -3], [8, 8, 8])
    for crop, key in enumerate([5, 9, -3]):
        assert chosen([key], [8]) == [(0, together[crop][1])]


def test_every_patch_of_a_crop_is_as_likely_as_another() -> None:
    crops, count = 6000, 5
    picked = torch.tensor([patch for _, patch in chosen(list(range(0, 3 * crops, 3)), [count] * crops)])
    shares = torch.bincount(picked, minlength=count) / crops
    assert (shares - 1 / count).abs().max() < 4 * (0.2 * 0.8 / crops) ** 0.5
