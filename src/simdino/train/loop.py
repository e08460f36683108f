"""The cadence of a run: steps, and between them log lines, evaluations, checkpoints and signals."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import sqrt
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor

from simdino.config import Config
from simdino.contracts import InputError, Views
from simdino.data.base import Splits
from simdino.data.loader import Loader
from simdino.data.workers import Waiting
from simdino.device import make_autocast
from simdino.evaluate.monitor import Monitor
from simdino.losses.objective import Objective
from simdino.models.encoder import Encoder
from simdino.peaks import peak_of
from simdino.train.parallel import Processes
from simdino.train.state import State
from simdino.train.step import NotFinite, step
from simdino.trunk import trunk_end

T = TypeVar("T")

GRACE = 3.0  # seconds that images are waited for after a signal
STOPS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
"""What ends a run after a checkpoint: a scheduler, Ctrl-C, and Slurm's word that the time is nearly over. Windows has
no SIGUSR1."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a person watching wants to know after a step."""

    step: int
    steps: int  # in the run
    loss: float
    images_per_second: float
    data_wait: float  # share of the time spent waiting for data
    mfu: float | None  # share of the device's peak that the steps use, where that is known


@dataclass(kw_only=True)
class Training:
    """Everything that one process trains with: the configuration of the run and the objects made of it."""

    config: Config
    processes: Processes
    data: Splits
    loader: Loader
    loss: Objective
    state: State
    monitor: Monitor
    broken: dict[int, str] = field(default_factory=dict)  # unreadable images met so far: ids and reasons
    flops: float | None = None  # of a step on all processes, see `flops_of_step`; None: not counted yet

    def step(self, views: Views) -> dict[str, Tensor | float]:
        """Train on one batch, see `train.step`."""
        run, optim, speed = self.config.run, self.config.optim, self.config.speed
        return step(
            self.state, views, self.loss, steps=run.steps, optim=optim, all_reduce=self.processes.sum,
            micro_batch=speed.micro_batch, autocast=make_autocast(speed.device, speed.precision),
        )  # fmt: skip

    def mfu(self, images_per_second: float) -> float | None:
        """Return the MFU of a speed, see `peaks`: a share of the peaks of all processes' devices. None where the peak
        is not known, or the operations are not counted."""
        peak = peak_of(self.config.speed.device, self.config.speed.precision)
        if peak is None or self.flops is None:
            return None
        return images_per_second / self.config.run.batch * self.flops / (peak.flops * self.processes.world)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process's part of a batch: the ids of its images, and of those the ones with a value that is not finite in
    the pixels of a view."""

    ids: list[int]
    not_finite: list[int]

    @staticmethod
    def of(views: Views) -> Part:
        """Return what is known of the views."""
        whole = torch.ones(len(views.ids), dtype=torch.bool)
        for crops in (views.global_views, *([] if views.local_views is None else [views.local_views])):
            whole &= crops.isfinite().all(0).flatten(1).all(1).cpu()
        return Part(ids=views.ids.tolist(), not_finite=views.ids[~whole].tolist())


class OtherProcess:
    """What a process does between steps. Only the first writes files and talks to a person: this one does nothing."""

    def log(self, result: dict[str, Any], clock: Clock) -> None:
        """Called with what a step returned when its numbers are due."""

    def evaluate(self, encoder: Encoder, waiting: Waiting) -> bool:
        """Called when an evaluation is due, with the teacher's encoder. Returns whether the run must not go on."""
        return False

    def save(self, encoder: Encoder, tensors: dict[str, Any], broken: Sequence[dict[int, str]]) -> None:
        """Called when a checkpoint is due, with the teacher's encoder and the whole state. broken: the unreadable
        images of every process."""

    def failed(self, error: NotFinite, parts: Sequence[Part]) -> None:
        """Called when a step was not taken. parts: every process's part of its batch."""


class Stopped(InputError):
    """A signal came while images were waited for."""


@dataclass
class Stop:
    """Set by a signal; the loop looks at it after every step. A second SIGINT does not wait."""

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
    """Turn the signals that stop a run into a flag while the body runs. Only the main thread can: in others nothing
    changes."""
    stop, before = Stop(), {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, stop) for number in STOPS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@dataclass
class Clock:
    """Images per second and the share of time spent waiting for data, since the last lap."""

    started: float = field(default_factory=time.perf_counter)
    since: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    images: int = 0

    def lap(self) -> tuple[float, float]:
        """Return (images/s, share of waiting) since the last lap, and begin a new one."""
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        result = self.images / elapsed, min(1.0, self.waited / elapsed)
        self.restart()
        return result

    def restart(self) -> None:
        """Begin a new lap, without what was not training."""
        self.since, self.waited, self.images = time.perf_counter(), 0.0, 0

    def waits(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield the batches. The time until each is there counts as waiting."""
        while True:
            before = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - before
            if batch is None:
                return
            yield batch
            del batch  # before the next is made


def run_steps(training: Training, process: OtherProcess) -> int | None:
    """Train from the state's step to the end of the run, or to an evaluation after which it must not go on. Returns the
    signal that ended it early, after a checkpoint, or None.

    Raises NotFinite with the weights of the step before, and InputError when too many images are broken."""
    state = training.state
    with listening() as stop:
        try:
            return take_steps(training, process, stop)
        except Stopped:
            if not state.divided:  # a divided one cannot be put together by this process alone
                process.save(state.encoder, state.tensors(), [])
            if training.processes.world > 1:
                raise  # the others wait in a step that this process will not take
            return stop.signal


def take_steps(training: Training, process: OtherProcess, stop: Stop) -> int | None:
    """`run_steps`, told of signals by `stop`. Raises Stopped between two steps, see `Stop.while_waiting`.

    Step 1 is logged too, an evaluation has a checkpoint, so that the best weights are kept, and so has the end of a
    trunk; the last step has all three."""
    config, state, processes = training.config, training.state, training.processes
    run, clock, trunk = config.run, Clock(), trunk_end(config)
    for views, unreadable in clock.waits(training.loader.steps(state.step, run.steps, waiting=stop.while_waiting)):
        try:
            result = training.step(views)
        except NotFinite as error:  # on all processes, see `step.check_finite`
            not_taken(training, process, error, views)
            raise
        del views  # before the next are read
        clock.images += run.batch
        training.broken |= unreadable
        ended, count = processes.total(stop.signal is not None or processes.orphaned, len(training.broken))
        check_broken(count, training.broken, state.step, config, processes)
        last = state.step == run.steps
        evaluate = last or state.step % run.evaluate_every == 0
        checkpoint, halted = evaluate or state.step == trunk or state.step % run.checkpoint_every == 0, False
        if last or state.step == 1 or state.step % run.log_every == 0:
            process.log(result, clock)
        if evaluate:
            with state.whole_encoder() as encoder:  # the first decides for all
                halted = processes.total(process.evaluate(encoder, stop.while_waiting)) != [0]
            clock.restart()
        if checkpoint or ended:
            save(training, process, processes.gather(training.broken))
        if checkpoint:
            processes.barrier()  # the others wait for the first, see PATIENCE
        if ended and not last:
            return stop.signal or signal.SIGTERM
        if halted:
            return None
    return None


def save(training: Training, process: OtherProcess, broken: Sequence[dict[int, str]]) -> None:
    """Let the first process save. All processes call this, as each may hold a part of the state."""
    with training.state.whole_encoder() as encoder:
        process.save(encoder, training.state.tensors(), broken)


def not_taken(training: Training, process: OtherProcess, error: NotFinite, views: Views) -> None:
    """Let the first process tell of the batch, and save the weights before it, from which `resume` takes the same step.
    Batch normalisation has seen the batch: of an encoder with it the checkpoint before stays the newest."""
    process.failed(error, training.processes.gather(Part.of(views)))
    if training.state.step and not training.state.student.encoder.batch_norm:
        save(training, process, [])


def check_broken(count: float, broken: dict[int, str], steps: int, config: Config, processes: Processes) -> None:
    """Refuse to go on when too large a share of the images is broken, judged from 100 images on.

    Of a part of the images, three standard deviations more than the share may be broken by chance; of all, none.
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
