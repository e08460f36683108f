"""The recipes with a name: what papers and released codes take for ViTs with patches of 16 pixels at 224 px.

METHOD_SHAPE has the paper's settings, METHOD_SHAPE_released those of the released code (DINO at 7c446df, DINOv2 at
b8931f7, SimDINO and SimDINOv2 at 8149fc4), quirks that change results included: each is named where it is taken. Images
are normalised by ImageNet's constants there, whatever they are, and grey ones turned into three channels.
`docs/parity.md` lists what still differs from the released codes, with its size.
"""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from simdino.config import (
    EncoderConfig,
    LossConfig,
    OptimConfig,
    ProjectorConfig,
    PrototypeLossConfig,
    ViewsConfig,
)
from simdino.contracts import InputError
from simdino.defaults import Preset, by_square_root, linearly
from simdino.models.official import IMAGENET

PAPER_VIEWS = ViewsConfig(global_scale=(0.3, 1.0), local_scale=(0.05, 0.3))
"""Crop scales of the paper's text; the released code has 0.4 to 1 and 0.05 to 0.4, the defaults here."""

RELEASED_DINOV2_BLUR = (0.0, 0.9, 0.5)
"""DINOv2's code passes 1 - p to an operation that applies with probability p (data/transforms.py:17 at b8931f7): the
first global crop is never blurred, the second nearly always."""

V2_BLUR: dict[str, Any] = {"blur_radius": 4, "blur_edges": "reflect"}
"""torchvision's GaussianBlur(kernel_size=9), which DINOv2 and SimDINOv2 take in place of Pillow's."""

DINOV2_STEPS = 125_000
"""100 of DINOv2's epochs, each of 1,250 steps whatever data and batch (train.OFFICIAL_EPOCH_LENGTH): 200 passes over
ImageNet at its batch of 2,048."""

SMALL_TOKENS = 1e-6
"""Deviation of class and register tokens at the start in DINOv2 and SimDINOv2 (vision_transformer.py)."""

VIT16 = EncoderConfig(image_size=224, patch_size=16)
V2_OPTIM = OptimConfig(clip_per="part", layer_decay=0.9, patch_embed_lr=0.2)


def simdino(encoder: str) -> Preset:
    """SimDINO as in the paper: the rate of the whole batch on the student."""
    return Preset(
        views=PAPER_VIEWS,
        encoder=replace(VIT16, name=encoder, drop_path=0.1, positions="offset"),
        projector=ProjectorConfig(), loss=LossConfig(gamma="theorem"), batch=1024,
        lr=linearly(5e-4, at=256), epochs=100,
    )  # fmt: skip


def simdino_released(encoder: str) -> Preset:
    """Its 64 x 8 as shards, the rate on the mean of student and teacher, batch 512, larger crops."""
    paper = simdino(encoder)
    return replace(
        paper, views=ViewsConfig(), batch=512, normalise_as=IMAGENET, optim=replace(paper.optim, ramp="inclusive"),
        loss=LossConfig(gamma="released", scope="shards", shard_size=64, rate_on="mean"),
    )  # fmt: skip


def simdinov2(encoder: str) -> Preset:
    """SimDINOv2: masks, four registers, layer scale; the rate as in the paper."""
    return Preset(
        method="simdinov2",
        views=replace(PAPER_VIEWS, mask_share=0.5),
        encoder=replace(
            VIT16, name=encoder, registers=4, layer_scale=0.1, drop_path=0.2, drop_path_rule="uniform",
            mask_token=True,
        ),
        projector=ProjectorConfig(), loss=LossConfig(gamma="theorem"), optim=replace(V2_OPTIM, momentum=0.9),
        batch=1024, lr=by_square_root(4e-3, at=1024), epochs=100,
    )  # fmt: skip


def simdinov2_released(encoder: str) -> Preset:
    """Its 128 x 8 as shards, the rate on the mean of student and teacher, larger crops."""
    paper = simdinov2(encoder)
    return replace(
        paper, views=ViewsConfig(mask_share=0.5, **V2_BLUR), normalise_as=IMAGENET,
        encoder=replace(paper.encoder, token_std=SMALL_TOKENS),
        loss=LossConfig(gamma="released", scope="shards", shard_size=128, rate_on="mean"),
        optim=replace(paper.optim, ramp="exclusive", first_lr=1e-6),
    )  # fmt: skip


def dino(encoder: str) -> Preset:
    """DINO as the SimDINO paper runs it: batch 1024, its crops, the teacher's temperature to 0.07."""
    return Preset(
        method="dino",
        views=PAPER_VIEWS,
        encoder=replace(VIT16, name=encoder, drop_path=0.1, positions="offset"),
        projector=ProjectorConfig(prototypes=65_536), loss=PrototypeLossConfig(),
        optim=OptimConfig(temperature=(0.04, 0.07)), batch=1024, lr=linearly(5e-4, at=256), epochs=100,
    )  # fmt: skip


def dino_released(encoder: str) -> Preset:
    """The defaults of DINO's command line: batch 512, eight local crops, one temperature."""
    paper = dino(encoder)
    return replace(
        paper, views=ViewsConfig(local_views=8), batch=512, normalise_as=IMAGENET,
        optim=OptimConfig(temperature=(0.04, 0.04), ramp="inclusive"),
    )  # fmt: skip


def dinov2(encoder: str) -> Preset:
    """DINOv2 as the SimDINO paper runs it: vitl16_short with the blur that it means, batch 1024, 100 passes."""
    return Preset(
        method="dinov2",
        views=ViewsConfig(local_views=8, global_scale=(0.32, 1.0), local_scale=(0.05, 0.32), mask_share=0.5),
        encoder=replace(
            VIT16, name=encoder, layer_scale=1e-5, drop_path=0.3, drop_path_rule="uniform", mask_token=True,
            positions="offset",
        ),
        projector=ProjectorConfig(prototypes=65_536, train_lengths=True), loss=PrototypeLossConfig(),
        optim=replace(V2_OPTIM, momentum=0.992, temperature=(0.04, 0.07)),
        batch=1024, lr=by_square_root(4e-3, at=1024), epochs=100,
    )  # fmt: skip


def dinov2_released(encoder: str) -> Preset:
    """vitl16_short with the blur that it has: its 64 x 32 as shards of KoLeo and of iBOT's centre."""
    paper = dinov2(encoder)
    return replace(
        paper, views=replace(paper.views, blur=RELEASED_DINOV2_BLUR, **V2_BLUR), batch=2048, normalise_as=IMAGENET,
        encoder=replace(paper.encoder, token_std=SMALL_TOKENS), loss=PrototypeLossConfig(scope="shards", shard_size=64),
        optim=replace(paper.optim, ramp="inclusive", frozen_prototypes="no_rate"), steps=DINOV2_STEPS,
    )  # fmt: skip


SHAPES = {"vits16": "vit_small", "vitb16": "vit_base", "vitl16": "vit_large"}
PAPER = {"simdino": simdino, "simdinov2": simdinov2, "dino": dino, "dinov2": dinov2}
RELEASED = {
    "simdino": simdino_released, "simdinov2": simdinov2_released, "dino": dino_released, "dinov2": dinov2_released,
}  # fmt: skip
NAMED = {
    f"{method}_{shape}{suffix}": make(encoder)
    for suffix, table in (("", PAPER), ("_released", RELEASED))
    for method, make in table.items()
    for shape, encoder in SHAPES.items()
}
"""Presets by the names that --recipe takes."""


def named_preset(recipe: str | None) -> Preset | None:
    """The preset of a recipe's name such as simdino_vits16 or dinov2_vitl16_released; None for the table that follows
    the images. Raises InputError for an unknown name."""
    if recipe is None or recipe == "small":
        return None
    if recipe not in NAMED:
        close = get_close_matches(recipe, NAMED, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"unknown --recipe {recipe!r}: small, {', '.join(NAMED)}{hint}")
    return NAMED[recipe]
