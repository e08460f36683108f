"""SimDINO: align the views of an image, keep the coding rate of a batch high. `losses.simdino` has the formula."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from simdino.config import SHARDS, Config, EncoderConfig, LossConfig, ProjectorConfig, ViewsConfig
from simdino.defaults import Preset, Row, linearly
from simdino.methods.method import Curve, Diagnosis, Method, Numbers, Rule, sizes
from simdino.settings import Range, setting

if TYPE_CHECKING:
    from simdino.losses.objective import Objective
    from simdino.losses.simdino import SimDINO

COLLAPSED = 0.1  # expansion fraction below which a run has collapsed
EXPANDED = 0.6  # expansion fraction above which the rate has won ...
UNALIGNED = 0.3  # ... if the mean cosine between views is below this
TOO_STRONG = 5  # times alignment's gradient: 6 and more over-expanded in short runs (docs/log.md, the sweep again)
WEIGHT = Range(0, 10**6)
BALANCED, IN_SHARDS = ("loss.gamma", ("balanced",)), ("loss.scope", ("shards",))
DISTORTION = Range(1e-4, 10**6)  # below, its square is lost beside 1 in float32

VIT16 = EncoderConfig(image_size=224, patch_size=16)
PAPER_VIEWS = ViewsConfig(global_scale=(0.3, 1.0), local_scale=(0.05, 0.3))
"""Crop scales of the text of SimDINO's paper; its code has 0.4 to 1 and 0.05 to 0.4, the defaults here."""


@dataclass(frozen=True, kw_only=True)
class RateConfig(LossConfig):
    """The loss of SimDINO and of SimDINOv2, see `losses.simdino` and `losses.simdinov2`."""

    eps: float = setting(
        0.05**0.5, "Distortion of the coding rate (the released code's eps is its square).", DISTORTION, word="eps"
    )
    gamma: float | Literal["balanced", "theorem", "released"] = setting(
        "balanced", "Weight of the rate: balanced, theorem, released or a number.", WEIGHT, word="gamma"
    )
    rho: float = setting(
        1.5, "Largest gradient of the rate over that of alignment.", Range(above=0, at_most=10**6), word="rho",
        only=BALANCED,
    )  # fmt: skip
    lift: float = setting(
        3.0, "How much steeper the rate is near collapse; 0: the paper's rate.", WEIGHT, word="lift", only=BALANCED
    )
    scope: Literal["global", "shards"] = setting(
        "global", "Batch whose rate counts: all of it, or shards of 64.", word="scope"
    )
    shard_size: int = setting(64, "Images of a shard.", SHARDS, only=IN_SHARDS)
    rate_on: Literal["student", "mean"] = setting(
        "student", "Whose embeddings the rate is of: mean adds the teacher's."
    )
    patch_weight: float = setting(1.0, "Weight of the distance of masked patches.", WEIGHT, part="masks")
    patch_rate: float = setting(
        0.0, "Weight of the rate of masked patches, relative to class tokens.", WEIGHT, word="patch-rate", part="masks"
    )


def settings(config: Config) -> RateConfig:
    """The settings of the loss of a run."""
    assert isinstance(config.loss, RateConfig)
    return config.loss


def objective(config: Config) -> SimDINO:
    """SimDINO's loss."""
    from simdino.losses.simdino import SimDINO

    return SimDINO(**sizes(config), **rate(config))


def rate(config: Config) -> dict[str, Any]:
    """What SimDINO and SimDINOv2 have of the settings."""
    loss = settings(config)
    return {
        "eps": loss.eps, "gamma": loss.gamma, "rho": loss.rho, "lift": loss.lift if loss.gamma == "balanced" else 0.0,
        "scope": loss.scope, "shard_size": loss.shard_size, "rate_on": loss.rate_on,
    }  # fmt: skip


def ours(preset: Preset, row: Row) -> Preset:
    """Muon, no average of the student and a projector of one layer, where that learns more in minutes (docs/log.md)."""
    if not row.quick:
        return preset
    optim = replace(preset.optim, optimizer="muon", teacher="none")
    return replace(preset, optim=optim, projector=replace(preset.projector, layers=1))


def paper(encoder: str) -> Preset:
    """SimDINO as in the paper: the rate of the whole batch on the student."""
    return Preset(
        method="simdino",
        views=PAPER_VIEWS,
        encoder=replace(VIT16, name=encoder, drop_path=0.1, positions="offset"),
        projector=ProjectorConfig(), loss=RateConfig(gamma="theorem"), batch=1024, lr=linearly(5e-4, at=256),
        epochs=100,
    )  # fmt: skip


def released(encoder: str) -> Preset:
    """Its 64 x 8 as shards, the rate on the mean of student and teacher, batch 512, larger crops."""
    base = paper(encoder)
    return replace(
        base, views=ViewsConfig(), batch=512, imagenet=True, optim=replace(base.optim, ramp="inclusive"),
        loss=RateConfig(gamma="released", scope="shards", shard_size=64, rate_on="mean"),
    )  # fmt: skip


def rules(config: Config) -> list[Rule]:
    """What may be wrong between settings."""
    loss, batch = settings(config), config.run.batch
    return [shards_rule(loss.scope, loss.shard_size, batch)]


def shards_rule(scope: str, size: int, batch: int) -> Rule:
    """Shards are a part of the batch."""
    return (
        scope == "shards" and batch % size != 0,
        f"--batch {batch} is not divisible into shards of {size} (--scope shards)",
    )


def describe(config: Config) -> str:
    """Distortion, weight and scope of the rate."""
    loss = settings(config)
    weight = f"{loss.gamma}, rho {loss.rho:g}, lift {loss.lift:g}" if loss.gamma == "balanced" else f"{loss.gamma}"
    return f"eps^2 {loss.eps**2:.3g}, gamma {weight}, scope {loss.scope}"


def warnings(loss: Objective) -> list[str]:
    """A line where collapse would pay, and one where the rate is far too strong. loss: SimDINO's."""
    from simdino.losses.coding_rate import collapse_is_better
    from simdino.losses.simdino import SimDINO

    assert isinstance(loss, SimDINO)
    found: list[str] = []
    if loss.weight > TOO_STRONG * loss.unit:
        found.append(
            f"the gradient of the rate can be {loss.weight / loss.unit:.0f} times that of alignment (in published runs "
            f"about 1), which tends to over-expansion; "
            f"{'give a lower --rho' if loss.gamma == 'balanced' else '--gamma balanced sets it to --rho'}"
        )
    if collapse_is_better(weight=loss.weight, ceiling=loss.ceiling, floor=loss.floor):
        found.append(
            f"the rate is too weak to prevent collapse: gamma * R can reach {loss.weight * loss.ceiling:.2f}, "
            f"which is less than perfect alignment saves; raise --rho or --gamma, or lower --eps"
        )
    return found


def diagnose(now: Numbers) -> Diagnosis | None:
    """Collapse: the views of all images become one vector, and the rate falls to its floor. Over-expansion: the rate is
    at its ceiling because the views of one image are pushed apart with the rest."""
    if now["expansion_fraction"] < COLLAPSED:
        return Diagnosis(
            status="collapse",
            sentence="all images get nearly the same feature, because the rate is too weak against alignment. Raise "
            "--rho (or --gamma), or lower --eps; then a lower --lr.",
        )
    if now["expansion_fraction"] > EXPANDED and now["alignment"] < UNALIGNED:
        return Diagnosis(
            status="over-expansion",
            sentence=f"views of one image are pushed apart with the rest, because the rate's gradient is "
            f"{now['gradient_ratio']:.1f} times alignment's. Lower --rho (or --gamma); then fewer --local-views.",
        )
    return None


METHOD = Method(
    name="simdino",
    about="The views of an image are aligned; the coding rate of the batch keeps features from collapse.",
    settings=RateConfig,
    objective=objective,
    recipes={"paper": paper, "released": released},
    ours=ours,
    rules=rules,
    describe=describe,
    warnings=warnings,
    diagnose=diagnose,
    cure="a higher --rho or a lower --eps",
    health=(
        Curve(
            key="gradient_ratio",
            title="Gradient ratio, rho",
            caption="Gradient of the rate over gradient of the alignment. Good: steady, near 1 to 3; from about 8 on, "
            "expansion swamps alignment.",
            log=True,
        ),
    ),
    terms=(
        Curve(
            key="distance",
            title="Distance of views",
            caption="Half the squared distance between student and teacher on different views of one image: 1 minus "
            "the alignment. Good: falls while the rate holds.",
            limits=(0.0, None),
        ),
        Curve(
            key="rate_weighted",
            title="Weighted rate",
            caption="The coding rate as it enters the loss, times gamma. Good: rises early, then stays steady.",
        ),
    ),
)
