"""The memory of a training step: how much it needs at least, and how the C library treats freed memory."""

from __future__ import annotations

import ctypes
import os
import sys

from simdino.config import Config
from simdino.memory import refuse_beyond_memory
from simdino.models.catalogue import kind_of

TRIM, TOP_PAD, MMAP = -1, -2, -3  # mallopt's numbers, malloc.h


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step instead of returning it to the system, which clears it page by
    page before every use: this saves 5 to 10 % of a step on a CPU (docs/log.md, memory that is given back). Other C
    libraries are left as they are."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP, 32 * 2**20)  # the largest that glibc takes
        mallopt(TRIM, 2**31 - 1)
        mallopt(TOP_PAD, 64 * 2**20)


def check_memory(config: Config) -> None:
    """Raise InputError where one step of this process cannot fit in the memory of its device."""
    views, speed = config.views, config.speed
    words = f"--batch {config.run.batch}, --image-size {views.global_size}, --local-views {views.local_views}"
    if config.projector.prototypes:
        words += f", --prototypes {config.projector.prototypes}"
    refuse_beyond_memory(step_bytes(config), device=speed.device, words=words, instead="give less, or a --micro-batch")


def step_bytes(config: Config) -> dict[str, float]:
    """Return the bytes that a step needs at least, by what needs them: views as uint8 and float32; the student's
    activations kept for the gradient (four numbers of the embedding width a token, where blocks keep some fourteen; on
    a CPU also attention, except in the last block); and student, teacher, gradient and AdamW's two moments. For timm's
    encoders only the views are counted."""
    views, encoder, heads, speed = config.views, config.encoder, config.projector, config.speed
    images = config.run.batch // int(os.environ.get("WORLD_SIZE", "1"))
    kinds = ((views.global_views, views.global_size), (views.local_views, views.local_size))
    pixels = images * config.data.channels * sum(count * size**2 for count, size in kinds)
    kind = kind_of(encoder.name)
    shape = kind.complete(encoder)
    width, depth, attention = shape.embed_dim or 0, shape.depth or 0, shape.num_heads or 0
    at_once, number = min(images, speed.micro_batch or images), 4 if speed.precision == "float32" else 2
    grids = [(at_once * count, (size // encoder.patch_size) ** 2) for count, size in kinds]
    kept = 4.0 * depth * width * sum(images * tokens for images, tokens in grids)
    if speed.device == "cpu":
        kept += (depth - 1) * attention * sum(images * tokens**2 for images, tokens in grids)
    parameters = depth * kind.block_size * width**2 + width * (encoder.image_size // encoder.patch_size) ** 2
    parameters += heads.hidden_dim * (width + heads.hidden_dim + heads.out_dim) + heads.out_dim * heads.prototypes
    return {"views": 5.0 * pixels, "activations": number * kept, "weights": 20.0 * parameters}
