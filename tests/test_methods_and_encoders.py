"""Every method trains with every kind of encoder, and what cannot be is said in one line."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch

from simdino.assembly import build
from simdino.contracts import InputError
from simdino.methods import METHODS
from simdino.models.catalogue import ENCODERS, kind_of
from simdino.models.crate import crate
from simdino.options import Options
from simdino.plan import plan
from simdino.pretraining import pretrain, resume
from simdino.runs.checkpoints import checkpoints
from simdino.train.parallel import Processes

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def a_small_crate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "crate_toy", crate(16, 1, 2))


QUICK = {"steps": 4, "batch": 16, "threads": 1, "precision": "float32", "device": "cpu"}


def run(folder: Path, **words: Any) -> Any:
    lines: list[str] = []
    planned = plan("digits", Options(**QUICK, **words), folder, log=lines.append)
    return planned.config, pretrain(planned, folder, log=lines.append), lines


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "encoder",
    ["vit_toy", "crate_toy", "conv_pico", "hybrid_nano", pytest.param("test_resnet", marks=pytest.mark.extra("timm"))],
)
def test_every_method_trains_every_kind_of_encoder(tmp_path: Path, method: Any, encoder: str) -> None:
    prototypes = 32 if "prototypes" in METHODS[method].parts else None
    config, done, lines = run(tmp_path / "run", method=method, encoder=encoder, prototypes=prototypes)
    assert done.rows[-1]["step"] == 4
    assert all(isfinite(row["loss"]) for row in done.rows if "loss" in row)
    masks = "masks" in METHODS[method].parts
    masked = masks and encoder != "test_resnet"
    terms = {name for row in done.rows for name in row}
    assert bool({"patch_distance", "patch_cross_entropy"} & terms) == masked == (config.views.mask_share > 0)
    assert any("without masks" in line for line in lines) == (masks and not masked)
    assert done.encoder.config.name.removeprefix("timm:") == encoder


@pytest.mark.parametrize("words", [{"method": "dinov2", "prototypes": 16}, {"method": "dino", "prototypes": 16}])
def test_what_a_loss_remembers_is_in_the_checkpoint(tmp_path: Path, words: dict[str, Any]) -> None:
    _, done, _ = run(tmp_path / "run", **words)
    saved = torch.load(checkpoints(done.folder)[-1] / "state.pt", weights_only=True)["buffers"]
    expected = {"center", "patch_center"} if words["method"] == "dinov2" else {"center"}
    assert saved.keys() == expected and all(value.abs().sum() > 0 for value in saved.values())


def test_without_a_teacher_of_its_own_the_teacher_is_the_student(tmp_path: Path) -> None:
    _, done, _ = run(tmp_path / "run", teacher="none")
    state = torch.load(checkpoints(done.folder)[-1] / "state.pt", weights_only=True)
    assert all(torch.equal(value, state["student"][name]) for name, value in state["teacher"].items())
    assert {row["momentum"] for row in done.rows if "momentum" in row} == {0.0}


@pytest.mark.extra("timm")
def test_batch_normalisation_is_refused_where_it_would_change_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--micro-batch 8: timm:test_resnet normalises over its batch"):
        run(tmp_path / "run", encoder="test_resnet", micro_batch=8)
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    assert Processes().synchronised(network) is network
    with pytest.raises(InputError, match="several processes on a CPU"):
        Processes(rank=0, world=2).synchronised(network)
    plain = torch.nn.Linear(2, 2)
    assert Processes(rank=0, world=2).synchronised(plain) is plain


# --- from trained weights ---------------------------------------------------------------------------------------------


def test_training_goes_on_from_weights_with_the_encoder_frozen_first(tmp_path: Path) -> None:
    _, first, _ = run(tmp_path / "first", encoder="vit_toy")
    config, second, _ = run(tmp_path / "second", init=str(first.folder), freeze_encoder=0.99)
    assert (config.optim.optimizer, config.optim.teacher) == ("adamw", "ema")
    assert config.encoder == first.config.encoder and config.optim.layer_decay < 1
    assert config.optim.lr == pytest.approx(0.4 * first.config.optim.lr / kind_of("vit_toy").muon_rate)
    assert second.rows[0]["knn"] == first.rows[-1]["knn"]  # step 0 is where the first run ended
    start, end = first.encoder.state_dict(), second.encoder.state_dict()
    assert all(torch.equal(value, end[name]) for name, value in start.items())
    assert f"of the weights in {first.folder}" in " ".join(second.lines())
    assert second.summary()["knn_random"] == second.rows[0]["knn_random"] == first.rows[0]["knn"]


def test_a_run_from_weights_resumes_without_them(tmp_path: Path) -> None:
    _, first, _ = run(tmp_path / "first", encoder="vit_toy")
    _, second, _ = run(tmp_path / "second", init=str(first.folder / "encoder.safetensors"))
    (first.folder / "encoder.safetensors").unlink()
    (second.folder / "report.html").unlink()
    said: list[str] = []
    assert resume(second.folder, log=said.append).rows[-1]["step"] == 4 and said


def test_a_mask_token_is_added_where_the_method_needs_one(tmp_path: Path) -> None:
    _, first, _ = run(tmp_path / "first", encoder="vit_toy")
    assert not first.config.encoder.mask_token
    config, second, _ = run(tmp_path / "second", init=str(first.folder), method="simdinov2")
    assert config.encoder.mask_token and "patch_distance" in second.rows[1]


@pytest.mark.parametrize("asked", [{"encoder": "vit_nano"}, {"patch_embed": "dual_norm"}])
def test_weights_say_what_the_encoder_is(tmp_path: Path, asked: dict[str, str]) -> None:
    _, first, _ = run(tmp_path / "first", encoder="vit_toy")
    with pytest.raises(InputError, match=r"--(encoder|patch-embed) contradicts --init"):
        run(tmp_path / "second", init=str(first.folder), **asked)


def test_a_mask_token_that_nothing_trains_is_frozen(tmp_path: Path) -> None:
    """Else several processes wait for its gradient, which never comes."""
    _, first, _ = run(tmp_path / "first", encoder="vit_toy", method="simdinov2")
    config, second, _ = run(tmp_path / "second", init=str(first.folder), method="simdino")
    parts = build(config, Processes())
    views, _ = next(parts.loader.steps(0, 1))
    student = parts.state.student
    parts.loss(student(views), student(views)).total.backward()
    assert all((p.grad is not None) == p.requires_grad for p in student.parameters())
    before, after = (done.encoder.state_dict()["mask_token"] for done in (first, second))
    assert before.any() and torch.equal(before, after)


def test_a_strong_rate_is_said_before_it_expands(tmp_path: Path) -> None:
    *_, lines = run(tmp_path / "run", encoder="vit_toy", gamma=1.0)
    assert any("tends to over-expansion" in line for line in lines)
    *_, lines = run(tmp_path / "other", encoder="vit_toy")
    assert not any("over-expansion" in line for line in lines)


def test_a_run_goes_on_where_its_device_is_missing(tmp_path: Path) -> None:
    _, first, _ = run(tmp_path / "run", encoder="vit_toy")
    (first.folder / "report.html").unlink()
    told = first.folder / "config.json"
    told.write_text(told.read_text().replace('"device": "cpu"', '"device": "cuda:7"'))
    said: list[str] = []
    assert resume(first.folder, log=said.append).rows[-1]["step"] == 4
    assert "this run was on cuda:7, which is not here" in said[0]
