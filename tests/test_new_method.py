"""A method is one file: one that is put into METHODS trains, resumes, is judged, reported and named by the help."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import simdino as sd
from simdino.config import Config, LossConfig
from simdino.contracts import AllReduce, Embeddings, InputError, Loss
from simdino.losses.objective import Objective
from simdino.methods import METHODS
from simdino.methods.method import Curve, Method, sizes
from simdino.options import Options, setting_of
from simdino.recipes import resolve
from simdino.runs.checkpoints import checkpoints
from simdino.settings import Range, setting

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
TINY = {
    "method": "toy", "steps": 4, "batch": 16, "encoder": "vit_toy", "patch_size": 2, "threads": 1,
    "precision": "float32", "device": "cpu", "evaluate_every": 2,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ToyConfig(LossConfig):
    """The settings of `Toy`."""

    strength: float = setting(1.0, "How hard views are pulled together.", Range(above=0, at_most=100), word="strength")


@dataclass(frozen=True, kw_only=True)
class Toy(Objective):
    """The distance between the student's first global view and the teacher's second."""

    strength: float

    def loss(self, student: Embeddings, teacher: Embeddings, statistics: object, all_reduce: AllReduce) -> Loss:
        distance = (student.cls[0] - teacher.cls[1]).square().sum(-1).double()
        total = self.strength * all_reduce(distance.sum()) / self.batch
        return Loss(total=total, terms={"toy_distance": total})


def toy_loss(config: Config) -> Toy:
    assert isinstance(config.loss, ToyConfig)
    return Toy(**sizes(config), strength=config.loss.strength)


TOY = Method(
    name="toy", about="A toy that only pulls views together.", settings=ToyConfig, objective=toy_loss,
    terms=(Curve(key="toy_distance", title="Distance of the toy", caption="Good: falls."),),
)  # fmt: skip


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "toy", TOY)


def quiet(_: object) -> None:
    """Nothing."""


def test_it_trains_resumes_is_judged_and_reported(tmp_path: Path) -> None:
    run = sd.pretrain("digits", tmp_path / "run", log=quiet, settings={"loss.strength": 2.0}, **TINY)
    assert (run.config.run.method, run.config.loss) == ("toy", ToyConfig(strength=2.0))
    assert run.verdict.status in ("healthy", "collapse", "worse than at the start")
    assert "alignment" in run.verdict.sentence and "effective rank" in run.verdict.sentence
    for row in (row for row in run.rows if "loss" in row):
        assert row["alignment"] <= 1 and row["effective_rank"] >= 1, "logged whatever the loss"
    assert "Distance of the toy" in (run.folder / "report.html").read_text()
    copy = tmp_path / "copy"
    shutil.copytree(run.folder, copy)
    shutil.rmtree(checkpoints(copy)[-1])
    sd.resume(copy, log=quiet)
    ours, theirs = (torch.load(checkpoints(one)[-1] / "state.pt", weights_only=True) for one in (copy, run.folder))
    assert all(torch.equal(value, theirs["student"][name]) for name, value in ours["student"].items())


def test_a_collapse_of_it_is_named(tmp_path: Path) -> None:
    """Nothing but a pull: with a high rate all features are soon one."""
    run = sd.pretrain("digits", tmp_path / "run", log=quiet, **{**TINY, "steps": 60, "evaluate_every": 60, "lr": 0.02})
    assert run.verdict.status == "collapse" and "nearly the same feature" in run.verdict.sentence
    found = sd.evaluate.health(run.folder, "digits", images=40, view_images=4, views=2)
    named = {word for text in (found.sentence, run.verdict.sentence) for word in re.findall(r"--[a-z][a-z-]*", text)}
    assert named and all(setting_of(word[2:]).of(TOY) for word in named), "settings that it has"


def test_its_settings_are_its_own() -> None:
    assert resolve("digits", Options(TINY | {"strength": 3.0})).loss == ToyConfig(strength=3.0)
    with pytest.raises(InputError, match="--strength has no meaning for --method dino"):
        resolve("digits", Options(TINY | {"method": "dino", "strength": 3.0}))
    with pytest.raises(InputError, match="--eps has no meaning for --method toy"):
        resolve("digits", Options(TINY | {"eps": 0.3}))


def test_it_is_named_by_the_help() -> None:
    code = (
        "from dataclasses import replace\nfrom simdino.methods import METHODS\n"
        "METHODS['toy'] = replace(METHODS['dino'], name='toy')\n"
        "from simdino.cli import main\nmain(['pretrain', '--help'])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "dinov2|toy]" in said and "For dino and dinov2 and toy:" in " ".join(said.split())
