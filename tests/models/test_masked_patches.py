"""The embedder with masks: what the student sees, what the teacher sees, and which patches are compared."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from encoders import made
from simdino.config import EncoderConfig
from simdino.contracts import Embeddings, InputError, Logits, Patches, Tokens, Views
from simdino.models.crate import CRATE
from simdino.models.encoder import Encoder
from simdino.models.projector import Embedder, Projector, Prototypes
from simdino.models.starting import check_masks
from simdino.models.vit import ViT
from simdino.rng import sample_keys

GLOBAL, BATCH, DIM, K, WIDTH = 2, 3, 5, 7, 16
ENCODERS = [ViT, CRATE]


def make_encoder(kind: Any = ViT, *, mask_token: bool = True, drop_path: float = 0.0) -> Encoder:
    extra = {"registers": 2} if kind is ViT else {}
    encoder = made(
        kind, image_size=8, patch_size=2, in_chans=1, embed_dim=WIDTH, depth=2, num_heads=2, drop_path=drop_path,
        mask_token=mask_token, **extra,
    )  # fmt: skip
    return awake(encoder)


def awake(module: Any, *, seed: int = 0) -> Any:
    """The module with no parameter that is zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module.double()


def make_head(*, prototypes: bool = True, seed: int = 1) -> Projector:
    last = Prototypes(dim=DIM, count=K, train_lengths=False) if prototypes else None
    return awake(Projector(embed_dim=WIDTH, hidden_dim=8, out_dim=DIM, prototypes=last), seed=seed)


def make_views(*, local: bool = True) -> Views:
    generator = torch.Generator().manual_seed(2)
    masks = torch.rand(GLOBAL, BATCH, 16, generator=generator) < 0.4
    masks[0, 1], masks[1, 2] = False, True
    size = {"generator": generator, "dtype": torch.float64}
    return Views(
        global_views=torch.randn(GLOBAL, BATCH, 1, 8, 8, **size),
        local_views=torch.randn(2, BATCH, 1, 4, 4, **size) if local else None,
        ids=torch.arange(BATCH), keys=torch.from_numpy(sample_keys(0, 0, np.arange(BATCH))),
        indices=torch.arange(BATCH), masks=masks,
    )  # fmt: skip


def repainted(views: Views, where: Tensor) -> Views:
    """The views with other pixels in the patches `where` [G, B, 16] of the global views."""
    pixels = where.unflatten(-1, (4, 4)).repeat_interleave(2, -1).repeat_interleave(2, -2)[:, :, None]
    return dataclasses.replace(views, global_views=torch.where(pixels, 10.0, views.global_views))


def every(logits: Logits) -> Tensor:
    return logits.of(slice(None))


def numbers(embeddings: Embeddings) -> list[Tensor]:
    patches = embeddings.patches
    return [embeddings.cls, embeddings.backbone, every(embeddings.logits), patches.features, every(patches.logits)]


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_the_student_does_not_see_masked_patches_and_the_teacher_sees_all(kind: Any, drop_path: float) -> None:
    embedder, views = Embedder(make_encoder(kind, drop_path=drop_path), make_head()), make_views()
    hidden = repainted(views, views.masks)
    for mine, other in zip(numbers(embedder(views)), numbers(embedder(hidden)), strict=True):
        assert torch.equal(mine, other)
    for mine, other in zip(
        numbers(embedder(views, student=False)), numbers(embedder(hidden, student=False)), strict=True
    ):
        assert not torch.allclose(mine, other)


def test_every_patch_that_is_not_masked_is_seen() -> None:
    embedder, views = Embedder(make_encoder(), make_head()), make_views()
    before = embedder(views).backbone
    for g, b, p in (~views.masks).nonzero().tolist():
        one = torch.zeros_like(views.masks)
        one[g, b, p] = True
        moved = (embedder(repainted(views, one)).backbone - before).abs().amax(-1) > 1e-9
        assert moved[g, b] and moved.sum() == 1


def test_the_mask_token_takes_the_place_of_the_patch_before_its_position() -> None:
    """Written out: patch tokens by the convolution, masked ones replaced, positions added, then the blocks."""
    vit, views = make_encoder(), make_views()
    images, masks = views.global_views.flatten(0, 1), views.masks.flatten(0, 1)
    tokens = vit.patch_embed.proj(images).flatten(2).mT.clone()
    for image, patch in masks.nonzero().tolist():
        tokens[image, patch] = vit.mask_token[0]
    count = len(images)
    cls = (vit.cls_token + vit.pos_embed[:, :1]).expand(count, -1, -1)
    x = torch.cat([cls, vit.register_tokens.expand(count, -1, -1), tokens + vit.pos_embed[:, 1:]], dim=1)
    for block in vit.blocks:
        x = block(x)
    x = vit.norm(x)
    found = vit(images, masks=masks)
    torch.testing.assert_close(found.cls, x[:, 0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.patches, x[:, 3:], rtol=1e-10, atol=1e-12)


def test_the_mask_token_starts_at_zero_and_learns() -> None:
    fresh = made(ViT, image_size=8, patch_size=2, embed_dim=WIDTH, depth=1, num_heads=2, mask_token=True)
    assert fresh.mask_token is not None and not fresh.mask_token.any()
    embedder = Embedder(make_encoder(), make_head())
    embedder(make_views()).patches.features.sum().backward()
    assert embedder.encoder.mask_token.grad.any()


class Blind(ViT):
    """It says that it has a mask token, and ignores masks."""

    def forward(self, images: Tensor, *, masks: Tensor | None = None, **options: Any) -> Tokens:
        return super().forward(images, **options)


@pytest.mark.parametrize("kind", [*ENCODERS, Blind])
def test_an_encoder_that_ignores_masks_is_refused_before_training(kind: Any) -> None:
    encoder = made(kind, image_size=8, patch_size=2, embed_dim=WIDTH, depth=1, num_heads=2, mask_token=True)
    encoder.config = EncoderConfig(name="vit", image_size=8, patch_size=2)
    with pytest.raises(InputError, match="vit does not hide masked patches") if kind is Blind else nullcontext():
        check_masks(encoder)
    assert encoder.training


# --- which patches, in which order ----------------------------------------------------------------------------------


def by_hand(embedder: Embedder, views: Views, head: Projector, *, student: bool) -> list[tuple[Any, ...]]:
    """(feature, weight, key, logits) of every masked patch: first view first, then image, then place in the crop."""
    rows = []
    for g in range(GLOBAL):
        for b in range(BATCH):
            mask = views.masks[g, b]
            tokens = embedder.encoder(views.global_views[g, b][None], masks=mask[None] if student else None)
            for patch in mask.nonzero()[:, 0].tolist():
                feature = head(tokens.patches[0, patch])
                rows.append(
                    (feature, 1 / int(mask.sum()), int(views.keys[b]) + g, every(head.logits(feature[None]))[0])
                )
    return rows


@pytest.mark.parametrize("student", [True, False])
@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("local", [True, False])
def test_masked_patches_lie_crop_by_crop_with_weight_key_and_logits(student: bool, separate: bool, local: bool) -> None:
    second = make_head(seed=5) if separate else None
    embedder, views = Embedder(make_encoder(), make_head(), second), make_views(local=local)
    patches = embedder(views, student=student).patches
    expected = by_hand(embedder, views, second or embedder.projector, student=student)
    assert len(patches.features) == len(expected) == views.masks.sum()
    torch.testing.assert_close(patches.features, torch.stack([row[0] for row in expected]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        every(patches.logits)[0], torch.stack([row[3] for row in expected]), rtol=1e-9, atol=1e-12
    )
    assert patches.weights.tolist() == pytest.approx([row[1] for row in expected], rel=1e-15)
    assert patches.keys.tolist() == [row[2] for row in expected]


def test_the_weights_of_a_crop_sum_to_one_and_its_key_is_its_own() -> None:
    views = make_views()
    patches: Patches = Embedder(make_encoder(), make_head())(views).patches
    sums: dict[int, float] = {}
    for key, weight in zip(patches.keys.tolist(), patches.weights.tolist(), strict=True):
        sums[key] = sums.get(key, 0.0) + weight
    assert len(sums) == int(views.masks.any(-1).sum()), "one key for each masked crop"
    assert list(sums.values()) == pytest.approx([1.0] * len(sums))


@pytest.mark.parametrize("separate", [True, False])
def test_the_class_token_has_its_own_head_and_without_a_second_patches_share_it(separate: bool) -> None:
    second = make_head(seed=5) if separate else None
    embedder, views = Embedder(make_encoder(), make_head(), second), make_views()
    embeddings = embedder(views)
    assert embedder.heads() == ([embedder.projector, second] if separate else [embedder.projector])
    torch.testing.assert_close(embeddings.cls, embedder.projector(embeddings.backbone))
    torch.testing.assert_close(every(embeddings.logits), every(embedder.projector.logits(embeddings.cls)))
    every(embeddings.patches.logits).sum().backward()
    assert (embedder.projector.layers[0].weight.grad is None) == separate
    assert all(p.grad is not None for name, p in (second or embedder.projector).named_parameters() if p.requires_grad)


@pytest.mark.parametrize("masks", ["none", "empty"])
def test_views_without_masked_patches(masks: str) -> None:
    embedder, views = Embedder(make_encoder(), make_head()), make_views()
    empty = None if masks == "none" else torch.zeros_like(views.masks)
    bare = dataclasses.replace(views, masks=empty)
    embeddings = embedder(bare)
    torch.testing.assert_close(embeddings.cls[:GLOBAL], embedder(bare, student=False).cls, rtol=1e-10, atol=1e-12)
    assert (embeddings.patches is None) == (masks == "none")
    if embeddings.patches is not None:
        assert embeddings.patches.features.shape == (0, DIM) and every(embeddings.patches.logits).shape == (1, 0, K)


def test_local_views_are_not_masked() -> None:
    embedder, views = Embedder(make_encoder(), make_head()), make_views()
    bare = dataclasses.replace(views, masks=None)
    torch.testing.assert_close(embedder(views).cls[GLOBAL:], embedder(bare).cls[GLOBAL:], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(embedder(views).cls[:GLOBAL], embedder(bare).cls[:GLOBAL])


def test_masks_and_drop_path_of_a_micro_batch_are_those_of_the_batch() -> None:
    embedder, views = Embedder(make_encoder(drop_path=0.5), make_head()), make_views()
    whole, parts = embedder(views), [embedder(part) for part in views.split(2)]
    torch.testing.assert_close(torch.cat([part.cls for part in parts], dim=1), whole.cls, rtol=1e-9, atol=1e-12)
    rows = {key: feature for part in parts for key, feature in crops_of(part.patches).items()}
    assert rows.keys() == crops_of(whole.patches).keys()
    for key, feature in crops_of(whole.patches).items():
        torch.testing.assert_close(rows[key], feature, rtol=1e-9, atol=1e-12)


def crops_of(patches: Patches) -> dict[int, Tensor]:
    return {key: patches.features[patches.keys == key] for key in patches.keys.tolist()}


# --- prototypes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train_lengths", [True, False])
def test_prototypes_are_torchs_weight_normalised_layer(train_lengths: bool) -> None:
    ours = Prototypes(dim=DIM, count=K, train_lengths=train_lengths).double()
    if train_lengths:
        ours.lengths.data = torch.rand(K, 1, dtype=torch.float64) + 0.5
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(DIM, K, bias=False).double())
    g, v = theirs.parametrizations.weight.original0, theirs.parametrizations.weight.original1
    g.data, v.data = ours.lengths.data.clone(), ours.directions.data.clone()
    x = torch.nn.functional.normalize(torch.randn(2, 4, DIM, dtype=torch.float64), dim=-1)
    logits = every(Logits(features=x, weight=ours.weight()))
    torch.testing.assert_close(logits, theirs(x), rtol=1e-12, atol=1e-14)
    for output in (logits, theirs(x)):
        (output**2).sum().backward()
    torch.testing.assert_close(ours.directions.grad, v.grad, rtol=1e-10, atol=1e-12)
    assert (ours.lengths.grad is not None) == ours.lengths.requires_grad == train_lengths
    if train_lengths:
        torch.testing.assert_close(ours.lengths.grad, g.grad, rtol=1e-10, atol=1e-12)


def test_new_prototypes_have_length_one_and_logits_are_cosines() -> None:
    prototypes = Prototypes(dim=DIM, count=K, train_lengths=True).double()
    assert torch.equal(prototypes.lengths, torch.ones(K, 1, dtype=torch.float64))
    x = torch.randn(6, DIM, dtype=torch.float64)
    logits = torch.nn.functional.normalize(x, dim=-1) @ prototypes.weight().T
    cosines = torch.nn.functional.cosine_similarity(x[:, None], prototypes.directions[None], dim=-1)
    torch.testing.assert_close(logits, cosines, rtol=1e-12, atol=1e-14)
    prototypes.directions.data *= torch.rand(K, 1, dtype=torch.float64) + 1  # their own lengths do not count
    again = torch.nn.functional.normalize(x, dim=-1) @ prototypes.weight().T
    torch.testing.assert_close(again, cosines, rtol=1e-12, atol=1e-14)


def test_a_head_without_prototypes_has_no_logits() -> None:
    embeddings = Embedder(make_encoder(), make_head(prototypes=False))(make_views())
    assert embeddings.logits is None and embeddings.patches.logits is None
