"""Assembly: Config -> objects -> loop -> run folder. The only module that sees all parts.

A run folder holds config.json, metrics.jsonl, speed.jsonl, tensorboard/, checkpoints/, pictures/, encoder.safetensors
(the last teacher), encoder-best.safetensors (the one of the best k-NN), broken.txt when images were, evaluations.jsonl
when something was scored, and report.html.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from simdino import recipes
from simdino.config import Config, SpeedConfig
from simdino.contracts import InputError, Objective, Preprocess
from simdino.data.base import Source
from simdino.data.loader import Batches, Loader
from simdino.data.sources import DataPath, absolute, open_dataset
from simdino.data.survey import broken_images, measure_dataset, survey_training_images
from simdino.defaults import EVALUATIONS
from simdino.evaluate.diagnostics.white_box import keep_layer_rates
from simdino.evaluate.monitor import Monitor
from simdino.files import check_file
from simdino.methods import METHODS, check_config, make_loss, make_student
from simdino.models.compiled import compile_blocks
from simdino.models.encoder import Encoder
from simdino.models.starting import starting_encoder
from simdino.models.weights import save_encoder
from simdino.options import Options
from simdino.precision import fastest, make_autocast, present_device
from simdino.runs.checkpoints import checkpoints, same_run, step_of
from simdino.runs.folder import (
    check_free,
    check_images,
    check_outside,
    claim,
    command_line,
    facts,
    is_finished,
    read_broken,
    reopen,
    sole,
    source_revision,
    write_broken,
    write_config,
    write_root,
)
from simdino.runs.metrics import Metrics
from simdino.runs.run import Run, finished
from simdino.saved import read_facts
from simdino.show.pictures import keep_pictures, write_views
from simdino.show.report import write_report
from simdino.text import readable, show
from simdino.train.checkpoint import load_checkpoint, save_checkpoint
from simdino.train.loop import Hooks, StepReport, run_steps
from simdino.train.memory import check_memory, keep_freed_memory
from simdino.train.parallel import Processes, own_device, processes
from simdino.train.probe import STEPS, chosen, finisher, pace, step_seconds
from simdino.train.state import State

FEW = 3  # cores on which workers would only take from the training
Progress = Callable[[StepReport], None]
Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The objects of a run on one process."""

    source: Source
    held_out: Source
    loader: Loader
    loss: Objective
    state: State
    monitor: Monitor


def pretrain(config: Config, out: str | Path, *, progress: Progress = lambda _: None, log: Log = show) -> Run:
    """Train a new run in the folder `out`. Under torchrun, every process calls this.

    progress: called after each logged step; log: called with lines for a person.
    Raises InputError for a folder that holds something else or data that does not fit, NotFinite when a loss does.
    """
    check_config(config)
    check_memory(config)
    folder = Path(out)
    with processes(config.speed.device) as among:
        if among.first:
            claim(folder)
        with sole(folder) if among.first else nullcontext():
            among.barrier()
            parts = build(config, among, log=log)
            if among.first:
                write_config(folder, config, command=command_line(), data=facts(parts.source, parts.held_out))
            return carry_out(config, folder, parts, among, progress=progress, log=log)


def resume(run: str | Path, data: str | None = None, *, progress: Progress = lambda _: None, log: Log = show) -> Run:
    """Continue a run from its newest checkpoint, exactly as if it had never stopped. A finished run stays as it is.

    data: where the run's images are now; where they were unless given. Raises InputError when the folder is no run,
    its newest checkpoint is damaged or of another configuration, or the images are not those it began with.
    """
    folder = Path(run)
    began = read_facts(folder)
    config = on_this_machine(began.config, log)
    if is_finished(folder, config):
        log(f"{folder} is finished: all {config.run.steps} steps are done")
        return finished(folder, config)
    if data is not None:
        config = replace(config, data=replace(config.data, root=absolute(data)))
    with processes(config.speed.device) as among, sole(folder) if among.first else nullcontext():
        among.barrier()
        saved = checkpoints(folder)
        for line in same_run(saved[-1], config) if saved else []:
            log(f"warning: {line}; the run goes on, but not bit for bit")
        parts = build(config, among, fresh=not saved, log=log)
        if among.first:
            now = facts(parts.source, parts.held_out)
            check_images(folder, config.data.root, began=began.data, now=now)
        if saved:
            load_checkpoint(saved[-1], parts.state, config)
        if among.first and data is not None:
            write_root(folder, config.data.root)
        log(f"resuming {folder} after step {parts.state.step} of {config.run.steps}")
        return carry_out(config, folder, parts, among, progress=progress, log=log)


def on_this_machine(config: Config, log: Log) -> Config:
    """A run's configuration with a device that is here: a run may go on where it did not start."""
    speed = config.speed
    try:
        present_device(speed.device)
    except InputError:
        device = present_device("auto")
        log(f"warning: this run was on {speed.device}, which is not here; it goes on on {device}, not bit for bit")
        precision = "float32" if speed.precision == "float32" else fastest(device)
        workers = recipes.workers_for(device)
        config = agreed(replace(config, speed=replace(speed, device=device, precision=precision, workers=workers)))
    return config


def build(config: Config, among: Processes, *, fresh: bool = True, log: Log = lambda _: None) -> Parts:
    """Everything a run needs, the same on every process. fresh: its weights come from no checkpoint of its own."""
    if config.speed.threads is not None:
        torch.set_num_threads(config.speed.threads)
    data, run, speed = config.data, config.run, config.speed
    device = own_device(speed.device)
    if device.type == "cpu":
        keep_freed_memory()
    source, held_out = (open_dataset(DataPath.of(data), split).with_bits(data.bits) for split in ("train", "val"))
    if len(source) != data.train_images:
        raise InputError(
            f"{data.root} has changed: {len(source)} training images, {data.train_images} when the run was planned"
        )
    side = config.views.global_size // config.encoder.patch_size
    batches = Batches(
        source, config.views, batch=run.batch, channels=data.channels, seed=run.seed, rank=among.rank,
        world=among.world, grid=(side, side),
    )  # fmt: skip
    loss = make_loss(config, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        encoder = starting_encoder(config, preprocessing(config), fresh=fresh)
        student = among.synchronised(make_student(config, encoder).to(device))
    state = State.create(student, optim=config.optim, memory=loss.memory, device=device, precision=speed.precision)
    if speed.compile:
        networks = [student.encoder, state.teacher.encoder]
        compile_blocks(networks, autocast=make_autocast(speed.device, speed.precision), log=log)
    return Parts(
        source=source,
        held_out=held_out,
        loader=Loader(
            batches, mean=data.mean, std=data.std, device=device, workers=speed.workers, ahead=speed.ahead
        ),
        loss=loss,
        state=state,
        monitor=Monitor(
            source, held_out, bank=run.knn_bank, queries=run.knn_queries, labels=data.labels,
            precision=speed.precision, workers=speed.workers,
        ),
    )  # fmt: skip


def preprocessing(config: Config) -> Preprocess:
    """Images as large as global crops; from 96 px on, cut from the centre of 256/224 of that, as DINO evaluates."""
    size, data = config.views.global_size, config.data
    resize = round(size * 256 / 224) if size >= 96 else size
    return Preprocess(resize=resize, crop=size, channels=data.channels, mean=data.mean, std=data.std, bits=data.bits)


def carry_out(config: Config, folder: Path, parts: Parts, among: Processes, *, progress: Progress, log: Log) -> Run:
    """Train from the state's step to the end and finish the run folder."""
    state = parts.state
    metrics = Metrics(folder, step=state.step) if among.first else None
    if metrics is not None:
        reopen(folder)
        if not metrics.rows:
            for line in METHODS[config.run.method].warnings(parts.loss):
                log(f"warning: {line}")
            write_views(parts.source, parts.loader, folder / "pictures" / "views.png")
            metrics.write({"step": 0, **parts.monitor(teacher_encoder(state))})
    broken = known_broken(parts.source, folder)
    state.model = among.wrap(state.student)
    hooks = Hooks(
        evaluate=lambda waiting: parts.monitor(teacher_encoder(state), waiting),
        save=lambda: save(config, folder, parts, metrics, broken),
        progress=progress,
    )
    interrupted = run_steps(
        state, parts.loader, parts.loss, config, processes=among, metrics=metrics, hooks=hooks, broken=broken
    )
    if metrics is not None:
        metrics.close()
        if interrupted is None and len(parts.held_out):
            try:
                keep_pictures(folder, teacher_encoder(state), parts.monitor)
                keep_layer_rates(folder, teacher_encoder(state), parts.held_out, root=config.data.root)
            except InputError as error:  # none of the held-out images can be read
                log(f"warning: no pictures of what the encoder sees: {error}")
        write_report([folder])
    among.barrier()
    return replace(finished(folder, config), interrupted=interrupted)


def save(config: Config, folder: Path, parts: Parts, metrics: Metrics | None, broken: dict[int, str]) -> None:
    """A checkpoint of the state, and the teacher's encoder as files of its own."""
    assert metrics is not None
    state, best = parts.state, metrics.best_step()
    write_broken(folder, {parts.source.names[i]: reason for i, reason in broken.items()})
    save_encoder(teacher_encoder(state), folder / "encoder.safetensors")
    if best == state.step:
        save_encoder(teacher_encoder(state), folder / "encoder-best.safetensors")
    last = [step for step in map(step_of, checkpoints(folder)) if step < state.step]
    keep = {*last[max(0, len(last) - config.run.keep + 1) :], best or 0}
    save_checkpoint(folder, state, config, revision=source_revision(), keep=keep)


def teacher_encoder(state: State) -> Encoder:
    """The encoder that a run is for."""
    assert isinstance(state.teacher.encoder, Encoder)
    return state.teacher.encoder


def known_broken(source: Source, folder: Path) -> dict[int, str]:
    """The unreadable images that the run met before it was stopped, by position."""
    reasons = read_broken(folder)
    return {i: reasons[name] for i, name in enumerate(source.names) if name in reasons} if reasons else {}


def plan(data: str, options: Options, out: str | Path, *, log: Log = show) -> Config:
    """The complete configuration of a run in the folder `out`, said before it starts. `minutes` become steps here."""
    check_free(Path(out))
    check_outside(Path(out), data)
    facts = survey_training_images(recipes.asked_data(data, options), max_broken=options.max_broken)
    config = recipes.resolve(data, options, facts=facts)
    check_memory(config)
    if options.workers is None and probing_pays(config.speed):
        config = replace(config, speed=speed_here(config))
    if options.minutes is not None:
        steps, evaluations = steps_in(options.minutes, config)
        every = options.evaluate_every or ceil(steps / evaluations)
        options = replace(options, minutes=None, steps=steps, evaluate_every=every)
        config = replace(recipes.resolve(data, options, facts=facts), speed=config.speed)
    config = agreed(config)
    found = () if facts.contents is None else facts.contents.lines()
    for line in (*recipes.describe(config), *found, *facts.warnings(), *recipes.without_effect(options, config)):
        log(line)
    return config


def agreed(config: Config) -> Config:
    """The first process's configuration, on all: precision and length are measured, and measurements differ."""
    with processes(config.speed.device) as among:
        return among.gather(config)[0]


def run_folder(data: str) -> Path:
    """Where a run goes unless told otherwise: runs/NAME-OF-DATA."""
    return Path("runs") / (readable(Path(data).resolve().name).split(".")[0] or "run")


def inspect_data(
    data: str, options: Options | None = None, *, sheet: Path | None = None
) -> tuple[dict[str, Any], list[str]]:
    """What the images of `data` are and the run they would get: plain values, and lines for a person.

    options: which folders are splits and classes."""
    if sheet is not None:
        check_file(sheet, option="--sheet")
    options = options or Options()
    source, held_out = (open_dataset(recipes.asked_data(data, options), split) for split in ("train", "val"))
    found = measure_dataset(source, limit=None)
    config = recipes.resolve(data, options, facts=found)
    unreadable = broken_images(held_out)
    result = {
        **asdict(found), "held_out": len(held_out), "broken_held_out": unreadable, "config": config.as_dict(),
    }  # fmt: skip
    lines = [
        f"{found.images} training images, {len(held_out)} held out, "
        f"{found.labels or 'no'} classes, {len(found.broken)} broken, {len(unreadable)} of the held-out broken",
        f"{found.channels} channel{'s' * (found.channels > 1)}, short side {found.short_side} px, long side "
        f"{found.long_side} px (medians), smallest {found.smallest} px",
        f"mean {' '.join(f'{x:.3f}' for x in found.mean)}, deviation {' '.join(f'{x:.3f}' for x in found.std)}",
        *([] if found.contents is None else found.contents.lines()),
        *(f"  {name}: {count}" for name, count in found.class_counts.items()),
        *(f"  broken {name}: {reason}" for name, reason in (*found.broken.items(), *unreadable.items())),
        *recipes.describe(config),
        *found.warnings(),
    ]
    if sheet is not None:
        with processes(config.speed.device) as among:
            parts = build(config, among)
            write_views(parts.source, parts.loader, sheet, option="--sheet")
        lines.append(f"views in {sheet}")
    return result, lines


def probing_pays(speed: SpeedConfig) -> bool:
    """Whether workers may help: beside a GPU, or where this process trains on several cores."""
    return torch.device(speed.device).type != "cpu" or (speed.threads or torch.get_num_threads()) > FEW


def speed_here(config: Config) -> SpeedConfig:
    """Workers that keep up with the steps of `config` on this machine, timed on parts that are thrown away."""
    with processes(config.speed.device) as among:
        parts = build(config, among)
        parts.state.model = among.wrap(parts.state.student)
        found = pace(parts.state, parts.loader, parts.loss, config, all_reduce=among.sum, wait=finisher(config.speed))
        gpu = torch.device(config.speed.device).type != "cpu"
        speed = chosen(found, config.speed, cores=recipes.own_cores() if gpu else torch.get_num_threads())
        return max(among.gather(speed), key=lambda one: one.workers)


def steps_in(minutes: float, config: Config) -> tuple[int, int]:
    """How many steps of `config` fit into `minutes` on this machine, and how many evaluations beside them.

    Trains a few steps on parts that are thrown away, and times them and one evaluation. Evaluations get a tenth of
    the time, but there are two at least (step 0 and the last), and eight after step 0 at most. Raises InputError where
    not one step fits.
    """
    started = time.perf_counter()
    with processes(config.speed.device) as among:
        parts = build(config, among)
        parts.state.model = among.wrap(parts.state.student)
        per_step = step_seconds(
            parts.state, parts.loader.steps(0, STEPS), parts.loss, config,
            all_reduce=among.sum, wait=finisher(config.speed),
        )  # fmt: skip
        before = time.perf_counter()
        if among.first:
            parts.monitor(teacher_encoder(parts.state))
        evaluation = time.perf_counter() - before
        budget = 60 * minutes - (time.perf_counter() - started)
        evaluations = max(1, min(EVALUATIONS, int(0.1 * budget / evaluation) - 1))
        steps = int((budget - (evaluations + 1) * evaluation) / per_step)
        steps, evaluations = min(among.gather((steps, evaluations)))
    if steps < 1:
        raise InputError(
            f"--minutes {minutes:g} is too short here: a step takes {per_step:.1f} s and each of {evaluations + 1} "
            f"evaluations {evaluation:.1f} s; give more minutes, or a smaller --image-size, --encoder or --batch"
        )
    return steps, evaluations


class _Module(ModuleType):  # importing this module makes `simdino.pretrain` mean it instead of its function
    __call__ = staticmethod(pretrain)


sys.modules[__name__].__class__ = _Module
