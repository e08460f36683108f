"""A run that is below its mark ends there, stays ended, and goes on when it is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import simdino as sd
from simdino.cli import main
from simdino.runs.checkpoints import checkpoints, step_of
from simdino.runs.run import Run, read_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
SMALL: dict[str, Any] = {
    "batch": 16, "encoder": "vit_toy", "patch_size": 4, "threads": 1, "precision": "float32", "device": "cpu",
    "steps": 8, "evaluate_every": 2,
}  # fmt: skip
MARK = "knn 100 at 3"


def lines_of(folder: Path, **words: Any) -> tuple[Run, list[str]]:
    lines: list[str] = []
    return sd.pretrain("digits", folder, log=lines.append, **SMALL, **words), lines


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, pico: None) -> tuple[Run, list[str]]:
    return lines_of(tmp_path_factory.mktemp("marked") / "run", stop_below=(MARK,))


def test_it_ends_at_the_first_evaluation_from_that_step_on(stopped: tuple[Run, list[str]]) -> None:
    run, lines = stopped
    assert run.rows[-1]["step"] == 4 == step_of(checkpoints(run.folder)[-1])
    assert run.ended_early and run.interrupted is None and run.summary()["verdict"] == "stopped below a mark"
    assert lines[-1].startswith("mark      The run stops after step 4 of 8: k-NN was ")
    assert lines[-1].endswith(f"below the mark of 100 % at 3. {again(run.folder)}")
    assert (run.folder / "report.html").is_file() and "Stopped below a mark" in (run.folder / "report.html").read_text()
    listed = sd.list_runs(run.folder.parent)
    assert [one.verdict for one in listed.runs] == ["stopped below a mark"] and "stopped below a mark" in str(listed)


def again(folder: Path) -> str:
    return f"To go on all the same: simdino pretrain --resume {folder} --stop-below never"


def test_before_it_the_run_is_the_same_as_without(stopped: tuple[Run, list[str]], tmp_path: Path) -> None:
    plain, _ = lines_of(tmp_path / "run")
    assert not plain.ended_early and plain.rows[-1]["step"] == 8
    assert [row for row in plain.rows if row["step"] <= 4] == stopped[0].rows


def test_it_stays_stopped_until_it_is_told_otherwise(
    stopped: tuple[Run, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped[0].folder, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "--resume", str(folder), "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == 1 and json.loads(out)["verdict"] == "stopped below a mark"
    assert err.startswith(f"{folder} was stopped below a mark after step 4: k-NN was") and again(folder) in err
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    main(["pretrain", "--resume", str(folder), "--stop-below", "never", "--json"])
    assert json.loads(capsys.readouterr().out)["step"] == 8
    assert read_run(folder).config.run.stop_below == ("never",)


@pytest.mark.parametrize("lost", ["the report", "a checkpoint"])
def test_it_is_exact_under_resume(stopped: tuple[Run, list[str]], tmp_path: Path, lost: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped[0].folder, folder)
    (folder / "report.html").unlink()
    if lost == "a checkpoint":
        shutil.rmtree(checkpoints(folder)[-1])
    assert sd.resume(folder, log=lambda _: None).ended_early
    for name in ("metrics.jsonl", "encoder.safetensors"):
        assert (folder / name).read_bytes() == (stopped[0].folder / name).read_bytes(), name


def test_a_mark_out_of_reach_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for words, why in (
        ({"stop_below": ("knn 40 at 8",)}, "the first evaluation from that step on is the last"),
        ({"stop_below": (MARK,), "labels": False}, "there are no labels, so no k-NN"),
        ({"stop_below": ("loss 1 at 2",)}, "an evaluation measures knn or feature_rank"),
    ):
        with pytest.raises(sd.InputError, match=why):
            lines_of(tmp_path / "run", **words)
        assert not (tmp_path / "run").exists()
    with pytest.raises(sd.InputError, match="must be METRIC VALUE at STEP"):
        sd.resume(lines_of(tmp_path / "other", stop_below=None)[0].folder, stop_below=("40",))
