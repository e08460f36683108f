"""iBOT's loss of masked patches against its loops."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from written_out import (
    BATCH,
    DTYPES,
    GRID,
    TOLERANCE,
    Batch,
    FixedTargets,
    G,
    check_same,
    make_batch,
    masked_patches,
    slow_centred,
    slow_ibot,
)

from simdino.losses.dinov2 import masked_cross_entropy_sum, patch_logits


def targets_of(batch: Batch) -> Tensor:
    rows = masked_patches(batch, batch.teacher.patch_logits)
    return slow_centred(rows, torch.zeros(rows.shape[1]))


def ours(batch: Batch) -> Tensor:
    """With the 1/(G n) that the caller gives it."""
    patches = batch.embeddings(batch.student).patches
    targets = FixedTargets(classes=targets_of(batch).to(patches.weights.dtype)[None])
    return masked_cross_entropy_sum(patches, targets, temperature=0.1) / (G * BATCH)


@pytest.mark.parametrize("dtype", DTYPES)
def test_value_and_gradient_are_those_of_the_loops(dtype: torch.dtype) -> None:
    batch = make_batch(dtype)
    check_same(ours(batch), slow_ibot(batch, targets_of(batch)), batch, tolerance=TOLERANCE[dtype])


def test_crops_weigh_the_same_whatever_they_hide_and_whole_ones_count_as_zero() -> None:
    """One patch of equal logits costs log K, in one crop of one and one crop of all: 2 log K/(G n)."""
    masks = torch.zeros(G, BATCH, GRID, dtype=torch.bool)
    masks[0, 1, 3], masks[1, 2] = True, True
    batch = dataclasses.replace(make_batch(), masks=masks)
    batch.student.patch_logits.data.zero_()
    k = batch.student.patch_logits.shape[-1]
    expected = 2 * torch.log(torch.tensor(float(k))).item() / (G * BATCH)
    assert ours(batch).item() == pytest.approx(expected, rel=1e-6)


def test_without_a_masked_patch_the_loss_is_zero_with_a_gradient_of_zero() -> None:
    batch = dataclasses.replace(make_batch(), masks=torch.zeros(G, BATCH, GRID, dtype=torch.bool))
    patches = batch.embeddings(batch.student).patches
    nothing = FixedTargets(classes=torch.zeros_like(patches.logits.features))
    total = masked_cross_entropy_sum(patches, nothing, temperature=0.1)
    total.backward()
    assert total.item() == 0 and not batch.student.patch_logits.grad.any()


def test_patches_that_are_not_there_are_named() -> None:
    embeddings = make_batch().embeddings(make_batch().student)
    for bare in (None, dataclasses.replace(embeddings.patches, logits=None)):
        with pytest.raises(ValueError, match="logits of masked patches"):
            patch_logits(dataclasses.replace(embeddings, patches=bare))
