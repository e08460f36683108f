"""Planning a run: what a person said and what the images are become a Config. Where speed or length depend on this
machine, a few steps are taken to time them, which is said."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch

from simdino import recipes
from simdino.assembly import build, readers
from simdino.config import Config, SpeedConfig
from simdino.contracts import InputError
from simdino.data.base import PYTHON, Splits, root_of
from simdino.data.sources import absolute, open_splits
from simdino.data.survey import broken_images, measure_dataset, survey_training_images
from simdino.defaults import EVALUATIONS
from simdino.effect import without_effect
from simdino.files import check_file
from simdino.options import Options
from simdino.runs.folder import check_free, check_outside
from simdino.show.pictures import write_views
from simdino.text import readable, show
from simdino.train.loop import Training
from simdino.train.memory import check_memory
from simdino.train.parallel import Processes, own_device, processes
from simdino.train.probe import STEPS, chosen, pace, step_seconds

FEW = 3  # cores on which workers would only take from the training
Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that is decided and has not begun, with what was opened and built to decide it."""

    config: Config
    data: Splits | None = None  # None: to be opened
    training: Training | None = None  # as before step 1; None: to be built


def plan(data: Any, options: Options, out: str | Path, *, log: Log = show) -> Plan:
    """Decide on a run in the folder `out`, and log what was decided. `minutes` become steps here.

    data: a path, a name, a `Source`, a torch `Dataset`, or a pair of the last two."""
    given, data = data, root_of(data)
    check_free(Path(out))
    check_outside(Path(out), data)
    images = open_splits(given if data.startswith(PYTHON) else recipes.asked_data(data, options))
    statistics = survey_training_images(images.train, absolute(data), max_broken=recipes.accepted_broken(options))
    config = recipes.resolve(data, options, statistics=statistics)
    check_memory(config)
    training = None
    for_workers = "speed.workers" not in options.values and probing_pays(config.speed)
    minutes = options.words.minutes
    if for_workers or minutes is not None:
        log(f"timing    a few steps on this machine, {'for workers' if for_workers else 'for the length of the run'}")
        with processes(config.speed.device) as among:
            probe = Probe(config, among, images)
            if for_workers:
                probe.choose_workers()
            if minutes is not None:
                steps, evaluations = probe.steps_in(minutes)
                every = options.get("run.evaluate_every", ceil(steps / evaluations))
                options = options.but(minutes=None, steps=steps, evaluate_every=every)
                config = recipes.resolve(data, options, statistics=statistics)
            config = replace(config, speed=probe.training.config.speed)
            training = probe.rewound()
    config = agreed(config)
    found = () if statistics.contents is None else statistics.contents.lines()
    for line in (*recipes.describe(config), *found, *statistics.warnings(), *without_effect(options, config)):
        log(line)
    return Plan(config=config, data=images, training=training and replace(training, config=config))


def agreed(config: Config) -> Config:
    """The first process's configuration, on all: precision and length are measured, and measurements differ."""
    with processes(config.speed.device) as among:
        return among.gather(config)[0]


def run_folder(data: str) -> Path:
    """Where a run goes unless told otherwise: runs/NAME-OF-DATA."""
    return Path("runs") / (readable(Path(data.removeprefix(PYTHON)).resolve().name).split(".")[0] or "run")


def probing_pays(speed: SpeedConfig) -> bool:
    """Whether workers may help: beside a GPU, or where this process trains on several cores."""
    return torch.device(speed.device).type != "cpu" or (speed.threads or torch.get_num_threads()) > FEW


class Probe:
    """A run that is built before it begins and takes a few steps, to time them."""

    def __init__(self, config: Config, among: Processes, data: Splits) -> None:
        self.started = time.perf_counter()
        self.training = build(config, among, data=data)
        self.before = deepcopy(self.training.state.tensors())
        self.training.state.model = among.wrap(self.training.state.student)

    def choose_workers(self) -> None:
        """Go on with the workers that keep up with the steps on this machine."""
        training, config = self.training, self.training.config
        gpu = torch.device(config.speed.device).type != "cpu"
        speed = chosen(pace(training), config.speed, cores=recipes.own_cores() if gpu else torch.get_num_threads())
        speed = max(training.processes.gather(speed), key=lambda one: one.workers)
        config = replace(config, speed=speed)
        loader, monitor = readers(config, training.processes, training.data, own_device(speed.device))
        self.training = replace(training, config=config, loader=loader, monitor=monitor)

    def steps_in(self, minutes: float) -> tuple[int, int]:
        """How many steps fit into `minutes` on this machine, and how many evaluations beside them.

        Evaluations get a tenth of the time, but there are two at least (step 0 and the last), and eight after step 0
        at most. Raises InputError where not one step fits."""
        training, among = self.training, self.training.processes
        per_step = step_seconds(training, training.loader.steps(0, STEPS))
        before = time.perf_counter()
        if among.first:
            training.monitor(training.state.encoder)
        evaluation = time.perf_counter() - before
        budget = 60 * minutes - (time.perf_counter() - self.started)
        evaluations = max(1, min(EVALUATIONS, int(0.1 * budget / evaluation) - 1))
        steps = int((budget - (evaluations + 1) * evaluation) / per_step)
        steps, evaluations = min(among.gather((steps, evaluations)))
        if steps < 1:
            raise InputError(
                f"--minutes {minutes:g} is too short here: a step takes {per_step:.1f} s and each of "
                f"{evaluations + 1} evaluations {evaluation:.1f} s; give more minutes, or a smaller --image-size, "
                f"--encoder or --batch"
            )
        return steps, evaluations

    def rewound(self) -> Training | None:
        """The run as it was built, to be carried out. None where processes share a model: what they have learned of
        the order of its gradients stays, and a run that is resumed would add them up in another."""
        if self.training.processes.world > 1:
            return None
        state = self.training.state
        state.load(self.before)
        state.model = None
        return self.training


def inspect_data(
    data: str, options: Options | None = None, *, sheet: Path | None = None
) -> tuple[dict[str, Any], list[str]]:
    """What the images of `data` are and the run they would get: plain values, and lines for a person.

    options: which folders are splits and classes."""
    if sheet is not None:
        check_file(sheet, option="--sheet")
    options = options or Options()
    images = open_splits(recipes.asked_data(data, options))
    found = measure_dataset(images.train, limit=None)
    config = recipes.resolve(data, options, statistics=found)
    unreadable = broken_images(images.val)
    result = {
        **asdict(found), "validation": len(images.val), "broken_validation": unreadable, "config": config.as_dict(),
    }  # fmt: skip
    lines = [
        f"{found.images} training images, {len(images.val)} held out, "
        f"{found.labels or 'no'} classes, {len(found.broken)} broken, {len(unreadable)} of the validation broken",
        f"{found.channels} channel{'s' * (found.channels > 1)}, short side {found.short_side} px, long side "
        f"{found.long_side} px (medians), smallest {found.smallest} px",
        f"mean {' '.join(f'{x:.3f}' for x in found.mean)}, std {' '.join(f'{x:.3f}' for x in found.std)}",
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
