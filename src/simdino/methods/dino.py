"""DINO: the student predicts the teacher's distribution over prototypes from other views, see `losses.dino`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from simdino.config import PART, SHARDS, Config, LossConfig, OptimConfig, ProjectorConfig, ViewsConfig
from simdino.defaults import Preset, Row, linearly
from simdino.methods.method import ONE_FEATURE, Curve, Diagnosis, Method, Numbers, Rule, health_numbers, sizes
from simdino.methods.simdino import IN_SHARDS, PAPER_VIEWS, VIT16, WEIGHT
from simdino.settings import Range, setting

if TYPE_CHECKING:
    from simdino.losses.dino import DINO

UNINFORMED = 0.01  # what the targets tell of the image, as a share of log K, below which a run has collapsed
FEW_USED = 0.1  # entropy of the mean target, as a share of log K, below which all images have one prototype


@dataclass(frozen=True, kw_only=True)
class PrototypeConfig(LossConfig):
    """The loss of DINO and of DINOv2, see `losses.dino` and `losses.dinov2`."""

    student_temperature: float = setting(
        0.1, "Temperature of the student's distributions.", Range(above=0, at_most=100)
    )
    center_momentum: float = setting(0.9, "Momentum of the moving mean of the teacher's logits.", PART)
    centering: Literal["centering", "sinkhorn"] = setting(
        "centering", "How targets are balanced over the prototypes.", word="centering"
    )
    patch_weight: float = setting(1.0, "Weight of iBOT, the loss of masked patches.", WEIGHT, part="masks")
    koleo_weight: float = setting(0.1, "Weight of KoLeo, which keeps features apart.", WEIGHT, part="koleo")
    scope: Literal["global", "shards"] = setting(
        "global", "Batch of KoLeo and of iBOT's centre: all of it, or shards of 64.", word="scope", part="koleo"
    )
    shard_size: int = setting(64, "Images of a shard.", SHARDS, part="koleo", only=IN_SHARDS)


def settings(config: Config) -> PrototypeConfig:
    """The settings of the loss of a run."""
    assert isinstance(config.loss, PrototypeConfig)
    return config.loss


def objective(config: Config) -> DINO:
    """DINO's loss."""
    from simdino.losses.dino import DINO

    return DINO(**sizes(config), **prototypes(config))


def prototypes(config: Config) -> dict[str, Any]:
    """What DINO and DINOv2 have of the settings."""
    loss = settings(config)
    return {
        "prototypes": config.projector.prototypes, "student_temperature": loss.student_temperature,
        "center_momentum": loss.center_momentum, "centering": loss.centering,
    }  # fmt: skip


def ours(preset: Preset, row: Row) -> Preset:
    """Prototypes, a slow teacher and a lower rate, which keep it from collapse (docs/log.md, the four methods)."""
    return replace(with_prototypes(preset, row), lr=lambda batch: 0.3 * preset.lr(batch))


def with_prototypes(preset: Preset, row: Row) -> Preset:
    """The preset with as many prototypes as the images ask for, and a teacher that is slow however short the run is."""
    return replace(preset, projector=replace(preset.projector, prototypes=row.prototypes), least_momentum=0.99)


def paper(encoder: str) -> Preset:
    """DINO as the SimDINO paper runs it: batch 1024, its crops, the teacher's temperature to 0.07."""
    return Preset(
        method="dino",
        views=PAPER_VIEWS,
        encoder=replace(VIT16, name=encoder, drop_path=0.1, positions="offset"),
        projector=ProjectorConfig(prototypes=65_536), loss=PrototypeConfig(),
        optim=OptimConfig(temperature=(0.04, 0.07)), batch=1024, lr=linearly(5e-4, at=256), epochs=100,
    )  # fmt: skip


def released(encoder: str) -> Preset:
    """The defaults of DINO's command line: batch 512, eight local crops, one temperature."""
    return replace(
        paper(encoder), views=ViewsConfig(local_views=8), batch=512, imagenet=True,
        optim=OptimConfig(temperature=(0.04, 0.04), ramp="inclusive"),
    )  # fmt: skip


def rules(config: Config) -> list[Rule]:
    """What may be wrong between settings."""
    prototypes = config.projector.prototypes
    return [(prototypes < 2, f"--prototypes {prototypes} must be 2 or more")]


def describe(config: Config) -> str:
    """Prototypes, how targets are balanced, and their temperature."""
    first, last = config.optim.temperature
    return (
        f"{config.projector.prototypes} prototypes, {settings(config).centering}, teacher temperature {first:g} to "
        f"{last:g}"
    )


def information(now: Numbers) -> float:
    """What the targets tell of the image, as a share of log K."""
    return now["prototype_use"] - now["target_entropy"]


def numbers(now: Numbers) -> list[str]:
    """What the targets tell, and the health of the features."""
    return [f"targets tell {100 * information(now):.1f} % of what they could", *health_numbers(now)]


def diagnose(now: Numbers) -> Diagnosis | None:
    """Collapse: the targets of all images become one prototype (their mean has no entropy), or all prototypes alike
    (every target has all of it), or the features of all images become one."""
    if information(now) >= UNINFORMED and now["effective_rank"] >= ONE_FEATURE:
        return None
    if now["prototype_use"] < FEW_USED:
        why = (
            "all images have the same prototype for their target. Raise --teacher-temperature, or balance the targets "
            "with --centering sinkhorn; then a lower --lr, or --teacher ema if it was none."
        )
    else:
        why = (
            "all images get nearly the same feature and the targets say next to nothing. Lower --teacher-temperature, "
            "raise --momentum; then a lower --lr, or --teacher ema if it was none."
        )
    return Diagnosis(status="collapse", sentence=why)


METHOD = Method(
    name="dino",
    about="The student predicts the teacher's distribution over prototypes, which a moving mean or Sinkhorn balances.",
    settings=PrototypeConfig,
    objective=objective,
    parts=frozenset({"prototypes"}),
    ours=ours,
    recipes={"paper": paper, "released": released},
    rules=rules,
    describe=describe,
    numbers=numbers,
    diagnose=diagnose,
    cure="another --teacher-temperature or --centering sinkhorn",
    health=(
        Curve(
            key="target_entropy",
            title="What the targets tell",
            caption="Solid: the mean entropy of an image's target; dashed: the entropy of the mean target, so how many "
            "prototypes are in use; both as shares of log K. What lies between them is what targets tell of the image. "
            "Good: dashed near 1, a gap that grows; lines that meet are collapse.",
            references=(("prototype_use", "prototype use"),),
        ),
    ),
    terms=(
        Curve(
            key="cross_entropy",
            title="Cross-entropy of views",
            caption="How well the student predicts the teacher's target from another view, in nats. Good: falls, but "
            "not to 0, where all images have the same target; at log K targets say nothing.",
        ),
    ),
)
