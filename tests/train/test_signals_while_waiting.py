"""A signal that comes while images are waited for ends a run that can still be resumed, whoever is stuck."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

import simdino as sd
from simdino import recipes
from simdino.assembly import build
from simdino.data import workers
from simdino.data.base import ArraySource
from simdino.data.sources import open_dataset
from simdino.options import Options
from simdino.runs.checkpoints import checkpoints
from simdino.train import loop
from simdino.train.loop import Stop, Stopped
from simdino.train.parallel import Processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(workers.START != "fork", reason="workers are given what only a fork can pass on"),
]
WORDS = {"encoder": "vit_toy", "patch_size": 4, "batch": 8, "steps": 6, "precision": "float32", "workers": 1}


def hang_when(monkeypatch: pytest.MonkeyPatch, is_time: Callable[[ArraySource], bool]) -> None:
    """From then on a worker that reads an image tells the main process to stop, and waits."""
    read, main = ArraySource.read, os.getpid()

    def slow(source: ArraySource, i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
        if os.getpid() != main and is_time(source):
            os.kill(main, signal.SIGTERM)
            time.sleep(600)
        return read(source, i, channels, at_least=at_least)

    monkeypatch.setattr(ArraySource, "read", slow)
    monkeypatch.setattr(workers, "POLL", 0.01)
    monkeypatch.setattr(workers, "FAREWELL", 0.1)
    monkeypatch.setattr(loop, "GRACE", 0.05)


@pytest.mark.parametrize("during", ["a batch", "an evaluation"])
def test_a_stuck_worker_does_not_keep_a_run_from_stopping(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, during: str
) -> None:
    folder = tmp_path / "run"
    config = recipes.resolve("digits", Options(**WORDS, evaluate_every=3, checkpoint_every=2))
    validation, reads = during == "an evaluation", 0

    def is_time(source: ArraySource) -> bool:
        """Once the fourth batch is read; once the validation images are read again, after step 3."""
        nonlocal reads
        reads += 1  # of this worker: each stream has workers of its own
        before_training = not (folder / "metrics.jsonl").stat().st_size
        if before_training or (source.names[0] in trained_on) == validation:
            return False
        return validation or (len(source) == config.data.train_images and reads > 8 * 3)

    trained_on = set(open_dataset("digits", "train").names)
    with monkeypatch.context() as patched:
        hang_when(patched, is_time)
        run = sd.pretrain(config, folder, log=lambda _: None)
    assert run.interrupted == signal.SIGTERM
    assert checkpoints(folder)
    again = sd.resume(folder, log=lambda _: None)
    assert again.interrupted is None and again.rows[-1]["step"] == 6


def test_images_are_waited_for_a_moment_after_a_signal_and_without_one_for_ever() -> None:
    stop = Stop()
    stop.while_waiting(1e9)
    stop(signal.SIGTERM, None)
    stop.while_waiting(loop.GRACE)
    with pytest.raises(Stopped, match="stopped by SIGTERM while waiting for images"):
        stop.while_waiting(loop.GRACE + 0.01)


def test_several_processes_are_told_that_one_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait in a step that this one will not take: it must end with an error, after it has saved."""
    config = recipes.resolve("digits", Options(**WORDS))
    training = build(config, Processes(0, 2))
    saved: list[object] = []

    class First(loop.OtherProcess):
        def save(self, encoder: object, tensors: object, broken: object) -> None:
            saved.append(broken)

    def stopped(*_: object, **__: object) -> None:
        raise Stopped("stopped")

    monkeypatch.setattr(loop, "take_steps", stopped)
    with pytest.raises(Stopped):
        loop.run_steps(training, First())
    assert saved == [[]]


def test_a_worker_killed_in_the_middle_of_training_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = recipes.resolve("digits", Options(**WORDS))
    read, main = ArraySource.read, os.getpid()

    def deadly(source: ArraySource, i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
        if os.getpid() != main and np.random.default_rng(i).random() < 0.1:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(source, i, channels, at_least=at_least)

    monkeypatch.setattr(ArraySource, "read", deadly)
    with pytest.raises(sd.InputError, match=r"died by SIGKILL.*--workers 0") as caught:
        sd.pretrain(config, tmp_path / "run", log=lambda _: None)
    assert "\n" not in str(caught.value)
