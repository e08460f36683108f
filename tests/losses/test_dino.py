"""DINO's loss against its formula, with targets written out; what it remembers; and its health."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch
from torch import Tensor
from written_out import (
    BATCH,
    DIM,
    DTYPES,
    SPLITS,
    TEMPERATURE,
    TOLERANCE,
    Batch,
    G,
    K,
    M,
    check_parts,
    check_same,
    evaluate,
    make_batch,
    norm_one,
    relative,
    slow_centred,
    slow_dino,
    slow_sinkhorn,
)

from simdino.contracts import Embeddings
from simdino.losses.dino import CENTER, DINO

CENTERINGS = ["centering", "sinkhorn"]


def start() -> Tensor:
    """A centre that is felt."""
    return 0.2 * torch.randn(K, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def objective(**options: Any) -> DINO:
    settings = {"batch": BATCH, "dim": DIM, "prototypes": K, "local_views": M, "buffers": {CENTER: start()}}
    return DINO(**settings | options)


def slow_targets(batch: Batch, centering: str, center: Tensor) -> Tensor:
    flat = batch.teacher.logits.flatten(0, 1)
    targets = slow_sinkhorn(flat) if centering == "sinkhorn" else slow_centred(flat, center)
    return targets.unflatten(0, (G, BATCH))


def update_buffers(loss: DINO, batch: Batch, rows: list[Tensor] | None = None) -> None:
    parts = [batch.embeddings(batch.teacher, part) for part in (rows or [torch.arange(BATCH)])]
    loss.update_buffers(parts, all_reduce=lambda x: x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize("local_views", [0, M])
def test_value_and_gradient_are_those_of_the_loops(local_views: int, centering: Any, dtype: torch.dtype) -> None:
    batch = make_batch(dtype, local_views=local_views)
    loss = objective(centering=centering, local_views=local_views, buffers={CENTER: start().to(dtype)})
    expected = slow_dino(batch.student, slow_targets(batch, centering, start().to(dtype)))
    total, terms = evaluate(loss, batch)
    check_same(total, expected, batch, tolerance=TOLERANCE[dtype])
    assert terms["cross_entropy"] == pytest.approx(expected.item(), rel=TOLERANCE[dtype])


def test_the_student_temperature_is_a_tenth() -> None:
    batch = make_batch()
    expected = slow_dino(batch.student, slow_targets(batch, "centering", start()))
    assert relative(evaluate(objective(student_temperature=0.2), batch)[0], expected) > 0.01


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("centering", CENTERINGS)
def test_parts_of_a_batch_add_up_to_the_batch(centering: Any, sizes: list[int]) -> None:
    check_parts(objective(centering=centering), make_batch(), sizes)


def test_sinkhorn_of_each_part_alone_would_be_another_loss() -> None:
    batch, loss = make_batch(), objective(centering="sinkhorn")
    wrong = 0.0
    for rows in torch.arange(BATCH).split(3):
        teacher, student = batch.embeddings(batch.teacher, rows), batch.embeddings(batch.student, rows)
        statistics = loss.global_statistics([teacher], None, temperature=TEMPERATURE, all_reduce=lambda x: x)[0]
        wrong += loss(student, teacher, statistics).total.item()
    assert abs(wrong / evaluate(loss, batch)[0].item() - 1) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_reach_the_loss(dtype: torch.dtype) -> None:
    batch, loss = make_batch(torch.float32), objective()
    plain, _ = evaluate(loss, batch)
    with torch.autocast("cpu", dtype=dtype):
        cast, _ = evaluate(loss, batch)
    assert cast.item() == plain.item()


def test_logits_that_are_not_there_are_named() -> None:
    batch, loss = make_batch(), objective()
    teacher = batch.embeddings(batch.teacher)
    bare = Embeddings(cls=teacher.cls, backbone=teacher.backbone, indices=teacher.indices)
    with pytest.raises(ValueError, match="needs prototype logits"):
        loss.global_statistics([bare], None, temperature=TEMPERATURE, all_reduce=lambda x: x)


# --- buffers ---------------------------------------------------------------------------------------------------------


def test_a_new_loss_remembers_a_centre_of_zero_that_is_its_own() -> None:
    first, second = (DINO(batch=BATCH, dim=DIM, prototypes=K) for _ in range(2))
    assert not first.buffers[CENTER].any() and first.buffers[CENTER].shape == (K,)
    update_buffers(first, make_batch())
    assert first.buffers[CENTER].any() and not second.buffers[CENTER].any()


def test_the_softmax_uses_the_old_centre_and_then_it_moves() -> None:
    """Three steps, each with targets from the centre before it: 0.9 c + 0.1 mean over both views of all images."""
    loss, center = objective(), start()
    held = loss.buffers[CENTER]
    for seed in range(3):
        batch = make_batch(seed=seed)
        total, _ = evaluate(loss, batch)
        assert relative(total, slow_dino(batch.student, slow_targets(batch, "centering", center))) < 1e-9
        assert torch.equal(loss.buffers[CENTER], center) or seed > 0
        update_buffers(loss, batch)
        moved = 0.9 * center + 0.1 * sum(batch.teacher.logits[g, b] for g in range(G) for b in range(BATCH)) / G / BATCH
        assert relative(moved, center) > 0.01
        center = moved
        torch.testing.assert_close(loss.buffers[CENTER], center, rtol=1e-12, atol=1e-15)
    assert loss.buffers[CENTER] is held, "changed in place, so that a state that holds it saves it"


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_parts_of_a_batch_move_the_centre_as_the_batch_does(sizes: list[int]) -> None:
    batch, whole, parts = make_batch(), objective(), objective()
    update_buffers(whole, batch)
    update_buffers(parts, batch, list(torch.arange(BATCH).split(sizes)))
    torch.testing.assert_close(parts.buffers[CENTER], whole.buffers[CENTER], rtol=1e-12, atol=1e-15)


# --- health ---------------------------------------------------------------------------------------------------------


def test_health_is_of_the_teachers_features_and_targets() -> None:
    batch, loss = make_batch(), objective()
    _, health = evaluate(loss, batch)
    z, s = norm_one(batch.teacher.cls), norm_one(batch.student.cls)
    targets = slow_targets(batch, "centering", start())
    eye, scale = torch.eye(DIM, dtype=torch.float64), DIM / (BATCH * 0.05)
    rate = torch.stack([0.5 * torch.logdet(eye + scale * z[g].T @ z[g]) for g in range(G)]).mean()
    floor, ceiling = 0.5 * log(1 + DIM / 0.05), DIM / 2 * log(1 + 1 / 0.05)
    assert health["rate"] == pytest.approx(rate.item(), rel=1e-9)
    assert health["expansion_fraction"] == pytest.approx((rate.item() - floor) / (ceiling - floor), rel=1e-9)
    cosines = [(z[g] * s[v]).sum(-1).mean().item() for g in range(G) for v in range(G + M) if g != v]
    assert health["alignment"] == pytest.approx(sum(cosines) / len(cosines), rel=1e-9)
    entropy = -(targets * targets.log()).sum(-1).mean().item()
    mean = targets.flatten(0, 1).mean(0)
    assert health["target_entropy"] == pytest.approx(entropy / log(K), rel=1e-9)
    assert health["prototype_use"] == pytest.approx(-(mean * mean.log()).sum().item() / log(K), rel=1e-9)


def test_targets_that_are_all_one_prototype_use_none_and_flat_ones_use_all() -> None:
    for scale, use, entropy in ((0.0, 1.0, 1.0), (100.0, 0.0, 0.0)):
        batch = make_batch()
        batch.teacher.logits.copy_(scale * torch.eye(K, dtype=torch.float64)[0].expand_as(batch.teacher.logits))
        _, health = evaluate(objective(buffers={CENTER: torch.zeros(K, dtype=torch.float64)}), batch)
        assert health["prototype_use"] == pytest.approx(use, abs=1e-9)
        assert health["target_entropy"] == pytest.approx(entropy, abs=1e-9)


def test_nothing_but_the_total_carries_a_graph() -> None:
    batch, loss = make_batch(), objective()
    student, teacher = batch.embeddings(batch.student), batch.embeddings(batch.teacher)
    statistics = loss.global_statistics([teacher], None, temperature=TEMPERATURE, all_reduce=lambda x: x)[0]
    result = loss(student, teacher, statistics)
    assert result.total.requires_grad
    assert not any(x.requires_grad for x in (*result.terms.values(), *result.health.values()))
