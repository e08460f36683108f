"""The words of `simdino pretrain`, the same from the command line and from Python. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def option(default: Any, text: str) -> Any:
    """A field of Options with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class Options:
    """The words of `simdino pretrain`; None means: as the images ask for."""

    method: Literal["simdino", "simdinov2", "dino", "dinov2"] | None = option(None, "Objective.  [default: simdino]")
    recipe: str | None = option(None, "Named settings, such as simdino_vitb16 or dinov2_vitl16_released.")
    encoder: str | None = option(
        None, "Encoder: vit_pico, vit_nano, vit_tiny, vit_small, vit_base, vit_large, crate_nano, crate_tiny, "
        "crate_small, crate_base, crate_large, or a model of timm."
    )  # fmt: skip
    stem: Literal["patch", "dual_norm"] | None = option(None, "Stem of a ViT; dual_norm: layer norms around it.")
    init: str | None = option(
        None, "Weights to start from: a run, an encoder file, an official .pth, timm:NAME, hf:NAME."
    )
    steps: int | None = option(None, "Length in steps.")
    epochs: float | None = option(None, "Length in passes over the images.")
    minutes: float | None = option(None, "Length in minutes: probed, turned into steps, frozen before step 1.")
    batch: int | None = option(None, "Images in the global batch.")
    micro_batch: int | None = option(None, "Images of one process at once; the result is the same.")
    image_size: int | None = option(None, "Side of global crops in pixels.")
    patch_size: int | None = option(None, "Side of a patch in pixels.")
    local_views: int | None = option(None, "Local crops per image.")
    lr: float | None = option(None, "Peak learning rate.")
    eps: float | None = option(None, "Distortion of the coding rate (the released code's eps is its square).")
    gamma: str | None = option(None, "Weight of the rate: balanced, theorem, released or a number.")
    rho: float | None = option(None, "For balanced: largest rate gradient over the alignment gradient.")
    lift: float | None = option(None, "For balanced: how much steeper the rate is near collapse; 0: the paper's rate.")
    scope: Literal["global", "shards"] | None = option(None, "Batch whose rate counts: all of it, or shards of 64.")
    patch_rate: float | None = option(None, "For simdinov2: weight of the rate of patches, relative to class tokens.")
    prototypes: int | None = option(None, "For dino and dinov2: directions of the last layer.")
    centering: Literal["centering", "sinkhorn"] | None = option(None, "For dino and dinov2: how targets are balanced.")
    teacher_temperature: float | None = option(None, "For dino and dinov2: temperature of the targets after warm-up.")
    teacher: Literal["ema", "none"] | None = option(None, "none: no moving average, the student itself.")
    drop_path: float | None = option(None, "Stochastic depth of the student.")
    momentum: float | None = option(None, "Teacher momentum at the start; it rises to 1.")
    layer_decay: float | None = option(None, "Learning rate of a layer relative to the layer after it.")
    freeze_encoder: float | None = option(None, "Share of the run in which only the projector learns.")
    seed: int = option(0, "Seed of weights, order and views.")
    labels: bool = option(True, "Use labels, where there are any, for k-NN while training.")
    max_broken: float = option(0.1, "Share of unreadable images above which the run refuses.")
    evaluate_every: int | None = option(None, "Steps between evaluations.")
    checkpoint_every: int | None = option(None, "Steps between checkpoints.")
    keep: int | None = option(None, "Newest checkpoints that stay, beside the best.")
    precision: Literal["auto", "bfloat16", "float16", "float32"] = option("auto", "Arithmetic of the networks.")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps.")
    compile: bool = option(False, "Compile the encoder's blocks: a wait before step 1, then faster steps.")
    workers: int | None = option(None, "Processes that read images.")
    threads: int | None = option(None, "Threads of this process.")
