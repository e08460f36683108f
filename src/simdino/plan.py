"""Planning a run: what a person said and what the images are become a Config. Where speed or length depend on this
machine, a few steps are taken to time them, and a line says so."""

import os
import time
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from simdino import recipes
from simdino.assembly import build, check_memory
from simdino.config import Config
from simdino.contracts import InputError
from simdino.data.base import PYTHON, Splits, root_of
from simdino.data.sources import absolute, open_splits
from simdino.data.survey import DatasetStatistics, broken_images, measure_dataset
from simdino.defaults import KINDS, likely_kinds
from simdino.feedback import Log
from simdino.files import check_file
from simdino.marks import out_of_reach
from simdino.methods import METHODS
from simdino.models.catalogue import kind_of
from simdino.options import Options, setting_of, value_at
from simdino.runs.folder import check_free, check_outside
from simdino.settings import numbers
from simdino.show.pictures import write_views
from simdino.text import readable, show
from simdino.timing import Costs, Trial, fitting_trial, workers_may_help
from simdino.train.loop import Training
from simdino.train.parallel import processes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that is decided and has not begun, with what was opened and built to decide it."""

    config: Config
    data: Splits | None = None  # None: to be opened
    training: Training | None = None  # as before step 1; None: to be built
    costs: Costs | None = None  # what was measured of its time and memory; None: nothing


def plan(data: Any, options: Options, out: str | Path, *, log: Log = show) -> Plan:
    """Decide on a run in the folder `out`, and log what was decided. `minutes` and `flops` become steps here.

    data: a path, a name, a `Source`, a torch `Dataset`, or a pair of the last two."""
    check_free(Path(out))
    check_outside(Path(out), root_of(data))
    return decided(data, options, log=log)


def decided(data: Any, options: Options, *, measure: bool = False, log: Log = show) -> Plan:
    """Decide on a run as `plan` does, in whatever folder. measure: also what it costs; where its batch does not fit
    into the memory, in micro-batches."""
    began, given, data = time.perf_counter(), data, root_of(data)
    images = open_splits(given if data.startswith(PYTHON) else recipes.asked_data(data, options))
    statistics = recipes.statistics_of(images.train, absolute(data), options)
    config = recipes.resolve(data, options, statistics=statistics)
    if not measure:
        check_memory(config)
    training, costs = None, None
    for_workers = "speed.workers" not in options.values and workers_may_help(config.speed)
    for_length = options.words.minutes is not None or options.words.flops is not None
    purposes = ["for what the run costs"] * measure + ["for workers"] * for_workers
    purposes += ["for the length of the run"] * for_length
    if purposes:
        log(f"timing    a few steps on this machine, {' and '.join(purposes)}")
        with processes(config.speed.device) as among:
            trial = fitting_trial(config, among, images, log=log) if measure else Trial(config, among, images)
            if for_workers:
                trial.choose_workers()
            if for_length:
                options = with_steps(options, trial)
                config = recipes.resolve(data, options, statistics=statistics)
            config = replace(config, speed=trial.training.config.speed)
            costs = trial.costs(since=began) if measure else None
            training = trial.rewound()
    config = agreed(config)
    check_marks(config, images)
    found = () if statistics.contents is None else statistics.contents.lines()
    for line in (*recipes.describe(config), *found, *statistics.warnings(), *without_effect(options, config)):
        log(line)
    return Plan(config=config, data=images, training=training and replace(training, config=config), costs=costs)


def with_steps(options: Options, trial: Trial) -> Options:
    """Return what was asked for with the length as the steps that fit into it on this machine."""
    words = options.words
    if words.minutes is not None:
        steps, evaluations = trial.steps_in(words.minutes)
        every = options.get("run.evaluate_every", ceil(steps / evaluations))
        return options.but(minutes=None, steps=steps, evaluate_every=every)
    flops = trial.flops
    assert words.flops is not None
    if words.flops < flops:
        raise InputError(f"--flops {words.flops:g} is less than one step: that takes {flops:.3g} here")
    return options.but(flops=None, steps=min(int(words.flops / flops), 10**9))


def check_marks(config: Config, data: Splits) -> None:
    """Raise InputError for a mark (`--stop-below`) that can never end the run."""
    run, labelled = config.run, config.data.labels and data.labelled
    why = out_of_reach(run.stop_below, steps=run.steps, every=run.evaluate_every, labelled=labelled)
    if why is not None:
        raise InputError(why)


def agreed(config: Config) -> Config:
    """Return the first process's configuration on every process: what was measured differs between them."""
    with processes(config.speed.device) as among:
        return among.gather(config)[0]


def run_folder(data: str) -> Path:
    """Return where a run goes unless told otherwise: runs/NAME-OF-DATA."""
    return Path("runs") / (readable(Path(data.removeprefix(PYTHON)).resolve().name).split(".")[0] or "run")


def kind_line(found: DatasetStatistics, options: Options) -> list[str]:
    """Return a line that recommends kinds of images, where they seem to be of another than views are made for. Small
    ones have theirs by their row of the table."""
    likely = likely_kinds(channels=found.channels, deep=found.values is not None, short_side=found.short_side)
    if options.words.kind is not None or likely[0] in ("natural", "small"):
        return []
    told = " or ".join(f"--kind {name} ({KINDS[name].reason})" for name in likely)
    return [f"kind      these images may want {told}"]


def without_effect(options: Options, config: Config) -> list[str]:
    """Return a warning for each setting that was given and changes nothing in this run."""
    found = [line for path in options.values if (line := of_declaration(path, config)) is not None]
    found += [line for given_in_vain, line in of_numbers(options, config) if given_in_vain]
    if "masks" in METHODS[config.run.method].parts and not config.views.mask_share:
        found.append(
            f"--method {config.run.method} trains without masks here: {config.encoder.name} has no patches to hide, "
            f"and the part of the objective on patches is left out"
        )
    return [f"warning: {line}" for line in found]


def of_declaration(path: str, config: Config) -> str | None:
    """Return what the declaration of a setting tells: its encoder does not read it, or another setting rules it out."""
    one, encoder = setting_of(path), config.encoder.name
    declared = one.of(METHODS[config.run.method])
    group, _, name = path.partition(".")
    if group == "encoder" and name in kind_of(encoder).unread:
        return f"{one.name} has no effect with {encoder}: it has its own"
    if declared is None:
        return None
    if declared.metadata["part"] == "masks" and path != "views.mask_share" and not config.views.mask_share:
        return f"{one.name} has no effect with {encoder}: no patches are masked"
    if declared.metadata["only"] is None:
        return None
    other, allowed = declared.metadata["only"]
    value = value_at(config, other)
    if value in allowed if isinstance(allowed, tuple) else any(number in allowed for number in numbers(value)):
        return None
    needed = " or ".join(map(str, allowed)) if isinstance(allowed, tuple) else allowed
    return f"{one.name} has no effect with {setting_of(other).name} {value}: that must be {needed}"


def of_numbers(options: Options, config: Config) -> list[tuple[bool, str]]:
    """Return what only the numbers of a run tell: whether a setting is given in vain, and the line."""
    run, given, micro = config.run, options.values, config.speed.micro_batch
    own = run.batch // int(os.environ.get("WORLD_SIZE", "1"))  # images of this process
    return [
        (
            config.speed.compile and not kind_of(config.encoder.name).compiles,
            f"--compile has no effect with {config.encoder.name}: only blocks of ViTs and CRATEs are compiled",
        ),
        (
            "run.evaluate_every" in given and run.evaluate_every > run.steps,
            f"--evaluate-every has no effect: the run ends after {run.steps} steps, and is evaluated then",
        ),
        (
            "run.checkpoint_every" in given
            and (run.checkpoint_every % run.evaluate_every == 0 or run.checkpoint_every >= run.steps),
            f"--checkpoint-every has no effect: each evaluation (every {run.evaluate_every} steps) makes a checkpoint",
        ),
        (
            "run.guard" in given and run.init is None,
            "--guard has no effect without --init: the run has no given weights to fall below",
        ),
        (
            given.get("speed.parallel") == "fsdp" and own == run.batch,
            "--parallel fsdp has no effect: one process holds everything anyway; torchrun starts several",
        ),
        (micro is not None and micro >= own, f"--micro-batch has no effect: the batch of {own} is no larger"),
        (
            given.get("loss.scope") == "shards" and run.batch == getattr(config.loss, "shard_size", None),
            f"--scope shards has no effect: the batch of {run.batch} is one shard",
        ),
    ]


def inspect_data(
    data: str, options: Options | None = None, *, sheet: Path | None = None
) -> tuple[dict[str, Any], list[str]]:
    """What the images of `data` are and the run they would get: plain values, and lines for a person.

    options: which folders are splits and classes."""
    if sheet is not None:
        check_file(sheet, option="--sheet")
    options = options or Options()
    images = open_splits(recipes.asked_data(data, options))
    source, channels = recipes.scaled(images.train, options), options.get("data.channels")
    found = measure_dataset(source, limit=None, channels=channels)
    config = recipes.resolve(data, options, statistics=found)
    unreadable = broken_images(recipes.scaled(images.val, options), channels)
    result = {
        **asdict(found), "validation": len(images.val), "broken_validation": unreadable, "config": config.as_dict(),
    }  # fmt: skip
    lines = [
        f"{found.images} training images, {len(images.val)} held out, "
        f"{found.labels or 'no'} classes, {len(found.broken)} broken, {len(unreadable)} of the validation broken",
        f"{found.channels} channel{'s' * (found.channels > 1)}, short side {found.short_side} px, long side "
        f"{found.long_side} px (medians), smallest {found.smallest} px",
        *found.channel_lines(),
        *kind_line(found, options),
        *([] if found.contents is None else found.contents.lines()),
        *(f"  {name}: {count}" for name, count in found.class_counts.items()),
        *(f"  broken {name}: {reason}" for name, reason in (*found.broken.items(), *unreadable.items())),
        *recipes.describe(config),
        *found.warnings(),
    ]
    if sheet is not None:
        with processes(config.speed.device) as among:
            training = build(config, among, data=images)
            write_views(training.data.train, training.loader, sheet, option="--sheet")
        lines.append(f"views in {sheet}")
    return result, lines
