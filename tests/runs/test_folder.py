"""A run folder's own files: who may write there, and what they say afterwards."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from simdino import files
from simdino.config import Config
from simdino.contracts import InputError
from simdino.options import Options
from simdino.recipes import resolve
from simdino.runs.folder import (
    LOCK,
    Metrics,
    check_free,
    claim,
    is_finished,
    read_broken,
    reopen,
    sole,
    trainer_of,
    write_broken,
)
from simdino.saved import read_rows


@pytest.fixture(scope="module")
def config() -> Config:
    return resolve("digits", Options(steps=9, patch_size=4))


def test_an_empty_folder_and_one_that_is_not_there_are_free(tmp_path: Path) -> None:
    check_free(tmp_path)
    check_free(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == [], "asking makes nothing"
    claim(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_what_a_kill_at_the_very_start_left_is_no_foreign_file(tmp_path: Path) -> None:
    (tmp_path / ".writing-config.json").write_text("{")
    check_free(tmp_path)


def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot be written: File exists"):
        claim(tmp_path / "link")


def test_names_of_broken_images_come_back_whatever_is_in_them(tmp_path: Path) -> None:
    names = [
        "a.jpg",
        "tab\there.png",
        "two\nlines.png",
        r"back\slash\n.png",
        "no utf-8 \udcff.jpg",
        "ümläut\x85.jpg",
        "\r",
    ]
    broken = {name: f"reason {i}" for i, name in enumerate(names)}
    write_broken(tmp_path, broken)
    assert read_broken(tmp_path) == broken
    assert (tmp_path / "broken.txt").read_bytes().count(b"\n") == len(names)


def test_without_broken_images_there_is_no_list(tmp_path: Path) -> None:
    write_broken(tmp_path, {})
    assert read_broken(tmp_path) == {}
    assert not (tmp_path / "broken.txt").exists()


def test_a_run_without_its_report_is_not_finished(tmp_path: Path, config: Config) -> None:
    assert not is_finished(tmp_path, config)
    (tmp_path / "checkpoints" / "step-00000009").mkdir(parents=True)
    assert not is_finished(tmp_path, config)
    (tmp_path / "report.html").write_text("")
    assert not is_finished(tmp_path, config), "its last checkpoint is damaged, so the steps up to it are taken again"
    reopen(tmp_path)
    assert not is_finished(tmp_path, config)


@pytest.mark.parametrize("tail", ['{"step": 3, "lo', "\x00\x00\x00", "[3]\n", '{"loss": 1}\n', "12\n"])
def test_rows_are_read_up_to_the_first_that_is_damaged(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n' + tail)
    assert [row["step"] for row in read_rows(path)] == [1, 2]


def test_opening_metrics_at_a_step_drops_what_came_after_it(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, step=0)
    for step in range(5):
        metrics.write({"step": step, "loss": 1 / (1 + step)})
    metrics.close()
    again = Metrics(tmp_path, step=2)
    again.close()
    assert (
        [row["step"] for row in again.rows] == [0, 1, 2] == [row["step"] for row in read_rows(again.paths["metrics"])]
    )


def test_the_best_step_is_the_earliest_of_the_best_scores_after_the_start(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, step=0)
    assert metrics.best_step() is None
    for step, score in enumerate([99.0, 50.0, 70.0, 70.0, 60.0]):
        metrics.write({"step": step, "knn": score})
    metrics.write({"step": 5, "knn": None})
    metrics.close()
    assert metrics.best_step() == 2


def lock(folder: Path) -> subprocess.CompletedProcess[str]:
    code = f"from pathlib import Path; from simdino.runs.folder import sole\nwith sole(Path({str(folder)!r})): pass"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    with sole(tmp_path):
        assert "InputError: another process is training in" in lock(tmp_path).stderr
        assert trainer_of(tmp_path) is not None  # a look at it must not give the lock up
        assert "InputError: another process is training in" in lock(tmp_path).stderr
    assert lock(tmp_path).returncode == 0 and not list(tmp_path.iterdir())


def test_a_lock_that_lost_its_name_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take = files.fcntl.lockf

    def late(file: object, how: int) -> None:
        take(file, how)
        (tmp_path / LOCK).unlink()  # the process before ends here

    monkeypatch.setattr(files.fcntl, "lockf", late)
    with pytest.raises(InputError, match="a moment ago: try again"), sole(tmp_path):
        pass


def test_a_file_system_without_locks_is_no_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "lockf", refuse)
    with sole(tmp_path):
        check_free(tmp_path)


def test_a_folder_that_is_being_locked_is_still_free(tmp_path: Path) -> None:
    with sole(tmp_path):
        check_free(tmp_path)  # so that a second process is told of the first by the lock
