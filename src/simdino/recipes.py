"""The configuration of a run: what a person said (`Options`, mostly nothing) and what the images are decide it.

The table of defaults is in `defaults`; the recipes with a name are declared by the methods (`Method.recipes`).
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from simdino.config import (
    Config,
    DataConfig,
    EncoderConfig,
    OptimConfig,
    ProjectorConfig,
    RunConfig,
    SpeedConfig,
    ViewsConfig,
)
from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.data.sources import DataPath, absolute, located, open_dataset
from simdino.data.survey import DatasetStatistics, ranged, survey_training_images
from simdino.defaults import KINDS, Kind, Preset, by_square_root, intervals, row_for
from simdino.device import fastest, present_device
from simdino.methods import METHODS, check_config
from simdino.models.adapters import TIMM, timm_patch
from simdino.models.bag import BAG
from simdino.models.catalogue import kind_of, resolve_name
from simdino.models.encoder import Encoder
from simdino.models.official import IMAGENET
from simdino.models.weights import load_encoder
from simdino.options import Options, setting_of
from simdino.text import nearest
from simdino.trunk import trunk_end

SHAPES = {"vits16": "vit_small", "vitb16": "vit_base", "vitl16": "vit_large"}
"""The encoders of the published recipes, by their part of a recipe's name."""

LOCATED = ("data.train", "data.val", "data.class_depth", "encoder.name", "speed.device")
"""Settings that a person may give in short and a configuration holds in full."""


def auto(data: str, settings: Mapping[str, Any] | None = None, /, **words: Any) -> Config:
    """What `simdino pretrain DATA` takes: everything follows the images but what is given.

    Args:
        data: a folder, an archive, a list, or the name of a built-in set.
        settings: values by path or short word, such as {"views.jitter": 0.2}.
        words: the same by short words, such as batch=64 or minutes=30.
    """
    return resolve(data, Options(settings, **words))


def resolve(
    data: str, options: Options, *, statistics: DatasetStatistics | None = None, preset: Preset | None = None
) -> Config:
    """The complete configuration of a run. Raises one InputError that names everything wrong.

    statistics: what the images are, looked at unless given. preset: of a named recipe; else what the images ask for."""
    asked = asked_data(data, options)
    if statistics is None:
        statistics = statistics_of(open_dataset(asked, "train"), absolute(data), options)
    device = present_device(options.get("speed.device", "auto"))
    if preset is None:
        method = options.get("run.method", RunConfig.method)
        preset = preset_named(options.words.recipe) or preset_for(
            statistics.short_side, method, gpu=device.startswith("cuda"), fresh="run.init" not in options.values
        )
    preset = replace(preset, views=replace(preset.views, **kind_named(options.words.kind).views))
    check_method(options, preset)
    batch = options.get("run.batch", fitting_batch(preset.batch, statistics.images))
    if statistics.images < 2 and "run.batch" not in options.values:
        raise InputError(f"{data} has one training image: a batch has two at least, so give more images")
    init = options.get("run.init")
    start = None if init is None else start_of(init, options, channels=statistics.channels)
    views, encoder = sized(preset, options, start)
    if min(statistics.short_side, statistics.long_side) < encoder.patch_size:
        raise InputError(
            f"images of {statistics.short_side} x {statistics.long_side} px (median) in {data} are smaller than a "
            f"patch: give --patch-size {max(1, statistics.short_side // 2)} or less"
        )
    steps = count_steps(options, preset, images=statistics.images, batch=batch)
    config = Config(
        data=DataConfig(**asdict(asked), **normalisation(statistics, preset, start), train_images=statistics.images),
        views=views,
        encoder=encoder,
        projector=fitting(preset.projector, encoder),
        loss=preset.loss,
        optim=optim_config(preset, options, encoder=encoder.name, batch=batch, steps=steps),
        run=intervals(RunConfig(method=preset.method, steps=steps, batch=batch)),
        speed=SpeedConfig(
            precision=options.get("speed.precision") or fastest(device), device=device, workers=workers_for(device)
        ),
    )
    config = with_given(config, options)
    if not (config.projector.layers or config.projector.prototypes or "optim.freeze_encoder" in options.values):
        config = replace(config, optim=replace(config.optim, freeze_encoder=0.0))  # no head that could learn alone
    check_config(config)
    return config


def with_given(config: Config, options: Options) -> Config:
    """The configuration with what a person gave, but for what its encoder does not read."""
    unread = {f"encoder.{name}" for name in kind_of(config.encoder.name).unread}
    groups: dict[str, dict[str, Any]] = {}
    for path, value in options.values.items():
        group, dot, name = path.partition(".")
        if dot and path not in LOCATED and path not in unread:
            groups.setdefault(group, {})[name] = value
    return replace(config, **{group: replace(getattr(config, group), **values) for group, values in groups.items()})


def preset_for(short_side: float, method: str, *, gpu: bool, fresh: bool = True) -> Preset:
    """What images of this size ask for under a method: ours, not tuned to anything but small data (docs/log.md).
    fresh: begin with random weights; trained ones go on slowly, behind an average of themselves."""
    row = row_for(short_side, gpu=gpu)
    row = replace(row, quick=row.quick and fresh)
    base = Preset(
        method=method, views=row.views, encoder=row.encoder, projector=row.projector, loss=METHODS[method].settings(),
        batch=row.batch, lr=by_square_root(row.lr, at=256), epochs=row.epochs, follows_length=True,
    )  # fmt: skip
    return METHODS[method].ours(base, row)


def named_presets() -> dict[str, Callable[[], Preset]]:
    """The recipes with a name: METHOD_SHAPE has the paper's settings, METHOD_SHAPE_released those of its code."""
    return {
        f"{name}_{shape}{'' if source == 'paper' else f'_{source}'}": partial(make, encoder)
        for name, method in METHODS.items()
        for source, make in method.recipes.items()
        for shape, encoder in SHAPES.items()
    }


def list_recipes() -> list[str]:
    """The names that --recipe takes."""
    return ["auto", *named_presets()]


def preset_named(recipe: str | None) -> Preset | None:
    """The preset of a recipe's name such as simdino_vits16 or dinov2_vitl16_released; None for auto, the table that
    follows the images. Raises InputError for an unknown name."""
    if recipe is None or recipe == "auto":
        return None
    presets = named_presets()
    if recipe not in presets:
        raise InputError(f"unknown --recipe {recipe!r}: {', '.join(list_recipes())}{nearest(recipe, presets)}")
    return presets[recipe]()


def start_of(init: str, options: Options, *, channels: int) -> Encoder:
    """The encoder of --init, for the channels that a person gave; else its own, where images of so many channels can be
    brought to them, and otherwise those of the images."""
    positions = options.get("encoder.positions")
    start = load_encoder(init, positions=positions)
    colours = {channels, start.in_chans} <= {1, 3} and not start.config.name.startswith(BAG)
    wanted = options.get("data.channels", start.in_chans if colours else channels)
    return start if wanted == start.in_chans else load_encoder(init, positions=positions, channels=wanted)


def fitting(projector: ProjectorConfig, encoder: EncoderConfig) -> ProjectorConfig:
    """The projector, or none in place of one layer where the encoder itself ends in a linear layer."""
    ends = kind_of(encoder.name).projects and projector.layers == 1
    return replace(projector, layers=0) if ends else projector


def kind_named(kind: str | None) -> Kind:
    """The kind of images of a name. Raises InputError for an unknown one."""
    if kind is not None and kind not in KINDS:
        raise InputError(f"unknown --kind {kind!r}: {', '.join(KINDS)}{nearest(kind, KINDS)}")
    return KINDS[kind or "natural"]


def asked_data(data: str, options: Options) -> DataPath:
    """The data set with what a person said of its folders, in full."""
    said = {name: options.get(f"data.{name}") for name in ("train", "val", "class_depth")}
    return located(DataPath(root=data, **said))


def statistics_of(source: Source, root: str, options: Options) -> DatasetStatistics:
    """The statistics of the training images in `root`, with the channels and the scale that a person gave."""
    return survey_training_images(
        scaled(source, options), root, max_broken=accepted_broken(options), channels=options.get("data.channels")
    )


def scaled(source: Source, options: Options) -> Source:
    """The images with the scale that a person gave. Raises InputError for none."""
    values = options.get("data.values")
    if values is not None and not values[0] < values[1]:
        raise InputError(f"--values {values[0]:g},{values[1]:g} must be a lower and a higher number")
    return source.with_values(values)


def accepted_broken(options: Options) -> float:
    """The share of unreadable images that the run accepts."""
    return options.get("data.max_broken", DataConfig.max_broken)


def normalisation(statistics: DatasetStatistics, preset: Preset, start: Encoder | None) -> dict[str, Any]:
    """Channels, mean, std and scale: of what trained weights have seen, else of the recipe where images are grey or
    have colours, else of the images. The scale is that of the images where weights and recipe have none."""
    imagenet = preset.imagenet and statistics.channels in (1, 3)
    given = start.preprocess if start is not None else IMAGENET if imagenet else None
    if given is not None:
        return {
            "channels": given.channels, "mean": given.mean, "std": given.std,
            "values": given.values or statistics.values,
        }  # fmt: skip
    std = tuple(value if value > 1e-6 else 1.0 for value in statistics.std)  # a channel that is empty in every image
    return {"channels": statistics.channels, "mean": statistics.mean, "std": std, "values": statistics.values}


WARM = 50
"""Steps in which the learning rate rises to its peak. A run that has no time for them gets as much of the peak as it
has of them: what collapses is a steep rise (docs/log.md, robustness)."""


def optim_config(preset: Preset, options: Options, *, encoder: str, batch: int, steps: int) -> OptimConfig:
    """Learning rate and schedules, which for our own presets follow the length of the run.

    The rate rises for a tenth of the run, but for WARM steps where that is less than a third: random networks give all
    images nearly the same feature, and a high rate before the coding rate has spread them makes that a collapse
    (docs/log.md, warm-up). The teacher averages over a fortieth of the run, 10 to 250 steps. 250 are the paper's 0.996;
    in 400 steps that much leaves it a memory of the random initialisation (docs/log.md, teacher momentum).

    Under wsd, which leaves the length open, nothing follows it: the rate rises for WARM steps, and the teacher averages
    over 250."""
    muon = options.get("optim.optimizer", preset.optim.optimizer) == "muon"
    optim = replace(preset.optim, lr=preset.lr(batch) * (kind_of(encoder).muon_rate if muon else 1))
    stable = options.get("optim.schedule", optim.schedule) == "wsd"
    least = min(1.0, WARM / max(1, steps))
    if preset.follows_length:
        warmup = least if stable else max(0.1, min(1 / 3, least))
        momentum = 1 - 1 / (250 if stable else min(250, max(10, steps / 40)))
        lr = optim.lr * min(1.0, warmup * steps / WARM)
        optim = replace(optim, lr=lr, warmup=warmup, momentum=max(momentum, preset.least_momentum))
    if "run.init" in options.values:  # a trained encoder: slower, and first a new projector alone (docs/log.md)
        optim = replace(
            optim, lr=0.4 * optim.lr, layer_decay=min(optim.layer_decay, 0.9), momentum=max(optim.momentum, 0.95),
            freeze_encoder=min(0.5, least) if stable else 0.05,
        )  # fmt: skip
    last = options.words.teacher_temperature
    return optim if last is None else replace(optim, temperature=(min(optim.temperature[0], last), last))


def check_method(options: Options, preset: Preset) -> None:
    """Raise InputError where a recipe and a method contradict each other, or a setting is none of the method's."""
    method = options.get("run.method", preset.method)
    if method != preset.method:
        raise InputError(f"--method {method} contradicts --recipe {options.words.recipe}, which is {preset.method}")
    if options.words.teacher_temperature is not None and "optim.temperature" in options.values:
        raise InputError("optim.temperature is given twice: leave out --teacher-temperature")
    for one in map(setting_of, options.values):
        if one.of(METHODS[method]) is None:
            raise InputError(f"{one.name} has no meaning for --method {method}: leave it out")


def sized(preset: Preset, options: Options, start: Encoder | None) -> tuple[ViewsConfig, EncoderConfig]:
    """Views and encoder with the sizes a person gave; local crops keep their ratio to the global ones.

    start: the encoder of --init, whose kind and patches stay; its positions are brought to the new grid."""
    encoder = start_config(preset.encoder, start, options) if start else preset.encoder
    size = options.get("views.global_size", preset.encoder.image_size)
    name = resolve_name(options.get("encoder.name", encoder.name))
    kind, asked = kind_of(name), options.get("encoder.patch_size", encoder.patch_size)
    fits = start or name == encoder.name or "encoder.patch_size" in options.values
    patch = asked if fits else kind.patch_for(size, asked)
    unit = timm_patch(name) if name.startswith(TIMM) else patch  # sides of crops are multiples of it
    if "views.global_size" not in options.values and (start or unit != asked):
        size = max(unit, round(size / unit) * unit)
    encoder = kind.fitted(replace(encoder, name=name, image_size=size, patch_size=patch))
    local = preset.views.local_size
    if size != preset.encoder.image_size or unit != preset.encoder.patch_size:
        local = max(unit, round(size * local / preset.views.global_size / unit) * unit)
    views = replace(preset.views, global_size=size, local_size=local)
    return (views if encoder.mask_token else replace(views, mask_share=0.0)), encoder


def start_config(encoder: EncoderConfig, start: Encoder, options: Options) -> EncoderConfig:
    """The configuration of trained weights with the stochastic depth and the mask token of the method."""
    for path in ("encoder.name", "encoder.patch_embed"):
        if path in options.values:
            raise InputError(
                f"{setting_of(path).name} contradicts --init {options.get('run.init')}, which is {start.config.name}: "
                f"leave one out"
            )
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
    """The length of the run in steps; at most one of five ways to give it. With --minutes and --flops the plan replaces
    it."""
    named = [path for path in ("run.steps", "epochs", "minutes", "images", "flops") if path in options.values]
    if len(named) > 1:
        raise InputError(f"give one of {' and '.join(setting_of(path).name for path in named)}, not {len(named)}")
    if "run.steps" in options.values:
        return options.values["run.steps"]
    if (seen := options.words.images) is not None:
        if seen < batch:
            raise InputError(f"--images {seen} is less than one step: a batch has {batch} images")
        return seen // batch
    epochs = options.words.epochs
    if epochs is None and preset.steps is not None:
        return preset.steps
    return max(1, round((preset.epochs if epochs is None else epochs) * max(1, images // max(1, batch))))


def workers_for(device: str) -> int:
    """Processes that read images where their pace was not measured: none on a CPU, whose cores train; beside a GPU this
    process's share of the cores but one, 16 at most (a core decodes and crops some 500 photos a second,
    benchmarks/views.py)."""
    return 0 if device == "cpu" else max(1, min(16, own_cores() - 1))


def own_cores() -> int:
    """The cores of this machine, shared with the other processes that torchrun started on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def describe(config: Config) -> list[str]:
    """The resolved plan of a run, for a person."""
    data, views, encoder, run, speed = config.data, config.views, config.encoder, config.run, config.speed
    epochs = run.steps * run.batch / data.train_images
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    machines = f"{processes} x " if processes > 1 else ""
    alone = "" if config.optim.teacher == "ema" else ", no teacher of its own"
    compiled = speed.compile and kind_of(encoder.name).compiles
    told = {"compiled": compiled, "recomputed": speed.recompute, speed.parallel: processes > 1}
    arithmetic = ", ".join([speed.precision, *(word for word, so in told.items() if so)])
    micro = f" in micro-batches of {speed.micro_batch}" if speed.micro_batch else ""
    local = f" + {views.local_views} x {views.local_size} px" if views.local_views else ""
    depth = "" if data.values is None else f", values {ranged(data.values)} as black to white"
    colour = {1: "grey", 3: "colour"}.get(data.channels, f"{data.channels} channels") + depth
    end = trunk_end(config)
    cool = "" if end is None else f", stable until step {end}" + " and then cooled down" * (end < run.steps)
    peak = f"{config.optim.lr:.2g}{cool}"
    return [
        f"data      {data.root}: {data.train_images} training images, {colour}",
        f"views     {views.global_views} x {views.global_size} px{local} per image",
        f"encoder   {encoder.name}, patch {encoder.patch_size}, drop path {encoder.drop_path:g}",
        f"objective {run.method}, {METHODS[run.method].describe(config)}{alone}",
        f"length    {run.steps} steps of {run.batch} images{micro}, {epochs:.1f} epochs; peak lr {peak}",
        f"machine   {machines}{speed.device}, {arithmetic}, {speed.workers} workers, seed {run.seed}",
    ]
