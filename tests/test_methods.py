"""Whole runs of every method on digits: in micro-batches, stopped and resumed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

import simdino as sd
from simdino.assembly import build
from simdino.config import Config
from simdino.losses.simdino import SimDINO
from simdino.losses.simdinov2 import SimDINOv2
from simdino.methods import METHODS as KNOWN
from simdino.methods import make_loss, make_student
from simdino.options import setting_of
from simdino.runs.checkpoints import checkpoints
from simdino.runs.run import Run
from simdino.train.parallel import Processes
from simdino.train.step import step

TINY = {
    "batch": 16, "encoder": "vit_toy", "patch_size": 2, "threads": 1, "precision": "float32", "device": "cpu",
    "steps": 4, "evaluate_every": 2, "local_views": 2, "drop_path": 0.2,
}  # fmt: skip
MORE = {"prototypes": 32, "patch_rate": 1.0}
METHODS: dict[str, dict[str, object]] = {
    **{
        name: {"method": name} | {word: value for word, value in MORE.items() if setting_of(word).of(method)}
        for name, method in KNOWN.items() if name != "simdino"
    },
    "dinov2, sinkhorn, no teacher": {
        "method": "dinov2", "prototypes": 32, "centering": "sinkhorn", "teacher": "none",
    },
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("one_thread")


def quiet(_: object) -> None:
    """Nothing."""


def planned(name: str, **speed: object) -> Config:
    config = sd.recipes.auto("digits", **{**TINY, **METHODS[name]})
    return dataclasses.replace(config, speed=dataclasses.replace(config.speed, **speed))


@pytest.fixture(scope="module", params=METHODS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pico: None) -> Run:
    return sd.pretrain(planned(request.param), tmp_path_factory.mktemp("run") / "digits", log=quiet)


@pytest.mark.slow
def test_a_run_ends_with_an_encoder_and_finite_numbers(run: Run) -> None:
    rows = [row for row in run.rows if "loss" in row]
    assert rows[-1]["step"] == 4
    assert all(torch.tensor(row["loss"]).isfinite() for row in rows)
    assert 0 < rows[-1]["expansion_fraction"] < 1 and rows[-1]["effective_rank"] > 1
    assert sd.load_encoder(run.folder).embed_dim == 32


@pytest.mark.slow
def test_a_stopped_run_ends_as_the_one_that_never_was_with_its_memory(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    shutil.rmtree(checkpoints(folder)[-1])
    sd.resume(folder, log=quiet)
    ours, theirs = (
        torch.load(checkpoints(where)[-1] / "state.pt", weights_only=True) for where in (folder, run.folder)
    )
    assert ours["step"] == theirs["step"] == 4
    for group in ("student", "teacher", "buffers"):
        assert ours[group].keys() == theirs[group].keys()
        assert all(torch.equal(value, theirs[group][name]) for name, value in ours[group].items())
    names = {"dino": {"center"}, "dinov2": {"center", "patch_center"}}.get(run.config.run.method, set())
    assert ours["buffers"].keys() == names and all(value.any() for value in ours["buffers"].values())


@pytest.mark.slow
@pytest.mark.parametrize("speed", [{"workers": 2}, {"micro_batch": 5}], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_what_only_changes_the_speed_changes_no_loss(name: str, speed: dict[str, object]) -> None:
    losses = []
    for config in (planned(name), planned(name, **speed)):
        parts = build(config, Processes())
        losses.append([
            float(step(
                parts.state, views, parts.loss, steps=4, optim=config.optim, micro_batch=config.speed.micro_batch,
                autocast=torch.autocast("cpu", enabled=False),
            )["loss"])
            for views, _ in parts.loader.steps(0, 4)
        ])  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_heads_are_those_of_the_method(name: str) -> None:
    config = planned(name)
    student = build(config, Processes()).state.student
    last = student.projector.prototypes
    assert student.patch_projector is None
    assert (last is not None) == ("prototypes" in KNOWN[config.run.method].parts)
    if last is not None:
        assert last.directions.shape == (32, 256)
        assert last.lengths.requires_grad == (config.run.method == "dinov2")


@pytest.mark.slow
@pytest.mark.parametrize(("share", "heads"), [(0.5, 2), (0.0, 1)])
@pytest.mark.parametrize("name", ["simdinov2", "dinov2"])
def test_patches_have_a_head_of_their_own_and_a_loss_only_where_some_are_masked(
    name: str, share: float, heads: int
) -> None:
    config = planned(name)
    config = dataclasses.replace(
        config, projector=dataclasses.replace(config.projector, separate=True),
        views=dataclasses.replace(config.views, mask_share=share),
    )  # fmt: skip
    assert len(make_student(config, build(config, Processes()).state.student.encoder).heads()) == heads
    loss = make_loss(config)
    assert isinstance(loss, SimDINOv2 if share else SimDINO) or name == "dinov2"
    assert getattr(loss, "patch_weight", 0.0) == (1.0 if share else 0.0)
    parts = build(config, Processes())
    views, _ = next(parts.loader.steps(0, 1))
    assert (views.masks is not None) == (share > 0)
    said = step(
        parts.state, views, parts.loss, steps=4, optim=config.optim, autocast=torch.autocast("cpu", enabled=False)
    )
    assert any("patch" in term for term in said) == (share > 0)
