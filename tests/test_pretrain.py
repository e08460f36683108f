"""Runs as a whole: what only changes the speed changes no result, and the folder holds what it promises."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import simdino as sd
from simdino.assembly import build
from simdino.contracts import Embeddings, Tokens, identity
from simdino.losses import simdino as simdino_loss
from simdino.methods import read_config
from simdino.models.layers import DropPathRows
from simdino.models.vit import PatchTransformer
from simdino.models.weights import load_encoder
from simdino.runs.checkpoints import checkpoints, step_of
from simdino.runs.run import Run
from simdino.saved import read_rows
from simdino.train.parallel import Processes
from simdino.train.step import step

TINY = {"batch": 16, "encoder": "vit_toy", "patch_size": 4, "threads": 1, "precision": "float32", "device": "cpu"}
CPU_FLOAT32 = torch.autocast("cpu", enabled=False)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def quiet(_: object) -> None:
    """Nothing."""


def small(**words: object) -> sd.Config:
    return sd.recipes.auto("digits", **{**TINY, **words})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pico: None) -> Run:
    """Ten steps, evaluated after every other one."""
    config = small(steps=10, evaluate_every=2)
    return sd.pretrain(config, tmp_path_factory.mktemp("run") / "digits", log=quiet)


# The speed group


def ten_losses(
    *, autocast: torch.autocast = CPU_FLOAT32, log: Callable[[str], None] = quiet, **speed: object
) -> list[float]:
    config = small(steps=10, drop_path=0.2, local_views=2)
    config = dataclasses.replace(config, speed=dataclasses.replace(config.speed, **speed))
    parts = build(config, Processes(), log=log)
    return [
        float(
            step(
                parts.state, views, parts.loss, steps=10, optim=config.optim, all_reduce=identity, autocast=autocast,
                micro_batch=config.speed.micro_batch,
            )["loss"]
        )
        for views, _ in parts.loader.steps(0, 10)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def golden(pico: None) -> list[float]:
    torch.set_num_threads(1)
    return ten_losses()


def test_workers_leave_ten_losses_unchanged_bit_by_bit(golden: list[float]) -> None:
    assert ten_losses(workers=2, prefetch=3) == golden


@pytest.mark.parametrize("size", [5, 8])
def test_micro_batches_leave_ten_losses_unchanged_within_rounding(golden: list[float], size: int) -> None:
    assert ten_losses(micro_batch=size) == pytest.approx(golden, abs=2e-5)


def test_bfloat16_leaves_ten_losses_unchanged_within_its_rounding(golden: list[float]) -> None:
    losses = ten_losses(autocast=torch.autocast("cpu", torch.bfloat16))
    assert losses != golden
    assert losses == pytest.approx(golden, abs=10 * 2**-8)  # ten steps; bfloat16 has eight bits, losses are near 1


def test_compiled_blocks_leave_ten_losses_unchanged_within_rounding(golden: list[float]) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler for a CPU")
    said: list[str] = []
    assert ten_losses(compile=True, log=said.append) == pytest.approx(golden, abs=2e-5)
    assert said == []


def test_a_run_without_a_compiler_says_so_and_goes_on(golden: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nand a long trace")

    monkeypatch.setattr(nn.Module, "compile", lambda block, **_: setattr(block, "_compiled_call_impl", broken))
    said: list[str] = []
    assert ten_losses(compile=True, log=said.append) == golden
    assert said == ["warning: --compile does not work here and is left out: no compiler"]


def test_without_the_savings_of_the_encoder_ten_losses_are_the_same(
    golden: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token of the last block, every branch of every image, multiplied by 0 where it is dropped."""

    def add_all(to: Tensor, branch: Callable[[Tensor], Tensor], of: Tensor, kept: DropPathRows | None) -> Tensor:
        if kept is None:
            return to + branch(of)
        mask = torch.zeros(len(to), 1, 1).index_fill(0, kept.rows, kept.factor)
        return to + mask * branch(of)

    computed, forward = [], PatchTransformer.forward

    def all_tokens(self: PatchTransformer, images: Tensor, *, patches: bool = True, **words: Any) -> Tokens:
        computed.append(patches)
        return forward(self, images, patches=True, **words)

    monkeypatch.setattr("simdino.models.layers.add_branch", add_all)
    monkeypatch.setattr(PatchTransformer, "forward", all_tokens)
    assert ten_losses() == pytest.approx(golden, abs=2e-5)
    assert computed
    assert not any(computed), "a run asks for no patches, so that this saving is one"


def test_another_seed_changes_them(golden: list[float]) -> None:
    config = small(steps=10, drop_path=0.2, local_views=2, seed=1)
    parts = build(config, Processes())
    views, _ = next(parts.loader.steps(0, 1))
    first = step(parts.state, views, parts.loss, steps=10, optim=config.optim, autocast=CPU_FLOAT32)["loss"]
    assert float(first) != pytest.approx(golden[0], abs=1e-4)


def test_two_processes_under_torchrun_write_the_metrics_of_one(tmp_path: Path) -> None:
    words = "digits --steps 4 --evaluate-every 4 --batch 16 --patch-size 4 --precision float32 --threads 1"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launch = [*torchrun, "-m", "simdino", "pretrain"]
    two = subprocess.run(
        [*launch, *words.split(), "--json", "--out", str(tmp_path / "two")], capture_output=True, text=True, check=False
    )
    assert two.returncode == 0, two.stderr
    assert json.loads(two.stdout)["step"] == 4, "one process answers for both"
    config = sd.recipes.auto("digits", **{**TINY, "encoder": None, "steps": 4, "evaluate_every": 4})
    sd.pretrain(config, tmp_path / "one", log=quiet)
    ours, theirs = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        for name, value in other.items():
            assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-4), (other["step"], name)


def test_two_processes_plan_a_run_by_minutes_together(tmp_path: Path) -> None:
    words = "--minutes 0.2 --encoder vit_pico --batch 16 --patch-size 4 --threads 1 --json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launch = [*torchrun, "-m", "simdino", "pretrain", "digits", *words.split(), "--out", str(tmp_path / "run")]
    done = subprocess.run(launch, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == json.loads(done.stdout)["steps"] > 0


# The run folder


def test_a_run_folder_holds_what_is_promised(run: Run) -> None:
    files = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("tensorboard/events")}
    states = {name for name in files if name.startswith("checkpoints/")}
    assert len(events) == 1
    assert files - events - states == {
        "config.json", "metrics.jsonl", "speed.jsonl", "encoder.safetensors", "encoder-best.safetensors", "report.html",
        "pictures/views.png", "pictures/neighbours.png", "pictures/attention.png", "pictures/masks.png",
    }  # fmt: skip
    told = json.loads((run.folder / "config.json").read_text())
    assert told["config"] == json.loads(json.dumps(run.config.as_dict()))
    assert told.keys() == {"simdino", "source_revision", "command", "machine", "config", "data"}


def test_metrics_have_a_line_for_each_step_and_each_evaluation(run: Run) -> None:
    rows = read_rows(run.folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 11))
    assert [row["step"] for row in rows if "knn" in row] == [0, 2, 4, 6, 8, 10]
    speed = read_rows(run.folder / "speed.jsonl")
    assert {"images_per_second", "mfu", "data_wait", "seconds"} <= speed[0].keys()
    assert all(0 < row["mfu"] < 2 for row in speed)  # of a measured peak, which noise may lower


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    config = small(steps=9, evaluate_every=3, checkpoint_every=1)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, keep=2))
    scores = iter([10.0, 30.0, 20.0, 20.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simdino.evaluate.monitor.Monitor.__call__", lambda *_: {"knn": next(scores), "knn_pixels": 50.0})
        run = sd.pretrain(config, tmp_path / "run", log=quiet)
    assert [step_of(path) for path in checkpoints(run.folder)] == [3, 8, 9]
    best = torch.load(checkpoints(run.folder)[0] / "state.pt", weights_only=True)["teacher"]
    for name, value in load_encoder(run.folder / "encoder-best.safetensors").state_dict().items():
        assert torch.equal(value, best[f"encoder.{name}"]), name
    assert run.summary() | {"knn": 20.0, "knn_best": 30.0, "knn_random": 10.0, "broken": 0} == run.summary()


def test_the_encoder_file_alone_is_enough_somewhere_else(run: Run, tmp_path: Path) -> None:
    alone = tmp_path / "renamed.safetensors"
    shutil.copy(run.folder / "encoder.safetensors", alone)
    encoder, images = load_encoder(alone), torch.rand(2, 1, 8, 8)
    assert not encoder.training
    assert all(p.dtype == torch.float32 for p in encoder.parameters())
    with torch.no_grad():
        tokens, expected = encoder(images), run.encoder(images)
    assert torch.equal(tokens.cls, expected.cls)
    assert tokens.patches.shape == (2, 4, 32)
    assert tokens.grid == (2, 2)


def test_the_lines_of_the_readme_work_from_python(run: Run) -> None:
    encoder = sd.load_encoder(run.folder)
    result = sd.evaluate.knn(encoder, "digits", k=20, baselines=False)
    assert 10 < result.encoder.top1 <= 100
    again = sd.resume(run.folder, log=quiet)
    assert again.summary() == run.summary()


def test_a_config_can_be_printed_compared_and_saved(run: Run) -> None:
    again = read_config(json.loads(json.dumps(run.config.as_dict())))
    assert again == run.config
    assert again != dataclasses.replace(again, run=dataclasses.replace(again.run, seed=1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        again.run.steps = 3


# What goes wrong


def test_a_loss_that_is_not_finite_ends_with_one_line_that_names_the_term_and_harms_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from simdino.cli import main

    folder, honest, calls = tmp_path / "run", simdino_loss.alignment_sums, []

    def sick(*embeddings: Embeddings):  # type: ignore[no-untyped-def]
        calls.append(1)
        distances, count, pulls = honest(*embeddings)
        late = len(calls) > 5  # the first is counted, not taken
        return distances * (float("nan") if late else 1), count, pulls

    monkeypatch.setattr(simdino_loss, "alignment_sums", sick)
    words = "pretrain digits --steps 9 --batch 8 --encoder vit_toy --patch-size 4 --threads 1 --checkpoint-every 2"
    with pytest.raises(SystemExit) as end:
        main([*words.split(), "--evaluate-every", "9", "--out", str(folder)])
    assert end.value.code == 1
    captured = capsys.readouterr()
    said = [line for line in captured.err.splitlines() if line.startswith("simdino: ")]
    assert said == ["simdino: distance is nan in step 5; the weights were not changed"]
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert [step_of(path) for path in checkpoints(folder)] == [2, 4]
    assert all(value.isfinite().all() for value in load_encoder(folder).state_dict().values())
    monkeypatch.undo()
    from simdino.models.catalogue import ENCODERS
    from simdino.models.vit import vit

    ENCODERS["vit_toy"] = vit(32, 1, 2)
    assert sd.resume(folder, log=quiet).summary()["step"] == 9


def test_a_learning_rate_that_is_far_too_high_is_refused() -> None:
    with pytest.raises(sd.InputError, match=r"--lr 1e\+38 must be above 0, at most 10"):
        small(steps=9, lr=1e38)


def test_data_that_changed_since_the_run_began_are_refused(tmp_path: Path) -> None:
    config = small(steps=2)
    grown = dataclasses.replace(config, data=dataclasses.replace(config.data, train_images=1000))
    with pytest.raises(sd.InputError, match="digits has changed: 1437 training images, 1000 when the run was planned"):
        sd.pretrain(grown, tmp_path / "run", log=quiet)


def test_a_run_in_a_thread_that_gets_no_signals_trains_all_the_same(tmp_path: Path) -> None:
    done: list[object] = []
    thread = threading.Thread(target=lambda: done.append(sd.pretrain(small(steps=2), tmp_path / "run", log=quiet)))
    thread.start()
    thread.join()
    assert len(done) == 1


def test_training_leaves_signal_handlers_and_random_numbers_alone(tmp_path: Path) -> None:
    import random
    import signal

    import numpy as np

    def state() -> tuple[object, ...]:
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        return handlers, torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr] # noqa: NPY002

    before = state()
    sd.pretrain(small(steps=2), tmp_path / "run", log=quiet)
    assert state() == before
