"""The cadence of a run: steps, and between them log lines, evaluations, checkpoints and signals."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import sqrt
from types import FrameType
from typing import Any

from simdino.config import Config
from simdino.contracts import InputError, Objective
from simdino.data.loader import Loader
from simdino.data.workers import Waiting
from simdino.precision import make_autocast
from simdino.runs.metrics import Metrics, peak_memory
from simdino.train.parallel import Processes
from simdino.train.state import State
from simdino.train.step import step

GRACE = 3.0  # seconds that images are waited for after a signal


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a person watching wants to know after a step."""

    step: int
    steps: int  # in the run
    loss: float
    images_per_second: float
    data_wait: float  # share of the time spent waiting for data


@dataclass(kw_only=True)
class Hooks:
    """What the assembly wants done between steps. The loop decides when, on the first process only."""

    evaluate: Callable[[Waiting], dict[str, Any]]
    save: Callable[[], None]
    progress: Callable[[StepReport], None]


class Stopped(InputError):
    """A signal came while images were waited for."""


@dataclass
class Stop:
    """Set by SIGTERM or SIGINT; the loop looks at it after every step. A second SIGINT does not wait."""

    signal: int | None = None

    def __call__(self, number: int, _: FrameType | None) -> None:
        """Signal handler."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def while_waiting(self, waited: float) -> None:
        """Raise Stopped where images do not come after a signal: the step that needs them will not be taken."""
        if self.signal is not None and waited > GRACE:
            raise Stopped(f"stopped by {signal.Signals(self.signal).name} while waiting for images")


@contextmanager
def listening() -> Iterator[Stop]:
    """Turn SIGTERM and SIGINT into a flag while the body runs. Only the main thread can: in others nothing changes."""
    stop, before = Stop(), {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@dataclass
class Clock:
    """Images per second and the share of time spent waiting for data, since the last look."""

    started: float = field(default_factory=time.perf_counter)
    since: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    images: int = 0

    def look(self) -> tuple[float, float]:
        """(images/s, data wait share) since the last look, then start over."""
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        result = self.images / elapsed, min(1.0, self.waited / elapsed)
        self.since, self.waited, self.images = time.perf_counter(), 0.0, 0
        return result


def run_steps(
    state: State, loader: Loader, loss: Objective, config: Config, *,
    processes: Processes, metrics: Metrics | None, hooks: Hooks, broken: dict[int, str],
) -> int | None:  # fmt: skip
    """Train from state.step to the end; unreadable images are added to `broken`, ids and reasons.

    metrics: None on all processes but the first. Returns the signal that ended the run early, after a checkpoint, or
    None. Raises NotFinite with the weights of the step before, and InputError when too many images are broken.
    """
    with listening() as stop:
        try:
            return take_steps(
                state, loader, loss, config, processes=processes, metrics=metrics, hooks=hooks, broken=broken, stop=stop
            )
        except Stopped:
            if metrics is not None:
                hooks.save()
            if processes.world > 1:
                raise  # the others wait in a step that this process will not take
            return stop.signal


def take_steps(
    state: State, loader: Loader, loss: Objective, config: Config, *,
    processes: Processes, metrics: Metrics | None, hooks: Hooks, broken: dict[int, str], stop: Stop,
) -> int | None:  # fmt: skip
    """`run_steps`, told of signals by `stop`. Raises Stopped between two steps, see `Stop.while_waiting`."""
    run, due = config.run, Due(config)
    autocast = make_autocast(config.speed.device, config.speed.precision)
    clock = Clock()
    batches = loader.steps(state.step, run.steps, waiting=stop.while_waiting)
    for _ in range(state.step, run.steps):
        before = time.perf_counter()
        views, unreadable = next(batches)
        clock.waited += time.perf_counter() - before
        result = step(
            state, views, loss, steps=run.steps, optim=config.optim, all_reduce=processes.sum,
            micro_batch=config.speed.micro_batch, autocast=autocast,
        )  # fmt: skip
        clock.images += run.batch
        broken |= unreadable
        ended, count = processes.total(stop.signal is not None, len(broken))
        check_broken(count, broken, state.step, config, processes)
        saving = due.checkpoint(state.step) or ended
        everyones = processes.gather(broken) if saving else []
        if metrics is not None:
            if due.log(state.step):
                report(state.step, run.steps, result, clock, metrics, hooks)
            if due.evaluate(state.step):
                metrics.write({"step": state.step, **hooks.evaluate(stop.while_waiting)})
                clock.look()
            if saving:
                for unreadable in everyones:
                    broken |= unreadable
                hooks.save()
        if due.checkpoint(state.step):
            processes.barrier()  # the others wait for the first, see PATIENCE
        if ended and state.step < run.steps:
            return stop.signal or signal.SIGTERM
    return None


@dataclass(frozen=True)
class Due:
    """What a step's number asks for. The last step asks for everything."""

    config: Config

    def every(self, step: int, interval: int) -> bool:
        """Whether `step` is a multiple of the interval or the last."""
        return step % interval == 0 or step == self.config.run.steps

    def log(self, step: int) -> bool:
        """A line in metrics.jsonl; the first step has one too."""
        return step == 1 or self.every(step, self.config.run.log_every)

    def evaluate(self, step: int) -> bool:
        """k-NN and label-free health on held-out images."""
        return self.every(step, self.config.run.evaluate_every)

    def checkpoint(self, step: int) -> bool:
        """A checkpoint. Evaluations have one, so that the best weights are kept."""
        return self.every(step, self.config.run.checkpoint_every) or self.evaluate(step)


def report(step: int, steps: int, result: dict[str, Any], clock: Clock, metrics: Metrics, hooks: Hooks) -> None:
    """Write the step's numbers and tell the watcher."""
    values = {name: float(value) for name, value in result.items()}
    speed, wait = clock.look()
    metrics.write({"step": step, **values})
    seconds = time.perf_counter() - clock.started
    row = {"images_per_second": speed, "data_wait": wait, "seconds": seconds, "peak_memory_mb": peak_memory()}
    metrics.write({"step": step, **row}, to="speed")
    hooks.progress(StepReport(step=step, steps=steps, loss=values["loss"], images_per_second=speed, data_wait=wait))


def check_broken(count: float, broken: dict[int, str], steps: int, config: Config, processes: Processes) -> None:
    """Refuse to go on when too large a share of the images is broken, judged from 100 images on.

    Of a part of the images, three deviations more than the share may be broken by chance; of all of them, none.
    count: the broken images of all processes, some perhaps counted twice; they are counted well before refusing."""
    share, images = config.data.max_broken, config.data.train_images
    seen = min(steps * config.run.batch, images)
    allowed = share * seen + (3 * sqrt(share * (1 - share) * seen) if seen < images else 0)
    if count <= allowed or seen < min(100, images):
        return
    distinct = len(set().union(*processes.gather(set(broken))))
    if distinct > allowed:
        raise InputError(
            f"{distinct} of the {seen} images seen so far in {config.data.root} cannot be read, more than the share "
            f"--max-broken {share}: `simdino inspect {config.data.root}` lists them"
        )
