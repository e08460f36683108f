"""Named runs, and the defaults that follow the images.

`resolve` turns what a person said (`Options`, mostly nothing) and what the images are (`Survey`) into a complete
Config. A named recipe is a function that returns one; its docstring says command, hardware, time and measured score.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from simdino.config import (
    Config,
    DataConfig,
    EncoderConfig,
    LossConfig,
    OptimConfig,
    ProjectorConfig,
    RunConfig,
    SpeedConfig,
    ViewsConfig,
    intervals,
)
from simdino.contracts import InputError
from simdino.data.sources import open_source
from simdino.data.survey import Survey, survey
from simdino.models.catalogue import resolve_name
from simdino.options import Options
from simdino.precision import fastest


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What images of a size ask for."""

    up_to: float  # median short side in pixels
    views: ViewsConfig
    encoder: EncoderConfig
    hidden: int  # of the projector
    batch: int
    lr: float  # at batch 256, scaled by the square root of the batch
    epochs: float


# Local crops of small images see empty background and cost k-NN points, and so do global crops that lose more than a
# fifth of the image (docs/log.md).
SMALL = ViewsConfig(local_views=0, global_scale=(0.8, 1.0), blur=(0.0, 0.0, 0.0), solarize=(0.0, 0.0, 0.0))

TABLE = (
    Defaults(
        up_to=16,
        views=replace(SMALL, global_size=8, local_size=4, flip=0.0),
        encoder=EncoderConfig(name="vit_pico", image_size=8, patch_size=2, drop_path=0.0),
        hidden=512, batch=64, lr=2e-3, epochs=100,
    ),
    Defaults(
        up_to=30,
        views=replace(SMALL, global_size=28, local_size=16),
        encoder=EncoderConfig(name="vit_pico", image_size=28, patch_size=4, drop_path=0.0),
        hidden=512, batch=64, lr=2e-3, epochs=30,
    ),
    Defaults(
        up_to=40,
        views=replace(SMALL, global_size=32, local_size=16, global_scale=(0.5, 1.0)),
        encoder=EncoderConfig(name="vit_nano", image_size=32, patch_size=4, drop_path=0.0),
        hidden=512, batch=64, lr=2e-3, epochs=100,
    ),
    Defaults(
        up_to=160,
        views=ViewsConfig(local_views=0, global_size=64, local_size=32, blur_sigma=(0.1, 0.6)),
        encoder=EncoderConfig(name="vit_nano", image_size=64, patch_size=8, drop_path=0.0),
        hidden=512, batch=64, lr=2e-3, epochs=100,
    ),
    Defaults(
        up_to=float("inf"),
        views=ViewsConfig(),
        encoder=EncoderConfig(name="vit_small", image_size=224, patch_size=16),
        hidden=2048, batch=256, lr=5e-4, epochs=100,
    ),
)  # fmt: skip


def defaults_for(short_side: float) -> Defaults:
    """The row of the table for images with this median short side in pixels."""
    return next(row for row in TABLE if short_side <= row.up_to)


def resolve(data: str, options: Options, *, facts: Survey | None = None) -> Config:
    """The complete configuration of a run. Raises one InputError that names everything wrong."""
    if facts is None:
        facts = survey_training_images(data, max_broken=options.max_broken)
    row = defaults_for(facts.short_side)
    views, encoder = sized(row, options)
    if min(facts.short_side, facts.long_side) < encoder.patch_size:
        raise InputError(
            f"images of {facts.short_side} x {facts.long_side} px (median) in {data} are smaller than a patch: give "
            f"--patch-size {max(1, facts.short_side // 2)} or less"
        )
    batch = fitting_batch(row.batch, facts.images) if options.batch is None else options.batch
    steps = count_steps(options, row, images=facts.images, batch=batch)
    config = Config(
        data=DataConfig(
            root=str(data), channels=facts.channels, mean=facts.mean, std=facts.std, train_images=facts.images,
            labels=options.labels, max_broken=options.max_broken,
        ),
        views=views,
        encoder=encoder,
        projector=ProjectorConfig(hidden=row.hidden),
        loss=given(
            LossConfig(), eps=options.eps, gamma=parse_gamma(options.gamma), rho=options.rho, scope=options.scope
        ),
        optim=given(
            OptimConfig(
                lr=row.lr * (max(1, batch) / 256) ** 0.5, warmup=warmup_for(steps), momentum=momentum_for(steps),
            ),
            lr=options.lr, momentum=options.momentum,
        ),
        run=given(
            intervals(RunConfig(steps=steps, batch=batch, seed=options.seed)),
            evaluate_every=options.evaluate_every, checkpoint_every=options.checkpoint_every,
        ),
        speed=speed_config(options),
    )  # fmt: skip
    config.check()
    return config


def survey_training_images(data: str, *, max_broken: float) -> Survey:
    """What the training images are like. Raises InputError when none of those tried can be read, or when all were
    tried and a larger share than `max_broken` cannot; of larger data the run itself finds out."""
    facts = survey(open_source(data, "train"))
    if facts.read == facts.images and len(facts.broken) > max_broken * facts.images:
        name, reason = next(iter(facts.broken.items()))
        raise InputError(
            f"{len(facts.broken)} of the {facts.images} training images in {data} cannot be read, more than the share "
            f"--max-broken {max_broken} (first {name}: {reason}); `simdino inspect {data}` lists them"
        )
    return facts


def given(config: Any, **values: Any) -> Any:
    """The config with the values that are not None."""
    return replace(config, **{name: value for name, value in values.items() if value is not None})


def sized(row: Defaults, options: Options) -> tuple[ViewsConfig, EncoderConfig]:
    """Views and encoder with the sizes a person gave; local crops keep their ratio to the global ones."""
    encoder = row.encoder
    patch = encoder.patch_size if options.patch_size is None else options.patch_size
    size = encoder.image_size if options.image_size is None else options.image_size
    name = resolve_name(encoder.name if options.encoder is None else options.encoder)
    if patch < 1 or size < 1:
        raise InputError(f"--patch-size {patch} and --image-size {size} must be 1 or more")
    local = row.views.local_size
    if size != encoder.image_size or patch != encoder.patch_size:
        local = max(patch, round(size * local / row.views.global_size / patch) * patch)
    views = given(replace(row.views, global_size=size, local_size=local), local_views=options.local_views)
    encoder = replace(encoder, name=name, image_size=size, patch_size=patch)
    return views, given(encoder, drop_path=options.drop_path)


def fitting_batch(batch: int, images: int) -> int:
    """The table's batch, or for a small data set the largest power of two in half of its images."""
    while batch > 2 and batch > images // 2:
        batch //= 2
    return batch


def count_steps(options: Options, row: Defaults, *, images: int, batch: int) -> int:
    """The length of the run in steps; at most one of three ways to give it. With --minutes the probe replaces it."""
    named = [name for name in ("steps", "epochs", "minutes") if getattr(options, name) is not None]
    if len(named) > 1:
        raise InputError(f"give one of --{' and --'.join(named)}, not {len(named)}")
    for name in ("epochs", "minutes"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name} {value} must be above 0")
    if options.steps is not None:
        return options.steps
    per_pass = max(1, images // max(1, batch))
    return max(1, round((options.epochs if options.epochs is not None else row.epochs) * per_pass))


def warmup_for(steps: int) -> float:
    """The share of the run in which the learning rate rises: a tenth, but 50 steps where that is less than a third.

    Random networks give all images nearly the same feature; a high rate before the coding rate has spread them makes
    that a collapse (docs/log.md, warm-up)."""
    return max(0.1, min(1 / 3, 50 / max(1, steps)))


def momentum_for(steps: int) -> float:
    """The teacher's momentum at the start: it averages over the last twentieth of the run, 20 to 250 steps.

    250 steps are the paper's 0.996. In a run of 400 steps that much momentum leaves the teacher a memory of the
    random initialisation (docs/log.md, teacher momentum)."""
    return 1 - 1 / min(250, max(20, steps / 20))


def parse_gamma(text: str | None) -> Any:
    """A rule's name or a number."""
    if text is None or text in ("balanced", "theorem", "released"):
        return text
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--gamma {text!r} is neither balanced, theorem, released nor a number") from None


def speed_config(options: Options) -> SpeedConfig:
    """Device, arithmetic, workers and threads for this machine."""
    device = present_device(options.device)
    precision = fastest(device) if options.precision == "auto" else options.precision
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = options.workers
    if workers is None:
        workers = 0 if device == "cpu" else min(8, cores)
    return SpeedConfig(
        micro_batch=options.micro_batch, precision=precision, device=device, workers=workers, threads=options.threads
    )


def present_device(name: str) -> str:
    """The device by that name, or for "auto" the best one. Raises InputError when this machine has none such."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise InputError(f"--device {name!r} is none of auto, cpu, cuda, cuda:1, mps") from None
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(kind, False):
        raise InputError(f"--device {name}: this machine has none that torch can use; give --device cpu or auto")
    return name


def without_effect(options: Options, config: Config) -> list[str]:
    """A line for each word a person gave that changes nothing in this run."""
    run, micro = config.run, config.speed.micro_batch
    cases = (
        (
            options.rho is not None and config.loss.gamma != "balanced",
            f"--rho has no effect with --gamma {config.loss.gamma}: it is the ratio that --gamma balanced aims at",
        ),
        (
            options.checkpoint_every is not None and run.checkpoint_every % run.evaluate_every == 0,
            f"--checkpoint-every has no effect: each evaluation (every {run.evaluate_every} steps) makes a checkpoint",
        ),
        (
            micro is not None and micro >= run.batch,
            f"--micro-batch has no effect: the batch of {run.batch} is no larger",
        ),
        (
            options.scope == "shards" and run.batch == config.loss.shard_size,
            f"--scope shards has no effect: the batch of {run.batch} is one shard",
        ),
    )
    return [f"warning: {text}" for given_in_vain, text in cases if given_in_vain]


def describe(config: Config) -> list[str]:
    """The resolved plan of a run, for a person."""
    data, views, encoder, loss, run, speed = (
        config.data, config.views, config.encoder, config.loss, config.run, config.speed,
    )  # fmt: skip
    passes = run.steps * run.batch / data.train_images
    weight = f"{loss.gamma}, rho {loss.rho:g}" if loss.gamma == "balanced" else f"{loss.gamma}"
    micro = f" in micro-batches of {speed.micro_batch}" if speed.micro_batch else ""
    local = f" + {views.local_views} x {views.local_size} px" if views.local_views else ""
    return [
        f"data      {data.root}: {data.train_images} training images, {'grey' if data.channels == 1 else 'colour'}",
        f"views     {views.global_views} x {views.global_size} px{local} per image",
        f"encoder   {encoder.name}, patch {encoder.patch_size}, drop path {encoder.drop_path:g}",
        f"objective {run.method}, eps^2 {loss.eps**2:.3g}, gamma {weight}, scope {loss.scope}",
        f"length    {run.steps} steps of {run.batch} images{micro}, {passes:.1f} passes; peak lr {config.optim.lr:.2g}",
        f"machine   {speed.device}, {speed.precision}, {speed.workers} workers, seed {run.seed}",
    ]


def _named(data: str, encoder: str, image_size: int, patch_size: int, words: dict[str, Any]) -> Config:
    return resolve(data, Options(**{"encoder": encoder, "image_size": image_size, "patch_size": patch_size, **words}))


def small(data: str, **words: Any) -> Config:
    """What `simdino pretrain DATA` takes: everything follows the images. `words` are the fields of Options."""
    return resolve(data, Options(**words))


def simdino_vits16(data: str, **words: Any) -> Config:
    """ViT-S/16 at 224 px, two global and ten local views. One GPU or more; on a laptop only to try.

    simdino pretrain DATA --encoder vit_small --image-size 224 --patch-size 16
    """
    return _named(data, "vit_small", 224, 16, words)


def simdino_vitb16(data: str, **words: Any) -> Config:
    """ViT-B/16 at 224 px, the encoder of the paper's main table.

    torchrun --nproc-per-node=8 -m simdino pretrain DATA --encoder vit_base --image-size 224 --patch-size 16
    """
    return _named(data, "vit_base", 224, 16, words)
