"""The words of `simdino pretrain`, the same from the command line and from Python. Nothing heavy is imported here.

A word for a setting of a run takes help and range from that setting's field in `config`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal

from simdino.config import (
    DataConfig,
    EncoderConfig,
    OptimConfig,
    PositionRule,
    RunConfig,
    SpeedConfig,
    ViewsConfig,
)
from simdino.errors import InputError
from simdino.methods.dino import PrototypeConfig
from simdino.methods.simdino import RateConfig
from simdino.settings import Range, declared, problems, setting


def option(group: type, name: str, default: Any = None) -> Any:
    """A word for the setting `name` of a run; the default None means: as the images ask for."""
    about = declared(group, name).metadata
    return setting(default, about["help"], about["range"], word=about["word"])


@dataclass(frozen=True, kw_only=True)
class Options:
    """The words of `simdino pretrain`; None means: as the images ask for. Raises one InputError that lists every value
    of another type, or out of its range."""

    train: str | None = option(DataConfig, "train")
    val: str | None = option(DataConfig, "val")
    class_depth: int | None = option(DataConfig, "class_depth")
    method: str | None = setting(None, "Objective.  [default: simdino]", word="method")
    recipe: str | None = setting(
        None, "Named settings, such as simdino_vitb16 or dinov2_vitl16_released.", word="recipe"
    )
    encoder: str | None = setting(
        None, "Encoder: vit_pico, vit_nano, vit_tiny, vit_small, vit_base, vit_large, crate_nano, crate_tiny, "
        "crate_small, crate_base, crate_large, or a model of timm.", word="encoder",
    )  # fmt: skip
    stem: Literal["patch", "dual_norm"] | None = option(EncoderConfig, "stem")
    init: str | None = option(RunConfig, "init")
    positions: PositionRule | None = option(EncoderConfig, "positions")
    steps: int | None = option(RunConfig, "steps")
    epochs: float | None = setting(
        None, "Length in passes over the images.", Range(above=0, at_most=10**6), word="epochs"
    )
    minutes: float | None = setting(
        None, "Length in minutes: probed, turned into steps, frozen before step 1.", Range(above=0, at_most=10**6),
        word="minutes",
    )  # fmt: skip
    batch: int | None = option(RunConfig, "batch")
    micro_batch: int | None = option(SpeedConfig, "micro_batch")
    image_size: int | None = option(ViewsConfig, "global_size")
    patch_size: int | None = option(EncoderConfig, "patch_size")
    local_views: int | None = option(ViewsConfig, "local_views")
    lr: float | None = option(OptimConfig, "lr")
    eps: float | None = option(RateConfig, "eps")
    gamma: str | None = option(RateConfig, "gamma")
    rho: float | None = option(RateConfig, "rho")
    lift: float | None = option(RateConfig, "lift")
    scope: Literal["global", "shards"] | None = option(RateConfig, "scope")
    patch_rate: float | None = option(RateConfig, "patch_rate")
    prototypes: int | None = setting(
        None, "For dino and dinov2: directions of the last layer.", Range(at_least=2, at_most=2**26), word="prototypes"
    )
    centering: Literal["centering", "sinkhorn"] | None = option(PrototypeConfig, "centering")
    teacher_temperature: float | None = setting(
        None, "For dino and dinov2: temperature of the targets after warm-up.",
        declared(OptimConfig, "temperature").metadata["range"], word="teacher-temperature",
    )  # fmt: skip
    teacher: Literal["ema", "none"] | None = option(OptimConfig, "teacher")
    drop_path: float | None = option(EncoderConfig, "drop_path")
    momentum: float | None = option(OptimConfig, "momentum")
    layer_decay: float | None = option(OptimConfig, "layer_decay")
    freeze_encoder: float | None = option(OptimConfig, "freeze_encoder")
    seed: int = option(RunConfig, "seed", 0)
    labels: bool = option(DataConfig, "labels", True)
    max_broken: float = option(DataConfig, "max_broken", 0.1)
    evaluate_every: int | None = option(RunConfig, "evaluate_every")
    checkpoint_every: int | None = option(RunConfig, "checkpoint_every")
    keep: int | None = option(RunConfig, "keep")
    precision: Literal["auto", "bfloat16", "float16", "float32"] = option(SpeedConfig, "precision", "auto")
    device: str = option(SpeedConfig, "device", "auto")
    compile: bool = option(SpeedConfig, "compile", False)
    workers: int | None = option(SpeedConfig, "workers")
    threads: int | None = option(SpeedConfig, "threads")

    def __post_init__(self) -> None:
        found = problems(self, named=lambda field: f"--{field.metadata['word']}")
        if found:
            raise InputError("; ".join(found))

    @classmethod
    def of(cls, given: dict[str, Any]) -> Options:
        """The options of a program. Raises InputError for one that does not exist; names the nearest."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise InputError(f"unknown setting {name!r}{hint}")
        return cls(**given)
