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

    method: Literal["simdino"] = option("simdino", "Objective.")
    encoder: str | None = option(
        None, "Encoder: vit_pico, vit_nano, vit_tiny, vit_small, vit_base, vit_large, or a model of timm."
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
    scope: Literal["global", "shards"] | None = option(None, "Batch whose rate counts: all of it, or shards of 64.")
    drop_path: float | None = option(None, "Stochastic depth of the student.")
    momentum: float | None = option(None, "Teacher momentum at the start; it rises to 1.")
    seed: int = option(0, "Seed of weights, order and views.")
    labels: bool = option(True, "Use labels, where there are any, for k-NN while training.")
    max_broken: float = option(0.1, "Share of unreadable images above which the run refuses.")
    evaluate_every: int | None = option(None, "Steps between evaluations.")
    checkpoint_every: int | None = option(None, "Steps between checkpoints.")
    precision: Literal["auto", "bfloat16", "float16", "float32"] = option("auto", "Arithmetic of the networks.")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps.")
    workers: int | None = option(None, "Processes that read images.")
    threads: int | None = option(None, "Threads of this process.")
