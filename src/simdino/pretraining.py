"""Pretraining: a Config is carried out in a run folder. The only module that sees all parts.

A run folder holds config.json, metrics.jsonl, speed.jsonl, tensorboard/, checkpoints/, pictures/, encoder.safetensors
(the last teacher), encoder-best.safetensors (the one of the best k-NN; with --init it may be the given weights),
broken.txt when images were, evaluations.jsonl when something was scored, and report.html.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from simdino import recipes
from simdino.assembly import build, check_memory
from simdino.config import Config
from simdino.contracts import InputError
from simdino.data.base import is_python, root_of
from simdino.data.sources import absolute, open_splits
from simdino.data.workers import Waiting, patient
from simdino.device import fastest, present_device
from simdino.evaluate.baselines import random_twin
from simdino.evaluate.diagnostics.white_box import keep_layer_rates
from simdino.feedback import Log
from simdino.methods import METHODS, check_config
from simdino.models.catalogue import register_module
from simdino.models.encoder import Encoder
from simdino.models.weights import save_encoder
from simdino.options import Options
from simdino.plan import Plan, agreed, check_marks, plan, run_folder
from simdino.runs.branches import Asked, Branch, branch_of
from simdino.runs.checkpoints import (
    checkpoints,
    load_checkpoint,
    newest_whole,
    same_run,
    save_checkpoint,
    step_of,
)
from simdino.runs.folder import (
    FAILURE,
    Metrics,
    check_images,
    check_outside,
    claim,
    command_line,
    data_metadata,
    goes_on,
    is_finished,
    peak_memory,
    read_broken,
    reopen,
    sole,
    source_revision,
    write_broken,
    write_changes,
    write_config,
    write_failure,
)
from simdino.runs.given import advice, early_stop
from simdino.runs.run import Run, read_run
from simdino.saved import METRICS, read_metadata, read_rows
from simdino.show.pictures import keep_pictures, write_views
from simdino.show.report import write_report
from simdino.text import show
from simdino.train.flops import flops_of_step
from simdino.train.loop import Clock, OtherProcess, Part, StepReport, Training, run_steps
from simdino.train.parallel import processes
from simdino.train.step import NotFinite
from simdino.trunk import trunk_end

Progress = Callable[[StepReport], None]


def pretrain(
    data: Any, out: str | Path | None = None, *,
    encoder: str | nn.Module | None = None, settings: Mapping[str, Any] | None = None,
    progress: Progress = lambda _: None, log: Log = show, **words: Any,
) -> Run:  # fmt: skip
    """Train a new run. Under torchrun, every process calls this. When torchrun or Slurm has started it again, the run
    that lies in `out` goes on.

    Args:
        data: the images: a path or a name as on the command line, a `Source`, or any torch `Dataset` of images (of
            Pillow, arrays or tensors) or of pairs (image, label); a pair of data sets for training and
            validation. Or a whole `Config`, or a `Plan`. Of a data set 10 % are held out by a hash of their numbers.
        out: the run's folder; runs/NAME-OF-DATA unless given.
        encoder: a name, or a module, of which a copy is trained from the weights that it has, see `ModuleEncoder`.
        progress: called after each logged step.
        log: called with lines for a person.
        settings: any setting by its path, such as {"views.jitter": 0.2}; docs/configuration.md lists them.
        words: the options of `simdino pretrain`, such as minutes=30, method="dino".

    To resume or load a run of objects of a program takes the same objects: `resume(run, data, encoder=module)` and
    `load_encoder(run, module=module)`.
    Raises InputError for a setting that does not exist or fit, a folder that holds something else or data that does not
    fit, NotFinite when a loss does.
    """
    if isinstance(encoder, nn.Module):
        encoder = register_module(encoder)
    given = {**(settings or {}), **words, **({} if encoder is None else {"encoder": encoder})}
    if out is not None and goes_on(Path(out)):
        objects = data if not isinstance(data, Config | Plan) and is_python(data) else None
        return resume(out, objects, progress=progress, log=log)
    if isinstance(data, Config | Plan):
        if given or out is None:
            wrong = f"{next(iter(given))} is part of a configuration" if given else "out is missing"
            raise InputError(f"pretrain: {wrong}; give pretrain(config, out)")
        planned, folder = data if isinstance(data, Plan) else Plan(config=data), Path(out)
    else:
        folder = Path(out) if out is not None else run_folder(root_of(data))
        planned = plan(data, Options(settings, encoder=encoder, **words), folder, log=log)
    return begin(planned, folder, progress=progress, log=log)


def begin(planned: Plan, folder: Path, *, progress: Progress, log: Log) -> Run:
    """Make the folder of a planned run and train in it."""
    config = planned.config
    check_config(config)
    check_memory(config)
    with processes(config.speed.device) as among:
        if among.first:
            claim(folder)
        with sole(folder) if among.first else nullcontext():
            among.barrier()
            training = planned.training or build(config, among, data=planned.data, log=log)
            check_marks(config, training.data)
            if among.first:
                write_config(folder, config, command=command_line(), data=data_metadata(*training.data))
            return carry_out(training, folder, progress=progress, log=log)


def resume(
    run: str | Path, data: Any = None, *,
    encoder: nn.Module | None = None, steps: int | None = None, guard: int | None = None,
    stop_below: tuple[str, ...] | None = None, cool_down: int | None = None, at: int | None = None,
    out: str | Path | None = None, speed: Mapping[str, Any] | None = None,
    progress: Progress = lambda _: None, log: Log = show,
) -> Run:  # fmt: skip
    """Continue a run from its newest checkpoint, exactly as if it had never stopped. A finished run stays as it is, and
    so does one that its guard or a mark has stopped, unless another `guard` or `stop_below` is given.

    Args:
        data: where the run's images are now; where they were unless given. A data set or a module that a program gave
            must be given again.
        steps: another length, of a run with schedule="wsd" that has not begun to cool down: it goes on exactly as if it
            had been asked for from the start.
        guard: the evaluations below the given weights after which a run with `init` stops; 0: it never does.
        stop_below: the marks below which it stops, such as ("knn 40 at 2000",); ("never",): it has none.
        cool_down: go on in a new folder with so many steps that cool down, from the trunk of a run with schedule="wsd",
            which stays as it is.
        at: after which step of the trunk; the newest that is kept unless given.
        out: the new folder, RUN-cooled-STEPS unless given. With `steps` the trunk itself goes on there.
        speed: other settings of `SpeedConfig`, such as {"workers": 3, "parallel": "fsdp"}, from now on.

    Where the newest checkpoint is damaged the one before is taken, after a line that says so. Raises InputError when
    the folder is no run, all its checkpoints are damaged, the newest is of another configuration, the images are not
    those it began with, or it cannot go on as asked."""
    folder = Path(run)
    if encoder is not None:
        register_module(encoder)
    asked = Asked(
        steps=steps, guard=guard, stop_below=stop_below, cool_down=cool_down, at=at,
        out=None if out is None else Path(out), speed=speed or None,
    )  # fmt: skip
    began = read_metadata(folder)
    config = asked.applied(folder, on_this_machine(began.config, log))
    unasked = replace(asked, speed=None) == Asked()
    if not asked.elsewhere and (why := at_its_end(folder, config, unasked=unasked)) is not None:
        log(why)
        return replace(read_run(folder), config=config)
    if data is not None:
        config = replace(config, data=replace(config.data, root=absolute(root_of(data))))
    if asked.elsewhere:
        branch = branch_of(folder, config, asked, log=log)
        return begin_branch(branch, data, began=began.data, progress=progress, log=log)
    with processes(config.speed.device) as among, sole(folder) if among.first else nullcontext():
        among.barrier()
        saved = newest_whole(folder, checkpoints(folder), log)
        for line in [] if saved is None else same_run(saved, config):
            log(f"warning: {line}; the run goes on, but not bit for bit")
        images = open_splits(data) if is_python(data) else None
        training = build(config, among, data=images, fresh=saved is None, log=log)
        check_marks(config, training.data)
        if among.first:
            check_images(folder, config.data.root, began=began.data, now=data_metadata(*training.data))
        if saved is not None:
            load_checkpoint(saved, config, into=training.state.load)
        if among.first and (data is not None or asked != Asked()):
            write_changes(folder, config, speed=asked.speed or ())
        log(f"resuming {folder} after step {training.state.step} of {config.run.steps}")
        return carry_out(training, folder, progress=progress, log=log)


def at_its_end(folder: Path, config: Config, *, unasked: bool) -> str | None:
    """Return why a run does not go on: it is finished, or its guard or a mark has stopped it, which counts where
    nothing else is asked of it (`unasked`); None where it goes on."""
    if is_finished(folder, config):
        return f"{folder} is finished: all {config.run.steps} steps are done"
    rows = read_rows(folder / METRICS) if unasked and (folder / "report.html").exists() else []
    stop = early_stop(rows, config.run, METHODS[config.run.method])
    if stop is None:
        return None
    by = stop.status.replace("the guard", "its guard")
    return f"{folder} was {by} after step {rows[-1]['step']}: {stop.why}. {stop.all_the_same(folder)}"


def begin_branch(branch: Branch, data: Any, *, began: dict[str, Any], progress: Progress, log: Log) -> Run:
    """Make the folder of a branch and train in it; its trunk is only read.

    data: as `resume` takes it. began: what the trunk knew of its images, see `check_images`."""
    config, folder = branch.config, branch.folder
    check_outside(folder, config.data.root)
    with processes(config.speed.device) as among:
        if among.first:
            branch.clear()
            claim(folder)
        with sole(folder) if among.first else nullcontext():
            among.barrier()
            images = open_splits(data) if is_python(data) else None
            training = build(config, among, data=images, fresh=False, log=log)
            load_checkpoint(branch.checkpoint, config, into=training.state.load)
            if among.first:
                now = data_metadata(*training.data)
                check_images(branch.trunk, config.data.root, began=began, now=now)
                with branch.copied():
                    write_config(folder, config, command=command_line(), data=now, branch=branch.origin)
            among.barrier()  # what was copied is there for all
            log(f"branching off {branch.trunk} after step {training.state.step}, until {config.run.steps}, in {folder}")
            return carry_out(training, folder, progress=progress, log=log)


def on_this_machine(config: Config, log: Log) -> Config:
    """Return a run's configuration with a device that is here: a run may go on where it did not start."""
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


def carry_out(training: Training, folder: Path, *, progress: Progress, log: Log) -> Run:
    """Train from the state's step to the end and finish the run folder."""
    among, state, known = training.processes, training.state, read_broken(folder)
    training.broken |= {i: known[name] for i, name in enumerate(training.data.train.names) if name in known}
    first = FirstProcess(training, folder, progress=progress, log=log) if among.first else None
    with state.whole_encoder() as encoder:
        if first is not None:
            first.begin(encoder)
    held = among.total(first is not None and first.must_stop()) != [0]  # a kill may have come before the report
    if training.flops is None and not held and state.step < training.config.run.steps:
        training.flops = flops_of_step(training)
    training.mfu(1.0)  # a processor's peak is measured now, not between steps
    state.model = among.wrap(state.student)
    interrupted = None if held else run_steps(training, first or OtherProcess())
    with state.whole_encoder() as encoder:
        if first is not None:
            first.finish(encoder, interrupted=interrupted is not None)
    among.barrier()
    return replace(read_run(folder), config=training.config, interrupted=interrupted)


class FirstProcess(OtherProcess):
    """The process that keeps the run's folder and talks to the person."""

    def __init__(self, training: Training, folder: Path, *, progress: Progress, log: Log) -> None:
        self.training, self.folder, self.progress, self.say = training, folder, progress, log
        self.metrics = Metrics(folder, step=training.state.step)
        self.own_after = read_metadata(folder).own_after

    def begin(self, encoder: Encoder) -> None:
        """Clear away what a kill left; of a new run draw the views and score the encoder before step 1."""
        reopen(self.folder)
        if not self.metrics.rows:
            for line in METHODS[self.training.config.run.method].warnings(self.training.loss):
                self.say(f"warning: {line}")
            write_views(self.training.data.train, self.training.loader, self.folder / "pictures" / "views.png")
            if self.training.config.run.init is None:
                self.evaluate(encoder, patient)
            else:
                self.score_given(encoder)

    def score_given(self, encoder: Encoder) -> None:
        """Score the weights that the run goes on from, beside random ones, and say what that means. They are the best
        until others are better."""
        monitor, run = self.training.monitor, self.training.config.run
        twin = monitor(random_twin(encoder, seed=run.seed))
        row = monitor(encoder) | {f"{name}_random": twin[name] for name in ("knn", "feature_rank") if name in twin}
        if "knn" in row:
            save_encoder(encoder, self.folder / "encoder-best.safetensors")
        self.metrics.write({"step": 0, **row})
        for line in advice(row, run):
            self.say(line)

    def log(self, result: dict[str, Any], clock: Clock) -> None:
        """Write the step's numbers and tell the watcher."""
        step, steps = self.training.state.step, self.training.config.run.steps
        values = {name: float(value) for name, value in result.items()}
        speed, wait = clock.lap()
        self.metrics.write({"step": step, **values})
        seconds = time.perf_counter() - clock.started
        mfu = self.training.mfu(speed)
        row = {"images_per_second": speed, "data_wait": wait, "seconds": seconds, "peak_memory_mb": peak_memory()}
        self.metrics.write({"step": step, **row, **({} if mfu is None else {"mfu": mfu})}, to="speed")
        shown = {"loss": values["loss"], "images_per_second": speed, "data_wait": wait}
        self.progress(StepReport(step=step, steps=steps, mfu=mfu, **shown))

    def evaluate(self, encoder: Encoder, waiting: Waiting) -> bool:
        """Score the teacher's encoder. Returns whether the guard or a mark stops the run."""
        self.metrics.write({"step": self.training.state.step, **self.training.monitor(encoder, waiting)})
        return self.must_stop()

    def must_stop(self) -> bool:
        """Return whether the guard or a mark stops the run where it is, after a line that says so."""
        step, run = self.training.state.step, self.training.config.run
        stop = early_stop(self.metrics.rows, run, METHODS[run.method])
        if stop is not None:
            word, more = stop.status.split()[-1].ljust(9), stop.all_the_same(self.folder)
            self.say(f"{word} The run stops after step {step} of {run.steps}: {stop.why}. {more}")
        return stop is not None

    def save(self, encoder: Encoder, tensors: dict[str, Any], broken: Sequence[dict[int, str]]) -> None:
        """Write a checkpoint of the state, the teacher's encoder as files of its own, and which images are broken."""
        training, state, folder = self.training, self.training.state, self.folder
        best = self.metrics.best_step(after=self.own_after)
        for others in broken:
            training.broken |= others
        names = training.data.train.names
        write_broken(folder, {names[i]: reason for i, reason in training.broken.items()})
        save_encoder(encoder, folder / "encoder.safetensors")
        if best == state.step:
            save_encoder(encoder, folder / "encoder-best.safetensors")
        last = [step for step in map(step_of, checkpoints(folder)) if step < state.step]
        keep = {*last[max(0, len(last) - training.config.run.keep + 1) :], best or 0, trunk_end(training.config) or 0}
        save_checkpoint(folder, tensors, training.config, revision=source_revision(), keep=keep)

    def failed(self, error: NotFinite, parts: Sequence[Part]) -> None:
        """Write not-finite.json, which names the images of the step, and say how it is taken again."""
        step, names = self.training.state.step + 1, self.training.data.train.names
        write_failure(
            self.folder, step=step, what=str(error), seed=self.training.config.run.seed,
            processes=[
                {"ids": [str(names[i]) for i in part.ids], "not_finite": [str(names[i]) for i in part.not_finite]}
                for part in parts
            ],
        )  # fmt: skip
        self.say(
            f"The images of step {step} are named in {self.folder / FAILURE}; to take it again: simdino pretrain "
            f"--resume {self.folder}"
        )

    def finish(self, encoder: Encoder, *, interrupted: bool) -> None:
        """Write the report, with pictures of what the encoder sees where the run came to its end."""
        val = self.training.data.val
        self.metrics.close()
        if not interrupted and len(val):
            try:
                keep_pictures(self.folder, encoder, self.training.monitor)
                keep_layer_rates(self.folder, encoder, val, root=self.training.config.data.root)
            except InputError as error:  # none of the validation images can be read
                self.say(f"warning: no pictures of what the encoder sees: {error}")
        write_report([self.folder])
