"""SimDINOv2: SimDINO on the class tokens of masked images, and alignment of masked patches: `losses.simdinov2`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from simdino.config import Config, OptimConfig, ProjectorConfig, ViewsConfig
from simdino.defaults import Preset, Row, by_square_root
from simdino.methods import simdino
from simdino.methods.method import Curve, sizes
from simdino.methods.simdino import PAPER_VIEWS, VIT16, RateConfig

if TYPE_CHECKING:
    from simdino.losses.simdino import SimDINO

# What DINOv2 shares.
V2_BLUR: dict[str, Any] = {"blur_radius": 4, "blur_edges": "reflect"}  # torchvision's GaussianBlur(kernel_size=9)
V2_TOKENS = 1e-6  # std of class and register tokens at the start (vision_transformer.py)
V2_OPTIM = OptimConfig(clip_per="part", layer_decay=0.9, patch_embed_lr=0.2)
V2_MASKS = 0.5  # share of the global crops that have masked patches


def objective(config: Config) -> SimDINO:
    """SimDINO's loss, with a part on patches where some are masked."""
    from simdino.losses.simdinov2 import SimDINOv2

    if not config.views.mask_share:
        return simdino.objective(config)
    loss = simdino.settings(config)
    rate = simdino.rate(config)
    return SimDINOv2(**sizes(config), **rate, patch_weight=loss.patch_weight, patch_rate=loss.patch_rate)


def ours(preset: Preset, row: Row) -> Preset:
    """Half of the global crops have masked patches."""
    return masked(preset)


def masked(preset: Preset) -> Preset:
    """A preset whose encoder can mask patches, and does so in half of the global crops."""
    return replace(
        preset, views=replace(preset.views, mask_share=V2_MASKS), encoder=replace(preset.encoder, mask_token=True)
    )


def paper(encoder: str) -> Preset:
    """SimDINOv2: masks, four registers, layer scale; the rate as in the paper."""
    return masked(Preset(
        method="simdinov2",
        views=PAPER_VIEWS,
        encoder=replace(
            VIT16, name=encoder, registers=4, layer_scale=0.1, drop_path=0.2, drop_path_rule="uniform",
        ),
        projector=ProjectorConfig(), loss=RateConfig(gamma="theorem"), optim=replace(V2_OPTIM, momentum=0.9),
        batch=1024, lr=by_square_root(4e-3, at=1024), epochs=100,
    ))  # fmt: skip


def released(encoder: str) -> Preset:
    """Its 128 x 8 as shards, the rate on the mean of student and teacher, larger crops."""
    base = paper(encoder)
    return replace(
        base, views=ViewsConfig(mask_share=V2_MASKS, **V2_BLUR), imagenet=True,
        encoder=replace(base.encoder, token_std=V2_TOKENS),
        loss=RateConfig(gamma="released", scope="shards", shard_size=128, rate_on="mean"),
        optim=replace(base.optim, ramp="exclusive", first_lr=1e-6),
    )  # fmt: skip


METHOD = replace(
    simdino.METHOD,
    name="simdinov2",
    about="SimDINO with masked patches, whose features are aligned too.",
    objective=objective,
    parts=frozenset({"masks"}),
    ours=ours,
    recipes={"paper": paper, "released": released},
    terms=(
        *simdino.METHOD.terms,
        Curve(
            key="patch_distance",
            title="Distance of masked patches",
            caption="The same distance between what the student makes of a hidden patch and what the teacher sees "
            "there. Good: falls, but less far than the distance of views: a hidden patch cannot be known exactly.",
            limits=(0.0, None),
        ),
        Curve(
            key="patch_rate_weighted",
            title="Weighted rate of patches",
            caption="The coding rate of masked patches as it enters the loss. Good: rises early, then stays steady.",
        ),
    ),
)
