"""`simdino runs`: every run below a folder, from its files."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import simdino as sd
from run_metadata import write_metadata
from simdino.cli import main
from simdino.runs import folder as folders
from simdino.runs.folder import LOCK, TRAINER, sole, trainer_of
from simdino.runs.listing import list_runs


def make(where: Path, *, data: str = "photos", knn: float | None = None, step: int = 9) -> Path:
    """A run folder of 9 steps with numbers, without training."""
    where.mkdir(parents=True)
    write_metadata(where, data)
    rows: list[dict[str, Any]] = [{"step": 0, "knn": 10.0, "knn_pixels": 20.0}] if knn is not None else []
    rows += [{"step": step, "loss": 1.0, **({} if knn is None else {"knn": knn})}]
    (where / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return where


def test_runs_of_one_data_set_stand_together_the_best_first(tmp_path: Path) -> None:
    for name, data, knn in (("a", "cats", 50.0), ("b", "dogs", 60.0), ("deep/c", "cats", 70.0), ("d", "cats", None)):
        make(tmp_path / name, data=data, knn=knn)
    os.utime(tmp_path / "b" / "config.json", (2e9, 2e9))  # the newest data set comes first
    found = list_runs(tmp_path)
    assert [run.run.removeprefix(f"{tmp_path}/") for run in found.runs] == ["b", "deep/c", "a", "d"]
    best = found.runs[1]
    assert (best.data, best.knn, best.knn_start, best.knn_pixels) == ("cats", 70.0, 10.0, 20.0)
    assert (best.state, best.step, best.steps, best.verdict) == ("finished", 9, 9, "too early")
    assert "10.0 → 70.0" in str(found) and str(found).splitlines()[0].startswith("run ")


def test_a_run_is_training_stopped_or_finished(tmp_path: Path) -> None:
    run = make(tmp_path / "run", step=2)
    assert list_runs(run).runs[0].state == "stopped"
    assert "2 of 9, stopped" in str(list_runs(tmp_path))
    with sole(run):
        assert trainer_of(run) == f"{os.getpid()} on {platform.node()}"
        assert list_runs(tmp_path).runs[0].state == "training"
    assert trainer_of(run) is None


@pytest.mark.slow
def test_a_process_that_was_killed_trains_no_more(tmp_path: Path) -> None:
    run = make(tmp_path / "run", step=2)
    code = "import os, signal, sys; from pathlib import Path; from simdino.runs.folder import sole\n"
    code += "with sole(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code, str(run)], check=False)
    assert (run / LOCK).exists() and list_runs(tmp_path).runs[0].state == "stopped"


def test_a_process_of_another_machine_trains_while_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "run", step=2)
    (run / TRAINER).write_text("1 elsewhere\n")
    assert trainer_of(run) == "1 on elsewhere"
    monkeypatch.setattr(folders, "STALE", -1.0)
    assert trainer_of(run) is None


@pytest.mark.parametrize("content", ["", "no number", "7", "\0"])
def test_a_lock_that_says_nothing_is_no_process(content: str, tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    (run / TRAINER).write_text(content)
    assert trainer_of(run) is None


def test_a_damaged_run_is_named_and_hides_no_other(tmp_path: Path) -> None:
    make(tmp_path / "good", knn=50.0)
    make(tmp_path / "cut")
    (tmp_path / "cut" / "config.json").write_text('{"config": ')
    make(tmp_path / "new")
    (tmp_path / "new" / "metrics.jsonl").write_text("")
    found = list_runs(tmp_path)
    assert {Path(run.run).name: run.step for run in found.runs} == {"good": 9, "new": 0}
    assert list(found.damaged) == [str(tmp_path / "cut")] and f"{tmp_path}/cut cannot be read: " in str(found)


def test_folders_of_others_and_what_lies_in_a_run_are_no_runs(tmp_path: Path) -> None:
    make(tmp_path / "run")
    make(tmp_path / "run" / "checkpoints" / "inner")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text('{"model_type": "dinov2"}')
    assert len(list_runs(tmp_path).runs) == 1
    assert str(list_runs(tmp_path / "theirs")) == f"no run below {tmp_path}/theirs"


def test_the_command_takes_the_folder_runs_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "runs" / "one", knn=50.0)
    monkeypatch.chdir(tmp_path)
    main(["runs", "--json"])
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert row["run"] == "runs/one" and row["knn"] == 50.0
    with pytest.raises(sd.InputError, match="nowhere is no folder"):
        list_runs("nowhere")
    with pytest.raises(SystemExit) as end:
        main(["runs", "nowhere"])
    assert end.value.code == 2
