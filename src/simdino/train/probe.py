"""The speed of data and steps on this machine, measured before step 1 to choose the number of workers and of steps.

What is measured here changes the speed of a run and the number of its steps, never what a step computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from math import ceil
from statistics import median
from typing import Any

import torch

from simdino.config import SpeedConfig
from simdino.contracts import Views
from simdino.data.workers import PREFETCH
from simdino.precision import make_autocast
from simdino.train.loop import Training
from simdino.train.step import step

BATCHES, STEPS, WARM = 3, 6, 2
SPARE = 1.25  # factor on the number of workers: batches differ, and workers disturb each other
WORTH = 0.9  # share of the time without workers below which processes are worth their memory and cores
MOST_AHEAD = 8


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds for a process's part of a batch: to read and crop it in one process, and to train on it."""

    read: float
    slowest_read: float
    step: float


def pace(training: Training) -> Pace:
    """Measure reading with one thread, as a worker has, and steps with a batch at hand, colours included.

    The state is trained on meanwhile: give one that is thrown away. wait: returns when the device has done its work."""
    loader = training.loader
    with threads(1):
        batch = loader.batches[0]  # not timed: it opens files and compiles code
        reads = [timed(lambda i=i: loader.batches[i]) for i in range(1, BATCHES + 1)]
    seconds = step_seconds(training, ((loader.views(batch), {}) for _ in range(STEPS)))
    return Pace(read=median(reads), slowest_read=max(reads), step=seconds)


def timed(run: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def step_seconds(training: Training, batches: Iterable[tuple[Views, Any]]) -> float:
    """Return the median time in seconds from the end of one step to the end of the next, waiting for data included."""
    moments: list[float] = []
    config, wait = training.config, finisher(training.config.speed)
    autocast = make_autocast(config.speed.device, config.speed.precision)
    for views, _ in islice(batches, STEPS):
        step(
            training.state,
            views,
            training.loss,
            steps=1000,
            optim=config.optim,
            all_reduce=training.processes.sum,
            micro_batch=config.speed.micro_batch,
            autocast=autocast,
        )
        wait()
        moments.append(time.perf_counter())
    return median(b - a for a, b in pairwise(moments[WARM - 1 :]))


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


def chosen(found: Pace, speed: SpeedConfig, *, cores: int) -> SpeedConfig:
    """Return the speed settings with the workers that the pace asks for. cores: those of this process; on a CPU, those
    that torch uses, of which workers take some."""
    if torch.device(speed.device).type != "cpu":
        workers, threads = workers_beside_gpu(found, cores=cores), speed.threads
    else:
        workers = workers_beside_cpu(found, cores=cores)
        threads = cores - workers if workers else speed.threads
    if not workers:
        return replace(speed, workers=0)
    return replace(speed, workers=workers, prefetch=batches_ahead(found), threads=threads)


def batches_ahead(found: Pace) -> int:
    """Return the batches that each worker makes in advance: two, more where one batch takes much longer to read than
    most."""
    return min(MOST_AHEAD, max(PREFETCH, ceil(found.slowest_read / found.read)))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads while the body runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def finisher(speed: SpeedConfig) -> Callable[[], None]:
    """Return a function that returns when the device has done its work."""
    return torch.cuda.synchronize if speed.device.startswith("cuda") else lambda: None
