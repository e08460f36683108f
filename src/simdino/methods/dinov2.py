"""DINOv2: DINO on class tokens, iBOT on masked patches, KoLeo on the encoder's class tokens, see `losses.dinov2`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from simdino.config import Config, ProjectorConfig, ViewsConfig
from simdino.defaults import Preset, Row, by_square_root
from simdino.methods import dino
from simdino.methods.dino import PrototypeConfig
from simdino.methods.method import Curve, Rule, sizes
from simdino.methods.simdino import VIT16, shards_rule
from simdino.methods.simdinov2 import V2_BLUR, V2_OPTIM, V2_TOKENS, masked

if TYPE_CHECKING:
    from simdino.losses.dinov2 import DINOv2

RELEASED_BLUR = (0.0, 0.9, 0.5)
"""DINOv2's code passes 1 - p to an operation that applies with probability p (data/transforms.py:17 at b8931f7): the
first global crop is never blurred, the second nearly always."""

RELEASED_STEPS = 125_000
"""100 of DINOv2's epochs, each of 1,250 steps whatever data and batch (train.OFFICIAL_EPOCH_LENGTH): 200 passes over
ImageNet at its batch of 2,048."""


def objective(config: Config) -> DINOv2:
    """DINO's loss with KoLeo, and with iBOT where patches are masked."""
    from simdino.losses.dinov2 import DINOv2

    loss = dino.settings(config)
    return DINOv2(
        **sizes(config),
        **dino.prototypes(config),
        patch_weight=loss.patch_weight if config.views.mask_share else 0.0,
        koleo_weight=loss.koleo_weight,
        shard_size=loss.shard_size if loss.scope == "shards" else None,
    )


def ours(preset: Preset, row: Row) -> Preset:
    """Prototypes whose lengths are trained, masks, a temperature that rises and a slow teacher."""
    preset = dino.with_prototypes(masked(preset), row)
    return replace(
        preset, projector=replace(preset.projector, train_lengths=True),
        optim=replace(preset.optim, temperature=(0.04, 0.07)),
    )  # fmt: skip


def paper(encoder: str) -> Preset:
    """DINOv2 as the SimDINO paper runs it: vitl16_short with the blur that it means, batch 1024, 100 passes."""
    return masked(Preset(
        method="dinov2",
        views=ViewsConfig(local_views=8, global_scale=(0.32, 1.0), local_scale=(0.05, 0.32)),
        encoder=replace(
            VIT16, name=encoder, layer_scale=1e-5, drop_path=0.3, drop_path_rule="uniform", positions="offset",
        ),
        projector=ProjectorConfig(prototypes=65_536, train_lengths=True), loss=PrototypeConfig(),
        optim=replace(V2_OPTIM, momentum=0.992, temperature=(0.04, 0.07)),
        batch=1024, lr=by_square_root(4e-3, at=1024), epochs=100,
    ))  # fmt: skip


def released(encoder: str) -> Preset:
    """vitl16_short with the blur that it has: its 64 x 32 as shards of KoLeo and of iBOT's centre."""
    base = paper(encoder)
    return replace(
        base, views=replace(base.views, blur=RELEASED_BLUR, **V2_BLUR), batch=2048, imagenet=True,
        encoder=replace(base.encoder, token_std=V2_TOKENS), loss=PrototypeConfig(scope="shards", shard_size=64),
        optim=replace(base.optim, ramp="inclusive", frozen_prototypes="no_rate"), steps=RELEASED_STEPS,
    )  # fmt: skip


def rules(config: Config) -> list[Rule]:
    """DINO's, and shards are a part of the batch."""
    loss = dino.settings(config)
    return [*dino.rules(config), shards_rule(loss.scope, loss.shard_size, config.run.batch)]


def describe(config: Config) -> str:
    """DINO's, and the shards where there are some."""
    loss = dino.settings(config)
    return dino.describe(config) + (f", in shards of {loss.shard_size}" if loss.scope == "shards" else "")


METHOD = replace(
    dino.METHOD,
    name="dinov2",
    about="DINO with masked patches that have targets too (iBOT), and with features kept apart (KoLeo).",
    objective=objective,
    parts=frozenset({"prototypes", "masks", "koleo"}),
    ours=ours,
    recipes={"paper": paper, "released": released},
    rules=rules,
    describe=describe,
    terms=(
        *dino.METHOD.terms,
        Curve(
            key="patch_cross_entropy",
            title="Cross-entropy of masked patches",
            caption="The same for hidden patches, whose targets the teacher sees. Good: falls; jumps where the targets "
            "change.",
        ),
        Curve(
            key="koleo",
            title="KoLeo",
            caption="Minus the log of the distance to the nearest image of the batch, summed over global views. Good: "
            "falls, so that images keep apart; a rise means that some come to lie on each other.",
        ),
    ),
)
