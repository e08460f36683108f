"""A run that was stopped, whenever and however, ends as the run that never was: bit by bit."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from conftest import Command, Start
from simdino.saved import read_rows

pytestmark = pytest.mark.slow

STEPS, EVERY = 48, 3
WORDS = (
    f"digits --steps {STEPS} --checkpoint-every {EVERY} --evaluate-every 16 --batch 8 --threads 1 --precision float32 "
    "--encoder vit_toy --patch-size 4 --drop-path 0.1"
).split()
KILLS = 10


def new(start: Start, folder: Path, workers: int) -> Command:
    return start("pretrain", *WORDS, "--workers", workers, "--out", folder)


def resumed(start: Start, folder: Path) -> Command:
    return start("pretrain", "--resume", folder)


def last_step(folder: Path) -> int:
    rows = read_rows(folder / "metrics.jsonl")
    return rows[-1]["step"] if rows else -1


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoints/step-*"))


def writing(folder: Path) -> bool:
    return any(folder.glob("checkpoints/.writing-*"))


def roll_back(folder: Path) -> None:
    """A run that was faster than the test goes back to its oldest checkpoint."""
    for newer in checkpoints(folder)[1:]:
        shutil.rmtree(newer)


def caught(start: Start, folder: Path, command: Command, moment: Callable[[], bool]) -> Command:
    """The command, halted while `moment` holds; if it ends too soon it is rolled back and another is started."""
    while True:
        while command.until(moment):
            command.signal(signal.SIGSTOP)
            time.sleep(0.01)
            if command.running and moment():
                return command
            command.signal(signal.SIGCONT)
        assert command.ends() == 0, command.errors
        roll_back(folder)
        command = resumed(start, folder)


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every tensor and number in nested containers, with its place."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from leaves(part, f"{path}/{name}")
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from leaves(part, f"{path}/{i}")
    else:
        yield path, value


def assert_same_run(run: Path, reference: Path) -> None:
    for name in ("encoder.safetensors", "encoder-best.safetensors", "metrics.jsonl"):
        assert (run / name).read_bytes() == (reference / name).read_bytes(), name
    assert checkpoints(run)[-1].name == checkpoints(reference)[-1].name == f"step-{STEPS:08d}"
    ours, theirs = (
        dict(leaves(torch.load(checkpoints(folder)[-1] / "state.pt", weights_only=True))) for folder in (run, reference)
    )
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        same = torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
        assert same, name
    assert not [*run.glob(".*"), *run.glob("checkpoints/.*")], "something half written was left"
    assert (run / "report.html").is_file() and (run / "pictures" / "views.png").is_file()


@pytest.fixture(scope="module")
def reference(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never stopped, without workers."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    command = new(start, folder, workers=0)
    assert command.ends() == 0, command.errors
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_ten_kills_at_random_moments_change_no_bit(start: Start, reference: Path, tmp_path: Path, workers: int) -> None:
    random, folder, halves = Random(workers), tmp_path / "run", 0
    targets = sorted(random.sample(range(EVERY + 1, STEPS - 5), KILLS))
    while_writing = set(random.sample(range(KILLS), 3))
    command = new(start, folder, workers)
    for kill, target in enumerate(targets):

        def reached(target: int = target) -> bool:
            return bool(checkpoints(folder)) and last_step(folder) >= target

        killed = False
        while not killed:
            if kill in while_writing:
                command = caught(start, folder, command, lambda: writing(folder) and bool(checkpoints(folder)))
            elif command.until(reached):
                time.sleep(random.uniform(0, 0.03))
            killed = command.kill()
            halves += writing(folder)
            if not killed:
                assert command.ends() == 0, command.errors
                roll_back(folder)
            assert checkpoints(folder)
            command = resumed(start, folder)
    assert halves >= len(while_writing)
    assert command.ends() == 0, command.errors
    assert_same_run(folder, reference)


@pytest.mark.parametrize(
    ("number", "workers", "group"),
    [(signal.SIGTERM, 0, False), (signal.SIGTERM, 2, True), (signal.SIGINT, 2, True)],
    ids=["SIGTERM", "SIGTERM to the workers too", "Ctrl-C, which reaches the workers"],
)
def test_a_stopped_run_saves_says_how_to_go_on_and_changes_no_bit(
    start: Start, reference: Path, tmp_path: Path, number: signal.Signals, workers: int, group: bool
) -> None:
    folder = tmp_path / "run"
    command = caught(start, folder, new(start, folder, workers), lambda: 4 <= last_step(folder) < STEPS - 4)
    command.signal(number, group=group)
    command.signal(signal.SIGCONT, group=group)
    assert command.ends() == 128 + number, command.errors
    assert (
        command.errors.splitlines()[-1]
        == f"stopped by {number.name}, saved; go on with: simdino pretrain --resume {folder}"
    )
    assert "Traceback" not in command.errors
    assert checkpoints(folder)[-1].name == f"step-{last_step(folder):08d}", "nothing that was done is lost"
    rest = resumed(start, folder)
    assert rest.ends() == 0, rest.errors
    assert_same_run(folder, reference)


def test_a_run_killed_before_its_first_checkpoint_starts_over(start: Start, reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = new(start, folder, workers=0)
    while not command.until(lambda: last_step(folder) >= 0 and not checkpoints(folder)) or not command.kill():
        shutil.rmtree(folder)
        command = new(start, folder, workers=0)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    rest = resumed(start, folder)
    assert rest.ends() == 0, rest.errors
    assert_same_run(folder, reference)


def test_a_run_killed_after_its_last_checkpoint_writes_what_is_missing(
    start: Start, reference: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reference, folder)
    (folder / "report.html").unlink()
    (folder / "pictures" / "neighbours.png").unlink()
    (folder / "checkpoints" / ".deleting-step-00000003").mkdir()
    rest = resumed(start, folder)
    assert rest.ends() == 0, rest.errors
    assert (folder / "pictures" / "neighbours.png").is_file()
    assert_same_run(folder, reference)


def test_resuming_a_finished_run_says_so_and_changes_nothing(start: Start, reference: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()}
    command = start("pretrain", "--resume", reference, "--json")
    assert command.ends() == 0
    assert command.errors == f"{reference} is finished: all {STEPS} steps are done\n"
    assert before == {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()}
