"""The speed of data and steps on this machine, measured before step 1 to choose the number of workers and of steps.

What is measured here changes the speed of a run and the number of its steps, never what a step computes."""

import time
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from math import ceil
from statistics import median, quantiles
from typing import Any

import torch

from simdino import recipes
from simdino.assembly import build, check_memory, readers
from simdino.config import Config, SpeedConfig
from simdino.contracts import InputError, Views
from simdino.data.base import Splits
from simdino.data.workers import PREFETCH
from simdino.defaults import EVALUATIONS
from simdino.device import BeyondMemory
from simdino.feedback import Log
from simdino.runs.folder import peak_memory
from simdino.train.flops import flops_of_step
from simdino.train.loop import Training
from simdino.train.parallel import Processes, own_device

BATCHES, STEPS, WARM = 3, 10, 2
SPARE = 1.25  # factor on the number of workers: batches differ, and workers disturb each other
WORTH = 0.9  # share of the time without workers below which processes are worth their memory and cores
MOST_AHEAD = 8
FEW = 3  # cores on which workers would only take from the training
PARTS = (2, 4, 8)  # of what goes through the network at once: the micro-batches that are tried
TRIED_STEPS, SLOW = 5, 30.0  # steps of each; seconds of a step from which on none is tried


@dataclass(frozen=True, kw_only=True)
class Tried:
    """Steps that were tried with a micro-batch of so many images, None for a whole batch: their speed without reading,
    and on a GPU the memory that this process needed at most."""

    micro_batch: int | None
    images_per_second: float
    memory_mb: float | None


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a run costs on this machine.

    start, step, first_evaluation, evaluation: seconds; a run starts with opening and building what it needs, and its
    first evaluation also scores raw pixels. flops: operations of a
    step on all processes. memory_mb: the most that this process held, of the GPU where there is one. tried: with
    several micro-batches, the run's own first."""

    start: float
    step: float
    first_evaluation: float
    evaluation: float
    flops: float
    memory_mb: float
    tried: tuple[Tried, ...]


class Trial:
    """A run that is built before it begins and takes a few steps, to time them."""

    def __init__(self, config: Config, among: Processes, data: Splits) -> None:
        self.started = time.perf_counter()
        self.training = build(config, among, data=data)
        self.training.flops = flops_of_step(self.training)
        self.before = deepcopy(self.training.state.tensors()) if among.world == 1 else None
        self.training.state.model = among.wrap(self.training.state.student)
        self.built = time.perf_counter()

    @property
    def flops(self) -> float:
        """The operations of a step, on all processes."""
        assert self.training.flops is not None
        return self.training.flops

    def choose_workers(self) -> None:
        """Go on with the workers that keep up with the steps on this machine."""
        training, config = self.training, self.training.config
        gpu = torch.device(config.speed.device).type != "cpu"
        speed = chosen(pace(training), config.speed, cores=recipes.own_cores() if gpu else torch.get_num_threads())
        speed = max(training.processes.gather(speed), key=lambda one: one.workers)
        config = replace(config, speed=speed)
        loader, monitor = readers(config, training.processes, training.data, own_device(speed.device))
        self.training = replace(training, config=config, loader=loader, monitor=monitor)

    @cached_property
    def step(self) -> float:
        """The time of a step in seconds, see `step_seconds`."""
        return step_seconds(self.training, self.training.loader.steps(0, STEPS))

    @cached_property
    def evaluation(self) -> float:
        """The time of the first evaluation in seconds, which also scores raw pixels; 0 in other processes."""
        return self.evaluated()

    def evaluated(self) -> float:
        """Return the time of an evaluation in seconds; 0 in other processes."""
        before = time.perf_counter()
        with self.training.state.whole_encoder() as encoder:
            if self.training.processes.first:
                self.training.monitor(encoder)
        return time.perf_counter() - before

    def steps_in(self, minutes: float) -> tuple[int, int]:
        """Return how many steps fit into `minutes` on this machine, and how many evaluations beside them.

        Evaluations get a tenth of the time, but there are two at least (step 0 and the last), and eight after step 0
        at most. Raises InputError where not one step fits."""
        training, among = self.training, self.training.processes
        per_step, evaluation = self.step, self.evaluation
        budget = 60 * minutes - (time.perf_counter() - self.started)
        budget -= evaluation if training.config.run.init is not None else 0  # random weights are scored beside those
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

    def costs(self, *, since: float) -> Costs:
        """Return what the run costs on this machine, and what micro-batches change of that. since: when its planning
        began, by time.perf_counter."""
        found = {"step": self.step, "first_evaluation": self.evaluation, "evaluation": self.evaluated()}
        found |= {"start": self.built - since, "flops": self.flops, "memory_mb": peak_memory()}
        return Costs(**found, tried=micro_batches(self.training))

    def rewound(self) -> Training | None:
        """Return the run as it was built, to be carried out. None where processes share a model: what they have learned
        of the order of its gradients stays, and a run that is resumed would add them up in another."""
        if self.before is None:
            return None
        state = self.training.state
        state.load(self.before)
        state.model = None
        return self.training


def fitting_trial(config: Config, among: Processes, data: Splits, *, log: Log) -> Trial:
    """Return a trial of the run, with half the images at once as often as these do not fit into the memory. Raises what
    says that where one image does not fit, or the encoder takes no micro-batches."""
    while True:
        try:
            check_memory(config)
            return Trial(config, among, data)
        except (BeyondMemory, torch.OutOfMemoryError):
            at_once = config.speed.micro_batch or config.run.batch // among.world
            if at_once == 1:
                raise
        log(f"memory    {at_once} images at once do not fit: trying --micro-batch {at_once // 2}")
        config = replace(config, speed=replace(config.speed, micro_batch=at_once // 2))


def micro_batches(training: Training) -> tuple[Tried, ...]:
    """Return the speed of steps as they are, and with micro-batches of a half, a quarter and an eighth of what goes
    through the network at once now; only as they are where a step is slow or the encoder normalises over its batch.

    The state is trained on meanwhile: give one that is thrown away."""
    run, own = training.config.run, training.config.speed.micro_batch
    pixels, _ = training.loader.batches[0]
    found = [with_micro_batch(training, own, pixels)]
    at_once = min(own or run.batch, len(pixels.ids))
    if not training.state.encoder.batch_norm and run.batch / found[0].images_per_second < SLOW:
        sizes = (at_once // part for part in PARTS if at_once >= part)
        found += [with_micro_batch(training, size, pixels) for size in sizes]
    return tuple(found)


def with_micro_batch(training: Training, size: int | None, pixels: Views) -> Tried:
    """Return the speed of steps on these pixels with micro-batches of a size, colours included."""
    config, gpu = training.config, training.config.speed.device.startswith("cuda")
    part = replace(training, config=replace(config, speed=replace(config.speed, micro_batch=size)))
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    batches = ((training.loader.batch(pixels, size), {}) for _ in range(TRIED_STEPS))
    seconds = step_seconds(part, batches)
    memory = peak_memory() if gpu else None
    return Tried(micro_batch=size, images_per_second=config.run.batch / seconds, memory_mb=memory)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds for a process's part of a batch: to read and crop it in one process, and to train on it."""

    read: float
    slowest_read: float
    step: float


def workers_may_help(speed: SpeedConfig) -> bool:
    """Return whether timing pays: beside a GPU, or where this process trains on several cores."""
    return torch.device(speed.device).type != "cpu" or (speed.threads or torch.get_num_threads()) > FEW


def pace(training: Training) -> Pace:
    """Measure reading with one thread, as a worker has, and steps with a batch at hand, colours included.

    The state is trained on meanwhile: give one that is thrown away."""
    loader, threads = training.loader, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pixels, _ = loader.batches[0]  # not timed: it opens files and compiles code
        moments = [time.perf_counter()]
        for i in range(1, BATCHES + 1):
            _ = loader.batches[i]
            moments.append(time.perf_counter())
    finally:
        torch.set_num_threads(threads)
    reads = [b - a for a, b in pairwise(moments)]
    seconds = step_seconds(training, ((loader.batch(pixels, loader.micro_batch), {}) for _ in range(STEPS)))
    return Pace(read=median(reads), slowest_read=max(reads), step=seconds)


def step_seconds(training: Training, batches: Iterable[tuple[Views, Any]]) -> float:
    """Return the time in seconds from the end of one step to the end of the next, waiting for data included: that of
    the faster quarter, as what else the machine does for a moment makes steps longer, never shorter."""
    moments: list[float] = []
    for views, _ in islice(batches, STEPS):
        training.step(views)
        if training.config.speed.device.startswith("cuda"):
            torch.cuda.synchronize()
        moments.append(time.perf_counter())
    return quantiles((b - a for a, b in pairwise(moments[WARM - 1 :])), n=4)[0]


def chosen(found: Pace, speed: SpeedConfig, *, cores: int) -> SpeedConfig:
    """Return the speed settings with the workers that the pace asks for. cores: those of this process; on a CPU, those
    that torch uses, of which workers take some."""
    gpu = torch.device(speed.device).type != "cpu"
    workers = (workers_beside_gpu if gpu else workers_beside_cpu)(found, cores=cores)
    if not workers:
        return replace(speed, workers=0)
    threads = speed.threads if gpu else cores - workers
    return replace(speed, workers=workers, prefetch=batches_ahead(found), threads=threads)


def workers_beside_gpu(found: Pace, *, cores: int) -> int:
    """Return the number of workers that read as fast as the device trains, one at least; a core is left to the main
    process."""
    return max(1, min(cores - 1, ceil(SPARE * found.read / found.step)))


def workers_beside_cpu(found: Pace, *, cores: int) -> int:
    """Return the number of workers that read while the remaining `cores` train; 0 where that would not be clearly
    faster, as with few cores or little to read.

    Without workers a batch costs read + step, with the step on all cores. With w workers it costs the longer of read /
    w and the step on the remaining cores, taken as inversely proportional."""
    alone = found.read + found.step
    costs = {w: max(found.read / w, found.step * cores / (cores - w)) for w in range(1, cores)}
    best = min(costs, key=costs.__getitem__, default=0)
    return best if best and costs[best] < WORTH * alone else 0


def batches_ahead(found: Pace) -> int:
    """Return the batches that each worker makes in advance: two, more where one batch takes much longer to read than
    most."""
    return min(MOST_AHEAD, max(PREFETCH, ceil(found.slowest_read / found.read)))
