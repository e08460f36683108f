"""Named runs, and the defaults that follow the images.

`resolve` turns what a person said (`Options`, mostly nothing) and what the images are (`Survey`) into a complete
Config. The recipes with a name are declared by the methods (`Method.recipes`).
"""

from __future__ import annotations

import os
from dataclasses import asdict, fields, replace
from difflib import get_close_matches
from typing import Any

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
)
from simdino.contracts import InputError
from simdino.data.sources import DataPath, absolute, located, open_dataset
from simdino.data.survey import DatasetStatistics, survey_training_images
from simdino.defaults import Preset, by_square_root, intervals, row_for
from simdino.methods import METHODS, check_config
from simdino.methods.published import SHAPES
from simdino.models.adapters import TIMM, timm_patch
from simdino.models.catalogue import kind_of, resolve_name
from simdino.models.crate import CRATES
from simdino.models.encoder import Encoder
from simdino.models.official import IMAGENET
from simdino.models.weights import load_encoder
from simdino.options import Options
from simdino.precision import fastest, present_device


def resolve(
    data: str, options: Options, *, facts: DatasetStatistics | None = None, preset: Preset | None = None
) -> Config:
    """The complete configuration of a run. Raises one InputError that names everything wrong.

    facts: what the images are, looked at unless given. preset: of a named recipe; else what the images ask for."""
    asked = asked_data(data, options)
    if facts is None:
        facts = survey_training_images(open_dataset(asked, "train"), absolute(data), max_broken=options.max_broken)
    if preset is None:
        gpu = present_device(options.device).startswith("cuda")
        preset = preset_named(options.recipe) or preset_for(facts.short_side, options.method or "simdino", gpu=gpu)
    check_method(options, preset)
    if facts.images < 2 and options.batch is None:
        raise InputError(f"{data} has one training image: a batch has two at least, so give more images")
    start = None if options.init is None else load_encoder(options.init, positions=options.positions)
    views, encoder = sized(preset, options, start)
    if min(facts.short_side, facts.long_side) < encoder.patch_size:
        raise InputError(
            f"images of {facts.short_side} x {facts.long_side} px (median) in {data} are smaller than a patch: give "
            f"--patch-size {max(1, facts.short_side // 2)} or less"
        )
    batch = fitting_batch(preset.batch, facts.images) if options.batch is None else options.batch
    steps = count_steps(options, preset, images=facts.images, batch=batch)
    config = Config(
        data=DataConfig(
            **asdict(asked), **normalisation(facts, preset, start), train_images=facts.images, labels=options.labels,
            max_broken=options.max_broken,
        ),
        views=views,
        encoder=encoder,
        projector=given(preset.projector, prototypes=options.prototypes),
        loss=loss_config(preset, options),
        optim=optim_config(preset, options, batch=batch, steps=steps),
        run=given(
            intervals(RunConfig(method=preset.method, steps=steps, batch=batch, seed=options.seed)),
            evaluate_every=options.evaluate_every, checkpoint_every=options.checkpoint_every,
            keep=options.keep, init=options.init,
        ),
        speed=speed_config(options),
    )  # fmt: skip
    check_config(config)
    return config


def preset_for(short_side: float, method: str, *, gpu: bool) -> Preset:
    """What images of this size ask for under a method: ours, not tuned to anything but small data (docs/log.md)."""
    row = row_for(short_side, gpu=gpu)
    base = Preset(
        method=method, views=row.views, encoder=row.encoder, projector=ProjectorConfig(hidden=row.hidden),
        loss=METHODS[method].settings(), batch=row.batch, lr=by_square_root(row.lr, at=256), epochs=row.epochs,
        follows_length=True,
    )  # fmt: skip
    return METHODS[method].ours(base, row)


def list_recipes() -> list[str]:
    """The recipes with a name: METHOD_SHAPE has the paper's settings, METHOD_SHAPE_released those of its code."""
    return [
        f"{name}_{shape}{'' if source == 'paper' else f'_{source}'}"
        for name, method in METHODS.items()
        for source in method.recipes
        for shape in SHAPES
    ]


def preset_named(recipe: str | None) -> Preset | None:
    """The preset of a recipe's name such as simdino_vits16 or dinov2_vitl16_released; None for the table that follows
    the images. Raises InputError for an unknown name."""
    if recipe is None or recipe == "auto":
        return None
    if recipe not in list_recipes():
        close = get_close_matches(recipe, list_recipes(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"unknown --recipe {recipe!r}: auto, {', '.join(list_recipes())}{hint}")
    method, shape, *source = recipe.split("_")
    return METHODS[method].recipes["".join(source) or "paper"](SHAPES[shape])


def asked_data(data: str, options: Options) -> DataPath:
    """The data set with what a person said of its folders, in full."""
    return located(DataPath(root=data, train=options.train, val=options.val, class_depth=options.class_depth))


def normalisation(facts: DatasetStatistics, preset: Preset, start: Encoder | None) -> dict[str, Any]:
    """Channels, mean, deviation and depth: of what trained weights have seen, else of the recipe, else of the images.
    The depth is that of the images where weights and recipe have none."""
    given = start.preprocess if start is not None else IMAGENET if preset.imagenet else None
    if given is not None:
        return {
            "channels": given.channels, "mean": given.mean, "std": given.std, "bits": given.bits or facts.bits,
        }  # fmt: skip
    std = tuple(value if value > 1e-6 else 1.0 for value in facts.std)  # a channel that is empty in every image
    return {"channels": facts.channels, "mean": facts.mean, "std": std, "bits": facts.bits}


def loss_config(preset: Preset, options: Options) -> LossConfig:
    """The objective with what a person said of it; words of other methods are refused."""
    loss = {
        "eps": options.eps, "gamma": parse_gamma(options.gamma), "rho": options.rho, "lift": options.lift,
        "scope": options.scope, "patch_rate": options.patch_rate, "centering": options.centering,
    }  # fmt: skip
    method, own = METHODS[preset.method], {field.name: field for field in fields(preset.loss)}
    parts = {name: own[name].metadata["part"] if name in own else "none" for name in loss}
    heads = {"prototypes": options.prototypes, "teacher_temperature": options.teacher_temperature}
    for name, value in {**loss, **heads}.items():
        if value is not None and parts.get(name, "prototypes") not in {None, *method.parts}:
            raise InputError(f"--{name.replace('_', '-')} has no meaning for --method {preset.method}: leave it out")
    return given(preset.loss, **loss)


def optim_config(preset: Preset, options: Options, *, batch: int, steps: int) -> OptimConfig:
    """Learning rate and schedules, which for our own presets follow the length of the run."""
    optim = replace(preset.optim, lr=preset.lr(batch))
    if preset.follows_length:
        warmup = warmup_for(steps)
        optim = replace(
            optim, lr=optim.lr * min(1.0, warmup * steps / WARM), warmup=warmup,
            momentum=max(momentum_for(steps), preset.least_momentum),
        )  # fmt: skip
    if options.init is not None:
        optim = continued(optim)
    if options.teacher_temperature is not None:
        first = min(optim.temperature[0], options.teacher_temperature)
        optim = replace(optim, temperature=(first, options.teacher_temperature))
    return given(
        optim, lr=options.lr, momentum=options.momentum, teacher=options.teacher, layer_decay=options.layer_decay,
        freeze_encoder=options.freeze_encoder,
    )  # fmt: skip


def continued(optim: OptimConfig) -> OptimConfig:
    """From trained weights: less than half of the learning rate, less in lower layers, and a teacher that moves slowly;
    first a twentieth of the run in which only the new projector learns (docs/log.md, continued pretraining)."""
    return replace(
        optim, lr=0.4 * optim.lr, layer_decay=min(optim.layer_decay, 0.9), momentum=max(optim.momentum, 0.95),
        freeze_encoder=0.05,
    )  # fmt: skip


def check_method(options: Options, preset: Preset) -> None:
    """Raise InputError where a recipe and a method contradict each other."""
    if options.method is not None and options.method != preset.method:
        raise InputError(f"--method {options.method} contradicts --recipe {options.recipe}, which is {preset.method}")


def given(config: Any, **values: Any) -> Any:
    """The config with the values that are not None."""
    return replace(config, **{name: value for name, value in values.items() if value is not None})


def sized(preset: Preset, options: Options, start: Encoder | None) -> tuple[ViewsConfig, EncoderConfig]:
    """Views and encoder with the sizes a person gave; local crops keep their ratio to the global ones.

    start: the encoder of --init, whose kind and patches stay; its positions are brought to the new grid."""
    encoder = start_config(preset.encoder, start, options) if start else preset.encoder
    patch = encoder.patch_size if options.patch_size is None else options.patch_size
    size = preset.encoder.image_size if options.image_size is None else options.image_size
    name = resolve_name(options.encoder) if options.encoder else encoder.name
    unit = timm_patch(name) if name.startswith(TIMM) else patch  # sides of crops are multiples of it
    if options.image_size is None and (start or unit != patch):
        size = max(unit, round(size / unit) * unit)
    encoder = given(encoder, drop_path=options.drop_path, stem=options.stem, positions=options.positions)
    encoder = kind_of(name).fitted(replace(encoder, name=name, image_size=size, patch_size=patch))
    local = preset.views.local_size
    if size != preset.encoder.image_size or unit != preset.encoder.patch_size:
        local = max(unit, round(size * local / preset.views.global_size / unit) * unit)
    views = given(replace(preset.views, global_size=size, local_size=local), local_views=options.local_views)
    return (views if encoder.mask_token else replace(views, mask_share=0.0)), encoder


def start_config(encoder: EncoderConfig, start: Encoder, options: Options) -> EncoderConfig:
    """The configuration of trained weights with the stochastic depth and the mask token of the method."""
    if options.encoder is not None or options.stem is not None:
        word = "encoder" if options.encoder is not None else "stem"
        raise InputError(f"--{word} contradicts --init {options.init}, which is {start.config.name}: leave one out")
    return replace(
        start.config, drop_path=encoder.drop_path, drop_path_rule=encoder.drop_path_rule,
        mask_token=encoder.mask_token or start.config.mask_token,
    )  # fmt: skip


def fitting_batch(batch: int, images: int) -> int:
    """The table's batch, or for a small data set the largest power of two in half of its images."""
    while batch > 2 and batch > images // 2:
        batch //= 2
    return batch


def count_steps(options: Options, preset: Preset, *, images: int, batch: int) -> int:
    """The length of the run in steps; at most one of three ways to give it. With --minutes the probe replaces it."""
    named = [name for name in ("steps", "epochs", "minutes") if getattr(options, name) is not None]
    if len(named) > 1:
        raise InputError(f"give one of --{' and --'.join(named)}, not {len(named)}")
    if options.steps is not None:
        return options.steps
    if options.epochs is None and preset.steps is not None:
        return preset.steps
    per_pass = max(1, images // max(1, batch))
    return max(1, round((preset.epochs if options.epochs is None else options.epochs) * per_pass))


WARM = 50
"""Steps in which the learning rate rises to its peak. A run that has no time for them gets as much of the peak as it
has of them: what collapses is a steep rise (docs/log.md, robustness)."""


def warmup_for(steps: int) -> float:
    """The share of the run in which the learning rate rises: a tenth, but WARM steps where that is less than a third.

    Random networks give all images nearly the same feature; a high rate before the coding rate has spread them makes
    that a collapse (docs/log.md, warm-up)."""
    return max(0.1, min(1 / 3, WARM / max(1, steps)))


def momentum_for(steps: int) -> float:
    """The teacher's momentum at the start: it averages over a fortieth of the run, 10 to 250 steps.

    250 steps are the paper's 0.996. In a run of 400 steps that much momentum leaves the teacher a memory of the
    random initialisation (docs/log.md, teacher momentum)."""
    return 1 - 1 / min(250, max(10, steps / 40))


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
    workers = workers_for(device) if options.workers is None else options.workers
    return SpeedConfig(
        micro_batch=options.micro_batch,
        precision=precision,
        compile=options.compile,
        device=device,
        workers=workers,
        threads=options.threads,
    )


def workers_for(device: str) -> int:
    """Processes that read images where their pace was not measured: none on a CPU, whose cores train; beside a GPU this
    process's share of the cores but one, 16 at most (a core decodes and crops some 500 photos a second,
    benchmarks/views.py)."""
    return 0 if device == "cpu" else max(1, min(16, own_cores() - 1))


def own_cores() -> int:
    """The cores of this machine, shared with the other processes that torchrun started on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def without_effect(options: Options, config: Config) -> list[str]:
    """A line for each word a person gave that changes nothing in this run."""
    run, micro, loss, name = config.run, config.speed.micro_batch, config.loss, config.encoder.name
    own = run.batch // int(os.environ.get("WORLD_SIZE", "1"))  # images of this process
    words = {"patch-size": options.patch_size, "drop-path": options.drop_path, "stem": options.stem}
    words |= {"positions": options.positions}
    cases = (
        *(
            (name.startswith(TIMM) and word is not None, f"--{option} has no effect with {name}: it has its own")
            for option, word in words.items()
        ),
        (
            options.compile and name.startswith(TIMM),
            f"--compile has no effect with {name}: only blocks of our own encoders are compiled",
        ),
        (
            name in CRATES and options.stem is not None,
            f"--stem {options.stem} has no effect with {name}: its own stem is dual_norm",
        ),
        (
            options.momentum is not None and config.optim.teacher == "none",
            "--momentum has no effect with --teacher none: there is no moving average",
        ),
        (
            options.rho is not None and getattr(loss, "gamma", None) != "balanced",
            f"--rho has no effect with --gamma {options.gamma}: it is the ratio that --gamma balanced aims at",
        ),
        (
            options.lift is not None and getattr(loss, "gamma", None) != "balanced",
            f"--lift has no effect with --gamma {options.gamma}: it is part of --gamma balanced",
        ),
        (
            "masks" in METHODS[run.method].parts and not config.views.mask_share,
            f"--method {run.method} trains without masks here: {config.encoder.name} has no patches to hide, and the "
            f"part of the objective on patches is left out",
        ),
        (
            options.patch_rate is not None and not config.views.mask_share,
            f"--patch-rate has no effect with {name}: it has no patches to hide",
        ),
        (
            options.evaluate_every is not None and run.evaluate_every > run.steps,
            f"--evaluate-every has no effect: the run ends after {run.steps} steps, and is evaluated then",
        ),
        (
            options.checkpoint_every is not None
            and (run.checkpoint_every % run.evaluate_every == 0 or run.checkpoint_every >= run.steps),
            f"--checkpoint-every has no effect: each evaluation (every {run.evaluate_every} steps) makes a checkpoint",
        ),
        (
            micro is not None and micro >= own,
            f"--micro-batch has no effect: the batch of {own} is no larger",
        ),
        (
            options.scope == "shards" and run.batch == getattr(loss, "shard_size", None),
            f"--scope shards has no effect: the batch of {run.batch} is one shard",
        ),
    )
    return [f"warning: {text}" for given_in_vain, text in cases if given_in_vain]


def describe(config: Config) -> list[str]:
    """The resolved plan of a run, for a person."""
    data, views, encoder, run, speed = config.data, config.views, config.encoder, config.run, config.speed
    passes = run.steps * run.batch / data.train_images
    alone = "" if config.optim.teacher == "ema" else ", no teacher of its own"
    compiled = speed.compile and not encoder.name.startswith(TIMM)
    arithmetic = f"{speed.precision}, compiled" if compiled else speed.precision
    micro = f" in micro-batches of {speed.micro_batch}" if speed.micro_batch else ""
    local = f" + {views.local_views} x {views.local_size} px" if views.local_views else ""
    depth = "" if data.bits is None else f", values up to {2**data.bits - 1:,} ({data.bits} bits) as 0 to 255"
    colour = ("grey" if data.channels == 1 else "colour") + depth
    return [
        f"data      {data.root}: {data.train_images} training images, {colour}",
        f"views     {views.global_views} x {views.global_size} px{local} per image",
        f"encoder   {encoder.name}, patch {encoder.patch_size}, drop path {encoder.drop_path:g}",
        f"objective {run.method}, {METHODS[run.method].describe(config)}{alone}",
        f"length    {run.steps} steps of {run.batch} images{micro}, {passes:.1f} passes; peak lr {config.optim.lr:.2g}",
        f"machine   {speed.device}, {arithmetic}, {speed.workers} workers, seed {run.seed}",
    ]


def auto(data: str, **words: Any) -> Config:
    """What `simdino pretrain DATA` takes: everything follows the images. `words` are the fields of Options."""
    return resolve(data, Options.of(words))
