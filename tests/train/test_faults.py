"""What kills or spoils a run, and how it goes on: nothing that was saved is lost, and what is done again is equal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import simdino as sd
from simdino import recipes
from simdino.cli import main
from simdino.cli.training import requeue
from simdino.contracts import Views
from simdino.data.loader import Loader
from simdino.data.sources import open_dataset
from simdino.options import Options
from simdino.runs.checkpoints import checkpoints
from simdino.runs.folder import RESTARTS
from simdino.train import loop
from simdino.train.parallel import Processes
from simdino.train.step import NotFinite

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import kills

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
STEPS = 6
WORDS: dict[str, Any] = {
    "encoder": "vit_toy", "patch_size": 4, "batch": 8, "steps": STEPS, "precision": "float32", "workers": 0,
    "evaluate_every": 4, "checkpoint_every": 2, "device": "cpu",
}  # fmt: skip


def quiet(_: str) -> None:
    """Say nothing."""


def train(folder: Path, **words: Any) -> sd.Run:
    """Train on digits."""
    return sd.pretrain(recipes.resolve("digits", Options(**WORDS, **words)), folder, log=quiet)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    train(folder)
    return folder


def assert_same(run: Path, reference: Path) -> None:
    """The two runs have ended alike, bit for bit."""
    assert kills.differences(run, reference) == []


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("file", ["state.pt", "manifest.json"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_taken(
    reference: Path, tmp_path: Path, file: str, finished: bool
) -> None:
    folder = tmp_path / "run"
    train(folder)
    before, newest = checkpoints(folder)[-2:]
    content = (newest / file).read_bytes()
    (newest / file).write_bytes(content[: len(content) // 2])
    if not finished:
        (folder / "report.html").unlink()
    lines: list[str] = []
    sd.resume(folder, log=lines.append)
    assert lines[0].startswith(f"warning: checkpoint {newest} is damaged (")
    assert lines[0].endswith(f"; the one before it is taken, {before.name}")
    assert_same(folder, reference)


def test_where_all_checkpoints_are_damaged_the_encoder_that_is_left_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder)
    for checkpoint in checkpoints(folder):
        (checkpoint / "manifest.json").write_text("{")
    with pytest.raises(sd.InputError, match=r"every checkpoint of .* is damaged: manifest\.json is missing") as caught:
        sd.resume(folder, log=quiet)
    assert f"--init {folder / 'encoder.safetensors'}" in str(caught.value)


# A scheduler


def signalled(number: int, *, at: int) -> Callable[..., Any]:
    """A step that sends this process a signal in step `at`."""
    step = loop.step

    def one(state: Any, *words: Any, **more: Any) -> Any:
        if state.step + 1 == at:
            os.kill(os.getpid(), number)
        return step(state, *words, **more)

    return one


@pytest.mark.parametrize("variable", RESTARTS)
def test_a_command_that_is_started_again_goes_on(
    monkeypatch: pytest.MonkeyPatch, reference: Path, tmp_path: Path, variable: str
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", signalled(signal.SIGUSR1, at=3))
        assert train(folder).interrupted == signal.SIGUSR1
    assert [checkpoint.name for checkpoint in checkpoints(folder)] == ["step-00000002", "step-00000003"]
    with pytest.raises(sd.InputError, match="holds a run"):
        train(folder)
    monkeypatch.setenv(variable, "1")
    train(folder)
    assert_same(folder, reference)


def test_another_command_does_not_go_on_with_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder)
    config = json.loads((folder / "config.json").read_text()) | {"command": "simdino pretrain digits --steps 99"}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(sd.InputError, match="holds a run"):
        train(folder)


SCONTROL = {
    "it works": ("exit 0", "job 77 is requeued, and will go on"),
    "it refuses": ("echo 'slurm: no such job' >&2; exit 1", "warning: job 77 is not requeued: slurm: no such job"),
    "it fails without a word": ("exit 3", "warning: job 77 is not requeued: exit code 3"),
}


@pytest.mark.parametrize("case", SCONTROL)
def test_a_job_whose_time_is_nearly_over_is_requeued(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    script, said = SCONTROL[case]
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\n{script}\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr(loop, "step", signalled(signal.SIGUSR1, at=2))
    words = [f"--{name.replace('_', '-')}={value}" for name, value in WORDS.items()]
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "digits", *words, "--out", str(tmp_path / "run")])
    assert ended.value.code == 128 + signal.SIGUSR1
    assert (tmp_path / "told").read_text() == "requeue 77\n"
    assert capsys.readouterr().err.splitlines()[-1] == said


def test_a_machine_without_slurms_command_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert requeue("77").startswith("warning: job 77 is not requeued: scontrol cannot be run (No such file")


# Numbers that are not finite


def spoiled(monkeypatch: pytest.MonkeyPatch, *, batch: int) -> list[int]:
    """From then on the second image of the batch-th that is prepared has a NaN in its first view. Its id, once it was
    met."""
    views, count, met = Loader.views, 0, []

    def some(loader: Loader, pixels: Views) -> Views:
        nonlocal count
        count += 1
        made = views(loader, pixels)
        if count == batch:
            crops = made.global_views.clone()
            crops[0, 1, 0, 0, 0] = torch.nan
            met.append(int(made.ids[1]))
            made = replace(made, global_views=crops)
        return made

    monkeypatch.setattr(Loader, "views", some)
    return met


def test_a_batch_that_is_not_finite_is_named_and_taken_again_from_the_weights_before_it(
    monkeypatch: pytest.MonkeyPatch, reference: Path, tmp_path: Path
) -> None:
    folder, lines = tmp_path / "run", []
    config = recipes.resolve("digits", Options(**{**WORDS, "checkpoint_every": 6}))
    with monkeypatch.context() as patch:
        met = spoiled(patch, batch=5)  # the first two are a picture's and that whose operations are counted
        with pytest.raises(NotFinite, match="in step 3; the weights were not changed"):
            sd.pretrain(config, folder, log=lines.append)
    told = json.loads((folder / "not-finite.json").read_text())
    name = open_dataset("digits", "train").names[met[0]]
    assert told["step"] == 3 and told["seed"] == 0 and "in step 3" in told["what"]
    assert [part["not_finite"] for part in told["processes"]] == [[name]]
    assert [len(part["ids"]) for part in told["processes"]] == [8] and told["processes"][0]["ids"][1] == name
    assert lines[-1].endswith(f"to take it again: simdino pretrain --resume {folder}")
    assert [checkpoint.name for checkpoint in checkpoints(folder)] == ["step-00000002"], "the weights before it"
    sd.resume(folder, log=quiet)
    assert not (folder / "not-finite.json").exists()
    assert load_file(folder / "encoder.safetensors").keys() == load_file(reference / "encoder.safetensors").keys()
    for name, value in load_file(reference / "encoder.safetensors").items():
        assert torch.equal(load_file(folder / "encoder.safetensors")[name], value), name


SECOND_IS_SPOILED = """
import os, sys
import torch
from dataclasses import replace
from simdino.cli import main
from simdino.data.loader import Loader
from simdino.data.sources import open_dataset
views, count = Loader.views, 0
def some(loader, pixels):
    global count
    made = views(loader, pixels)
    count += 1
    if os.environ["RANK"] == "1" and count == 4:  # in step 3: the operations of one were counted
        made = replace(made, global_views=made.global_views * torch.nan)
    return made
Loader.views = some
main(sys.argv[1:])
"""


def test_a_batch_that_is_not_finite_in_one_process_stops_all_before_the_weights_change(tmp_path: Path) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SECOND_IS_SPOILED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = ["--steps=6", "--encoder=vit_pico", "--batch=8", "--workers=0", "--threads=1", "--device=cpu"]
    launch = [*torchrun, str(script), "pretrain", "digits", *words, "--out", str(folder)]
    done = subprocess.run(launch, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "in step 3; the weights were not changed" in done.stderr
    told = json.loads((folder / "not-finite.json").read_text())
    assert [len(part["ids"]) for part in told["processes"]] == [4, 4]
    assert [len(part["not_finite"]) for part in told["processes"]] == [0, 4]
    assert checkpoints(folder)[-1].name == "step-00000002"


# A clock, a launcher, and kills


def test_a_clock_that_is_set_back_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, reference: Path, tmp_path: Path
) -> None:
    folder, now = tmp_path / "run", time.time()

    def earlier() -> float:
        nonlocal now
        now -= 3600
        return now

    monkeypatch.setattr(time, "time", earlier)
    train(folder)
    assert_same(folder, reference)


def test_a_process_whose_launcher_has_died_is_an_orphan() -> None:
    assert not Processes().orphaned
    assert not Processes(1, 2, os.getppid()).orphaned
    assert Processes(1, 2, os.getpid()).orphaned


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are found in /proc")
def test_five_kills_of_a_run_of_two_processes_change_no_bit(tmp_path: Path) -> None:
    told = kills.survives(tmp_path, kills=5, seed=1)
    assert {row["victim"] for row in told} == set(kills.VICTIMS)
