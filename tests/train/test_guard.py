"""Runs from given weights: what they say first and last, and a guard that stops them, on every process and exactly."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import simdino as sd
from simdino.cli import main
from simdino.models.weights import load_encoder
from simdino.options import Options
from simdino.plan import plan
from simdino.runs.checkpoints import checkpoints, step_of
from simdino.runs.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
SMALL: dict[str, Any] = {
    "batch": 16, "encoder": "vit_pico", "patch_size": 4, "threads": 1, "precision": "float32", "device": "cpu",
}  # fmt: skip
WRECKING: dict[str, Any] = {
    **{name: value for name, value in SMALL.items() if name != "encoder"},
    "lr": 10.0, "layer_decay": 1.0, "momentum": 0.0, "freeze_encoder": 0.0, "evaluate_every": 2, "steps": 30,
    "guard": 3,
}  # fmt: skip


def started(folder: Path, **words: Any) -> tuple[Run, list[str]]:
    lines: list[str] = []
    planned = plan("digits", Options(**words), folder, log=lambda _: None)
    return sd.pretrain(planned, folder, log=lines.append), lines


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a short run."""
    folder = tmp_path_factory.mktemp("given") / "run"
    started(folder, **SMALL, steps=4)
    return folder


@pytest.fixture(scope="module")
def wrecked(given: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[str]]:
    """A run at a rate that destroys them."""
    return started(tmp_path_factory.mktemp("wrecked") / "run", init=str(given), **WRECKING)


def test_the_first_evaluation_is_of_the_given_weights_and_said_before_training(
    wrecked: tuple[Run, list[str]], given: Path
) -> None:
    run, lines = wrecked
    assert [line.split()[0] for line in lines[:3]] == ["given", "given", "guard"]
    first = run.rows[0]
    assert first["knn"] == load_run(given).rows[-1]["knn"] == run.summary()["knn_start"]
    twin = load_run(given).rows[0]["knn"]  # of random weights of the same seed
    assert first["knn_random"] == twin == run.summary()["knn_random"]
    assert f"{first['knn']:.1f} % with the weights in {given}; {twin:.1f} % with random weights" in lines[0]


def load_run(folder: Path) -> Run:
    from simdino.runs.run import read_run

    return read_run(folder)


def test_a_guard_stops_the_run_and_keeps_the_given_weights(wrecked: tuple[Run, list[str]], given: Path) -> None:
    run, lines = wrecked
    step = run.rows[-1]["step"]
    assert run.ended_early and run.interrupted is None and step < 30
    assert [line for line in lines if "The run stops" in line] == [lines[-1]]
    assert lines[-1].startswith(f"guard     The run stops after step {step} of 30: k-NN has been more than a standard")
    assert run.summary()["verdict"] == "stopped by the guard"
    assert run.summary()["knn_gain"] == run.summary()["knn"] - run.summary()["knn_start"] < 0
    assert "Training did not pay" in run.lines()[0]
    assert step_of(checkpoints(run.folder)[-1]) == step and (run.folder / "report.html").is_file()
    best, weights = load_encoder(run.folder / "encoder-best.safetensors"), load_encoder(given).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in best.state_dict().items())


def test_a_stopped_run_stays_stopped_until_it_is_told_otherwise(
    wrecked: tuple[Run, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, step = tmp_path / "run", wrecked[0].rows[-1]["step"]
    shutil.copytree(wrecked[0].folder, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "--resume", str(folder), "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == 1 and json.loads(out)["verdict"] == "stopped by the guard"
    assert err.count("\n") == 1 and err.startswith(f"{folder} was stopped by its guard after step {step}: k-NN has")
    assert f"simdino pretrain --resume {folder} --guard 0" in err
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as again:
        main(["pretrain", "--resume", str(folder), "--guard", "1"])
    assert again.value.code == 1 and load_run(folder).rows[-1]["step"] == step
    capsys.readouterr()
    main(["pretrain", "--resume", str(folder), "--guard", "0", "--json"])
    done = json.loads(capsys.readouterr().out)
    assert done["step"] == 30 and done["verdict"] != "stopped by the guard"
    assert load_run(folder).config.run.guard == 0


@pytest.mark.parametrize("lost", [1, 2, "the report"])
def test_a_guard_is_exact_under_resume(wrecked: tuple[Run, list[str]], tmp_path: Path, lost: int | str) -> None:
    """Killed before its last checkpoints, or before it could write its report, it stops where it would have."""
    reference, folder = wrecked[0].folder, tmp_path / "run"
    shutil.copytree(reference, folder)
    (folder / "report.html").unlink()
    for checkpoint in checkpoints(folder)[-lost:] if isinstance(lost, int) else []:
        shutil.rmtree(checkpoint)
    run = sd.resume(folder, log=lambda _: None)
    assert run.ended_early and (folder / "report.html").is_file()
    for name in ("metrics.jsonl", "encoder.safetensors", "encoder-best.safetensors"):
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name


def test_a_higher_guard_lets_the_same_steps_go_on(given: Path, wrecked: tuple[Run, list[str]], tmp_path: Path) -> None:
    run, _ = started(tmp_path / "run", init=str(given), **{**WRECKING, "guard": 0, "steps": 30})
    step = wrecked[0].rows[-1]["step"]
    assert not run.ended_early and run.rows[-1]["step"] == 30
    shared = [row for row in run.rows if row["step"] <= step]
    assert shared == wrecked[0].rows, "the guard changes nothing before it stops"


def test_without_labels_health_alone_is_judged(given: Path, tmp_path: Path) -> None:
    words = {**WRECKING, "lr": 1e-3, "steps": 4, "labels": False}
    run, lines = started(tmp_path / "run", init=str(given), **words)
    assert "There are no labels to score them by" in lines[1] and "none is kept as such" in lines[2]
    assert run.rows[-1]["step"] == 4 and not (run.folder / "encoder-best.safetensors").exists()
    assert run.summary()["knn_gain"] is None


def test_two_processes_stop_together(given: Path, tmp_path: Path) -> None:
    words = [part for name, value in WRECKING.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launch = [*torchrun, "-m", "simdino", "pretrain", "digits", "--init", str(given), *words, "--json"]
    done = subprocess.run([*launch, "--out", str(tmp_path / "run")], capture_output=True, text=True, check=False)
    run = load_run(tmp_path / "run")
    assert run.ended_early and run.rows[-1]["step"] < 30, done.stderr
    assert json.loads(done.stdout)["verdict"] == "stopped by the guard"
    assert done.returncode == 1 and done.stderr.count("The run stops after step") == 1
    assert "timed out" not in done.stderr.lower()
