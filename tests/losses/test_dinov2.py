"""DINOv2's loss: DINO on class tokens, iBOT on masked patches and KoLeo on both global crops, with their weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
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
    K,
    M,
    check_parts,
    check_same,
    evaluate,
    make_batch,
    masked_patches,
    relative,
    slow_centred,
    slow_dino,
    slow_ibot,
    slow_koleo,
    slow_sinkhorn,
)

from simdino.losses.dino import CENTER
from simdino.losses.dinov2 import PATCH_CENTER, DINOv2

CENTERINGS = ["centering", "sinkhorn"]


def centers(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {name: (0.2 * torch.randn(K, generator=generator)).to(dtype) for name in (CENTER, PATCH_CENTER)}


def objective(*, centering: Any = "centering", dtype: torch.dtype = torch.float64, **weights: float) -> DINOv2:
    sizes = {"batch": BATCH, "dim": DIM, "prototypes": K, "local_views": M}
    return DINOv2(**sizes, centering=centering, buffers=centers(dtype), **weights)


def slow_parts(batch: Batch, centering: str, buffers: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """L_DINO, L_iBOT and the sum of KoLeo over the student's two global crops."""
    flat, patches = batch.teacher.logits.flatten(0, 1), masked_patches(batch, batch.teacher.patch_logits)
    if centering == "sinkhorn":
        targets, hidden = slow_sinkhorn(flat), slow_sinkhorn(patches)
    else:
        targets, hidden = slow_centred(flat, buffers[CENTER]), slow_centred(patches, buffers[PATCH_CENTER])
    spread = sum(slow_koleo(batch.student.backbone[g]) for g in range(G))
    return slow_dino(batch.student, targets.unflatten(0, (G, BATCH))), slow_ibot(batch, hidden), spread


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centering", CENTERINGS)
def test_value_terms_and_gradient_are_those_of_the_loops(centering: Any, dtype: torch.dtype) -> None:
    batch = make_batch(dtype)
    dino, ibot, spread = slow_parts(batch, centering, centers(dtype))
    total, terms = evaluate(objective(centering=centering, dtype=dtype), batch)
    check_same(total, dino + ibot + 0.1 * spread, batch, tolerance=TOLERANCE[dtype])
    for name, value in {"cross_entropy": dino, "patch_cross_entropy": ibot, "koleo": spread}.items():
        assert terms[name] == pytest.approx(value.item(), rel=TOLERANCE[dtype]), name


@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize(("patch_weight", "koleo_weight"), [(2.5, 0.7), (0.0, 0.1), (1.0, 0.0), (0.0, 0.0)])
def test_weights_weigh(patch_weight: float, koleo_weight: float, centering: Any) -> None:
    batch = make_batch()
    dino, ibot, spread = slow_parts(batch, centering, centers())
    loss = objective(centering=centering, patch_weight=patch_weight, koleo_weight=koleo_weight)
    total, terms = evaluate(loss, batch)
    check_same(total, dino + patch_weight * ibot + koleo_weight * spread, batch, tolerance=1e-9)
    assert ("patch_cross_entropy" in terms) == (patch_weight > 0) and ("koleo" in terms) == (koleo_weight > 0)
    assert loss.needs_global_statistics == (koleo_weight > 0)


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("centering", CENTERINGS)
def test_parts_of_a_batch_add_up_to_the_batch(centering: Any, sizes: list[int]) -> None:
    check_parts(objective(centering=centering), make_batch(), sizes)


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_koleo_of_parts_adds_up_when_it_is_all_there_is_to_see(sizes: list[int]) -> None:
    """Its gradient beside the cross-entropies' is small: here it is a thousand times theirs."""
    check_parts(objective(koleo_weight=1e3), make_batch(), sizes)


def test_koleo_is_of_images_in_other_parts_too() -> None:
    batch, loss = make_batch(), objective()
    whole = evaluate(loss, batch)[1]["koleo"]
    alone = sum(
        slow_koleo(batch.student.backbone[g, rows]).item() * len(rows) / BATCH
        for g in range(G)
        for rows in torch.arange(BATCH).split(4)
    )
    assert abs(alone - whole) > 0.01


@pytest.mark.parametrize("centering", CENTERINGS)
def test_a_batch_without_a_masked_patch_has_the_other_terms(centering: Any) -> None:
    batch = dataclasses.replace(make_batch(), masks=torch.zeros(G, BATCH, GRID, dtype=torch.bool))
    loss = objective(centering=centering)
    total, terms = evaluate(loss, batch, [5, 3])
    assert terms["patch_cross_entropy"] == 0
    assert total.item() == pytest.approx(terms["cross_entropy"] + 0.1 * terms["koleo"], rel=1e-9)
    loss.update_buffers([batch.embeddings(batch.teacher)], all_reduce=lambda x: x)
    assert torch.equal(loss.buffers[PATCH_CENTER], centers()[PATCH_CENTER])


def test_both_centres_move_after_the_loss_each_by_its_own_mean() -> None:
    loss, expected = objective(), centers()
    for seed in range(3):
        batch = make_batch(seed=seed)
        dino, ibot, spread = slow_parts(batch, "centering", expected)
        assert relative(evaluate(loss, batch)[0], dino + ibot + 0.1 * spread) < 1e-9
        loss.update_buffers([batch.embeddings(batch.teacher)], all_reduce=lambda x: x)
        means = {
            CENTER: batch.teacher.logits.flatten(0, 1).mean(0),
            PATCH_CENTER: masked_patches(batch, batch.teacher.patch_logits).mean(0),  # patches, not crops, weigh
        }
        expected = {name: 0.9 * expected[name] + 0.1 * mean for name, mean in means.items()}
        for name, value in expected.items():
            torch.testing.assert_close(loss.buffers[name], value, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_parts_of_a_batch_move_the_centres_as_the_batch_does(sizes: list[int]) -> None:
    batch, whole, parts = make_batch(), objective(), objective()
    whole.update_buffers([batch.embeddings(batch.teacher)], all_reduce=lambda x: x)
    rows = torch.arange(BATCH).split(sizes)
    parts.update_buffers([batch.embeddings(batch.teacher, part) for part in rows], all_reduce=lambda x: x)
    for name, value in whole.buffers.items():
        torch.testing.assert_close(parts.buffers[name], value, rtol=1e-12, atol=1e-15)


def test_without_patches_their_centre_stays() -> None:
    loss, batch = objective(patch_weight=0.0), make_batch()
    loss.update_buffers([batch.embeddings(batch.teacher)], all_reduce=lambda x: x)
    assert torch.equal(loss.buffers[PATCH_CENTER], centers()[PATCH_CENTER])
    assert not torch.equal(loss.buffers[CENTER], centers()[CENTER])


# --- shards, the released code's processes --------------------------------------------------------------------------


def by_shards(size: int, **buffers: Tensor) -> DINOv2:
    sizes = {"batch": BATCH, "dim": DIM, "prototypes": K, "local_views": M}
    return DINOv2(**sizes, buffers={**centers(), **buffers}, shard_size=size)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_koleo_of_shards_is_the_mean_over_processes(size: int) -> None:
    batch = make_batch()
    dino, ibot, _ = slow_parts(batch, "centering", centers())
    student = batch.student.backbone
    spread = sum(
        torch.stack([slow_koleo(part) for part in student[g].split(size)]).mean() for g in range(G)
    )  # fmt: skip
    total, _ = evaluate(by_shards(size), batch)
    check_same(total, dino + ibot + 0.1 * spread, batch, tolerance=1e-9)


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("sizes", SPLITS)
def test_the_patches_centre_of_shards_is_the_mean_of_the_processes_means(size: int, sizes: list[int]) -> None:
    batch, loss, start = make_batch(), by_shards(size), centers()[PATCH_CENTER]
    logits = batch.teacher.patch_logits
    means = []
    for first in range(0, BATCH, size):
        own = slice(first, first + size)
        hidden = logits[:, own][batch.masks[:, own]]
        means += [hidden.mean(0)] if len(hidden) else []
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(2)).split(sizes)
    loss.update_buffers([batch.embeddings(batch.teacher, rows) for rows in order], all_reduce=lambda x: x)
    expected = 0.9 * start + 0.1 * torch.stack(means).mean(0)
    torch.testing.assert_close(loss.buffers[PATCH_CENTER], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sizes", SPLITS)
def test_parts_of_a_batch_in_shards_add_up(sizes: list[int]) -> None:
    check_parts(by_shards(4), make_batch(), sizes)
