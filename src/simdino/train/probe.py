"""How fast data and steps are on this machine, measured before step 1: how many workers keep up, how many steps fit.

What is measured here changes the speed of a run and the number of its steps, never what a step computes.
"""

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
from simdino.data.workers import AHEAD
from simdino.precision import make_autocast
from simdino.train.loop import Training
from simdino.train.step import step

BATCHES, STEPS, WARM = 3, 6, 2
SPARE = 1.25  # workers beyond what the medians ask for: batches differ, and workers disturb each other
WORTH = 0.9  # of the time without workers: less is not worth processes that take memory and cores
MOST_AHEAD = 8


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of a process's part of a batch: read and cropped by one process, and trained on."""

    read: float
    slowest_read: float
    step: float


def pace(training: Training) -> Pace:
    """Read some batches with one thread, as a worker does, and take steps with a batch at hand, its colours included.
    The state is trained on as it goes."""
    loader = training.loader
    with threads(1):
        batch = loader.batches[0]  # files are opened, code is compiled
        reads = [timed(lambda i=i: loader.batches[i]) for i in range(1, BATCHES + 1)]
    seconds = step_seconds(training, ((loader.views(batch), {}) for _ in range(STEPS)))
    return Pace(read=median(reads), slowest_read=max(reads), step=seconds)


def timed(run: Callable[[], object]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def step_seconds(training: Training, batches: Iterable[tuple[Views, Any]]) -> float:
    """The median time from the end of one step to the end of the next, waiting for data included."""
    moments: list[float] = []
    config, wait = training.config, finisher(training.config.speed)
    autocast = make_autocast(config.speed.device, config.speed.precision)
    for views, _ in islice(batches, STEPS):
        step(
            training.state, views, training.loss, steps=1000, optim=config.optim, all_reduce=training.processes.sum,
            micro_batch=config.speed.micro_batch, autocast=autocast,
        )  # fmt: skip
        wait()
        moments.append(time.perf_counter())
    return median(b - a for a, b in pairwise(moments[WARM - 1 :]))


def workers_beside_gpu(found: Pace, *, cores: int) -> int:
    """Processes that read as fast as the device trains, a core left to the main process; one at least."""
    return max(1, min(cores - 1, ceil(SPARE * found.read / found.step)))


def workers_beside_cpu(found: Pace, *, cores: int) -> int:
    """Processes that read while the others of the `cores` train; none where that would not be clearly faster, as with
    few cores or little to read.

    Without workers a batch costs read + step, the step on all cores; with w of them the longer of read / w and the
    step on what they leave, taken as inversely proportional."""
    alone = found.read + found.step
    costs = {w: max(found.read / w, found.step * cores / (cores - w)) for w in range(1, cores)}
    best = min(costs, key=costs.__getitem__, default=0)
    return best if best and costs[best] < WORTH * alone else 0


def chosen(found: Pace, speed: SpeedConfig, *, cores: int) -> SpeedConfig:
    """The speed with the workers that the pace asks for. cores: of this process; beside a CPU, those torch uses, which
    workers take from it."""
    if torch.device(speed.device).type != "cpu":
        workers, threads = workers_beside_gpu(found, cores=cores), speed.threads
    else:
        workers = workers_beside_cpu(found, cores=cores)
        threads = cores - workers if workers else speed.threads
    if not workers:
        return replace(speed, workers=0)
    return replace(speed, workers=workers, ahead=batches_ahead(found), threads=threads)


def batches_ahead(found: Pace) -> int:
    """Batches that each worker makes ahead: two, more where one batch takes much longer to read than most."""
    return min(MOST_AHEAD, max(AHEAD, ceil(found.slowest_read / found.read)))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch on so many threads while the body runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def finisher(speed: SpeedConfig) -> Callable[[], None]:
    """A call that returns when the device has done its work."""
    return torch.cuda.synchronize if speed.device.startswith("cuda") else lambda: None
