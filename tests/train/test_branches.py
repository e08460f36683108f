"""A trunk is prolonged as if its length had been asked for, and cooled down as if that had been planned: bit by bit."""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import simdino as sd
from simdino.cli import main
from simdino.contracts import InputError
from simdino.options import Options
from simdino.plan import plan
from simdino.runs.branches import COPYING
from simdino.runs.checkpoints import checkpoints, step_of
from simdino.runs.folder import TRAINER
from simdino.runs.run import Run, key_numbers
from simdino.saved import read_metadata, read_rows
from train.test_resume import leaves

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
WARM = 4
WORDS: dict[str, Any] = {
    "batch": 8, "encoder": "vit_toy", "patch_size": 4, "threads": 1, "precision": "float32", "device": "cpu",
    "schedule": "wsd", "evaluate_every": 4, "checkpoint_every": 4, "keep": 9, "lr": 1e-3,
    "teacher": "ema", "drop_path": 0.1,
}  # fmt: skip


def quiet(_: object) -> None:
    """Nothing."""


def trained(folder: Path, steps: int, *, cool: int, **more: Any) -> Run:
    """A run with a warm-up of WARM steps and a cool-down of `cool`."""
    settings = {"optim.warmup": WARM / steps, "optim.cooldown": cool / steps, "run.log_every": 1}
    options = Options(settings, **{**WORDS, **more}, steps=steps)
    return sd.pretrain(plan("digits", options, folder, log=quiet), folder, log=quiet)


def state(folder: Path, step: int) -> dict[str, Any]:
    path = folder / "checkpoints" / f"step-{step:08d}" / "state.pt"
    return dict(leaves(torch.load(path, weights_only=True)))


def assert_same_end(ours: Path, theirs: Path, step: int) -> None:
    one, two = state(ours, step), state(theirs, step)
    assert one.keys() == two.keys()
    for name, value in one.items():
        same = torch.equal(value, two[name]) if isinstance(value, torch.Tensor) else value == two[name]
        assert same, name
    assert (ours / "encoder.safetensors").read_bytes() == (theirs / "encoder.safetensors").read_bytes()


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory, pico: None) -> Path:
    """16 steps without a cool-down."""
    folder = tmp_path_factory.mktemp("trunk") / "run"
    trained(folder, 16, cool=0)
    return folder


@pytest.fixture
def copied(trunk: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trunk, tmp_path / "trunk")


@pytest.mark.parametrize("at", [None, 8])
def test_a_branch_is_the_run_that_was_planned_with_its_cool_down(trunk: Path, tmp_path: Path, at: int | None) -> None:
    start = at or 16
    before = {path: path.stat().st_mtime_ns for path in trunk.rglob("*") if path.is_file()}
    branch = sd.resume(trunk, cool_down=8, at=at, out=tmp_path / "branch", log=quiet)
    assert before == {path: path.stat().st_mtime_ns for path in trunk.rglob("*") if path.is_file()}
    planned = trained(tmp_path / "planned", start + 8, cool=8)
    assert_same_end(branch.folder, planned.folder, start + 8)
    assert (branch.folder / "metrics.jsonl").read_bytes() == (planned.folder / "metrics.jsonl").read_bytes()
    rates = [row["lr"] for row in branch.rows if "lr" in row]
    assert len(set(rates[WARM:start])) == 1 and rates[start:] == sorted(rates[start:], reverse=True)
    assert rates[-1] < rates[start - 1] / 3
    assert read_metadata(branch.folder).branch == {"run": str(trunk), "step": start}
    assert (branch.folder / "pictures" / "views.png").is_file() and (branch.folder / "report.html").is_file()
    best = max((row for row in branch.rows if row.get("knn") and row["step"] > start), key=lambda row: row["knn"])
    assert best["step"] in {step_of(path) for path in checkpoints(branch.folder)}
    assert (branch.folder / "encoder-best.safetensors").is_file()


def test_a_prolonged_trunk_is_the_one_of_that_length(copied: Path, tmp_path: Path) -> None:
    longer = sd.resume(copied, steps=24, log=quiet)
    assert longer.config.run.steps == longer.rows[-1]["step"] == 24
    asked = trained(tmp_path / "asked", 24, cool=0)
    assert_same_end(copied, asked.folder, 24)
    assert (copied / "metrics.jsonl").read_bytes() == (asked.folder / "metrics.jsonl").read_bytes()
    assert sd.resume(copied, log=quiet).rows == longer.rows, "and then it is finished"


def test_a_trunk_is_prolonged_while_it_is_stable_and_then_in_a_new_folder(tmp_path: Path, pico: None) -> None:
    run = trained(tmp_path / "run", 20, cool=6, keep=1)
    assert {14, 20} <= {step_of(path) for path in checkpoints(run.folder)}, "the end of the trunk stays"
    with pytest.raises(sd.InputError, match="has been cooling down since step 14") as refused:
        sd.resume(run.folder, steps=40, log=quiet)
    assert "\n" not in str(refused.value) and "--steps 40 --out NEW" in str(refused.value)
    longer = sd.resume(run.folder, steps=40, out=tmp_path / "longer", log=quiet)
    asked = trained(tmp_path / "asked", 40, cool=12)
    assert longer.config.optim.cooldown == pytest.approx(0.3) == asked.config.optim.cooldown
    assert_same_end(longer.folder, asked.folder, 40)
    assert read_rows(run.folder / "metrics.jsonl") == run.rows


def test_a_branch_that_was_killed_goes_on_to_the_same_end(trunk: Path, tmp_path: Path) -> None:
    whole = sd.resume(trunk, cool_down=8, out=tmp_path / "whole", log=quiet)
    killed = shutil.copytree(whole.folder, tmp_path / "killed")
    (killed / "report.html").unlink()
    for path in checkpoints(killed):
        if step_of(path) > 16:
            shutil.rmtree(path)
    for name in ("encoder.safetensors", "encoder-best.safetensors"):
        (killed / name).unlink()
    sd.resume(killed, log=quiet)
    assert_same_end(killed, whole.folder, 24)
    for name in ("metrics.jsonl", "encoder-best.safetensors"):
        assert (killed / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_prolonged_run_that_was_killed_knows_its_length(copied: Path, trunk: Path) -> None:
    longer = sd.resume(copied, steps=24, log=quiet)
    for path in checkpoints(copied):
        if step_of(path) > 16:
            shutil.rmtree(path)
    (copied / "report.html").unlink()
    again = sd.resume(copied, log=quiet)
    assert (
        again.rows == longer.rows and json.loads((copied / "config.json").read_text())["config"]["run"]["steps"] == 24
    )


def test_branches_have_a_folder_of_their_own(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pretrain", "--resume", str(copied), "--cool-down", "4", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["run"] == f"{copied}-cooled-20" and told["step"] == told["steps"] == 20
    with pytest.raises(SystemExit) as twice:
        main(["pretrain", "--resume", str(copied), "--cool-down", "4"])
    assert twice.value.code == 2 and "holds a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"cool_down": 4, "at": 5}, "has no checkpoint of step 5 in its trunk, which is stable from step 4 to 16"),
        ({"cool_down": 4, "at": 5}, "it keeps 4, 8, 12, 16"),
        ({"steps": 16}, "--steps 16 is no more than"),
        ({"steps": 0}, "--steps 0 must be 1 or more"),
        ({"steps": 20, "at": 8}, "--at has no effect here"),
        ({"cool_down": 4, "guard": 2}, "--guard has no effect here"),
        ({"cool_down": "4"}, "--cool-down '4' must be"),
        ({"out": "x"}, "--out has no effect here: --resume goes on in"),
    ],
)
def test_what_cannot_be_asked_of_a_trunk_is_one_line(trunk: Path, words: dict[str, Any], said: str) -> None:
    with pytest.raises(sd.InputError) as refused:
        sd.resume(trunk, log=quiet, **words)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_damaged_checkpoint_makes_no_branch(copied: Path, tmp_path: Path) -> None:
    named, before = checkpoints(copied)[-1], checkpoints(copied)[:-1]
    (named / "state.pt").write_bytes(b"")
    with pytest.raises(sd.InputError, match=r"is damaged: state\.pt does not match"):
        sd.resume(copied, cool_down=4, at=step_of(named), out=tmp_path / "branch", log=quiet)
    for checkpoint in before:
        (checkpoint / "manifest.json").unlink()
    with pytest.raises(sd.InputError, match=r"every checkpoint of .* is damaged"):
        sd.resume(copied, cool_down=4, out=tmp_path / "branch", log=quiet)
    assert not (tmp_path / "branch" / "config.json").exists()


def test_a_branch_starts_before_a_damaged_checkpoint(copied: Path, tmp_path: Path) -> None:
    before, newest = checkpoints(copied)[-2:]
    (newest / "state.pt").write_bytes(b"")
    lines: list[str] = []
    sd.resume(copied, cool_down=4, out=tmp_path / "branch", log=lines.append)
    assert f"the one before it is taken, {before.name}" in lines[0]
    assert json.loads((tmp_path / "branch" / "config.json").read_text())["branch"]["step"] == step_of(before)


def test_a_trunk_that_is_training_is_branched_after_a_named_step(copied: Path, tmp_path: Path) -> None:
    (copied / TRAINER).write_text(f"{os.getppid()} {platform.node()}\n")
    with pytest.raises(InputError, match=r"is still training \(process .*\): say after which step, --at"):
        sd.resume(copied, cool_down=2, out=tmp_path / "branch", log=quiet)
    assert sd.resume(copied, cool_down=2, at=8, out=tmp_path / "branch", log=quiet).summary()["step"] == 10


def test_a_branch_that_was_killed_while_it_was_copied_begins_anew(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("simdino.pretraining.write_config", killed)
        with pytest.raises(KeyboardInterrupt):
            sd.resume(copied, cool_down=2, at=8, out=tmp_path / "branch", log=quiet)
    assert (tmp_path / "branch" / COPYING).exists() and (tmp_path / "branch" / "checkpoints").is_dir()
    again = sd.resume(copied, cool_down=2, at=8, out=tmp_path / "branch", log=quiet)
    assert again.summary()["step"] == 10 and not (again.folder / COPYING).exists()


def test_the_best_of_a_branch_is_its_own(trunk: Path, tmp_path: Path) -> None:
    branch = sd.resume(trunk, cool_down=4, at=8, out=tmp_path / "branch", log=quiet)
    own = [row["knn"] for row in branch.rows if row.get("knn") is not None and (row["step"] > 8 or not row["step"])]
    assert len(own) < sum(row.get("knn") is not None for row in branch.rows)
    assert branch.summary()["knn_best"] == key_numbers(branch)["knn_best"] == max(own)


def test_a_folder_that_is_a_dot_has_a_branch_beside_it(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied)
    assert sd.resume(".", cool_down=2, at=8, log=quiet).folder == copied.with_name(f"{copied.name}-cooled-10")


def test_a_branch_of_no_steps_is_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--steps 16 is no more than 16, where "):
        sd.resume(copied, steps=16, out=tmp_path / "branch", log=quiet)
