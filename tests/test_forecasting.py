"""What a run would cost: the run that is forecast is the one that is made, and its numbers agree with each other."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import simdino as sd
from simdino import forecasting, recipes, timing
from simdino.assembly import build, step_bytes
from simdino.cli import main
from simdino.forecasting import Forecast, forecast, of_costs
from simdino.options import Options
from simdino.peaks import Peak
from simdino.plan import plan
from simdino.timing import Costs, Tried
from simdino.train.flops import flops_of_step
from simdino.train.parallel import Processes

WORDS: dict[str, Any] = {
    "encoder": "vit_toy", "patch_size": 4, "batch": 16, "precision": "float32", "threads": 1, "device": "cpu",
}  # fmt: skip
TRIED = (
    Tried(micro_batch=None, images_per_second=100.0, memory_mb=None),
    Tried(micro_batch=8, images_per_second=120.0, memory_mb=None),
    Tried(micro_batch=4, images_per_second=90.0, memory_mb=None),
)
COSTS = Costs(
    start=5.0, step=0.5, first_evaluation=3.0, evaluation=2.0, flops=1.6e12, memory_mb=800.0, tried=TRIED
)  # fmt: skip
IMAGES = 1437  # of digits


@pytest.fixture
def of_digits(monkeypatch: pytest.MonkeyPatch) -> Forecast:
    """Of 100 steps with planted costs on a device of 10 TFLOP/s."""
    monkeypatch.setattr(forecasting, "peak_of", lambda *_: Peak(flops=1e13, source="planted"))
    config = recipes.resolve("digits", Options(**WORDS, steps=100, evaluate_every=30))
    return of_costs(config, COSTS, gpu="A100", utilisation=0.25)


def test_the_time_is_start_steps_and_evaluations(of_digits: Forecast) -> None:
    assert of_digits.evaluations == 4, "after 30, 60, 90 and 100 steps"
    assert of_digits.start_seconds == 5 + 3
    assert of_digits.seconds == 8 + 100 * 0.5 + 4 * 2
    assert of_digits.epoch_seconds == (IMAGES // 16) * 0.5
    assert of_digits.images == 1600 and of_digits.images_per_second == 32


def test_operations_and_their_share_of_the_peak(of_digits: Forecast) -> None:
    assert of_digits.flops_per_image == 1e11 and of_digits.flops == 1.6e14
    assert of_digits.flops_per_epoch == (IMAGES // 16) * 1.6e12
    assert of_digits.mfu == pytest.approx(1.6e12 / 0.5 / 1e13)


def test_hours_on_gpus_follow_the_assumptions(of_digits: Forecast) -> None:
    assert of_digits.on_gpus["1"] == pytest.approx(1.6e14 / (0.25 * 312e12))
    assert of_digits.on_gpus["8"] == pytest.approx(1.6e14 / (0.25 * 312e12) / 8)
    assert of_digits.on_gpus["64"] is None, "16 images are not divided among 64"
    lines = "\n".join(of_digits.lines())
    assert "each A100 at 25% of 312 TFLOP/s (published for A100, dense bfloat16)" in lines
    assert "1: 2 s, 8: under 1 s, 64: more than a batch has images" in lines
    assert "MFU 32% of 10 TFLOP/s (planted)" in lines


def test_the_micro_batch_that_is_faster_is_recommended(of_digits: Forecast) -> None:
    assert of_digits.faster == TRIED[1]
    assert "--batch 16, --micro-batch 8 (steps alone: 100 images/s; 1.20 x with 8, 0.90 x with 4)" in of_digits.advice()
    slower = dataclasses.replace(of_digits, tried=(TRIED[0], TRIED[2]))
    assert slower.faster is None and "no --micro-batch (steps alone" in slower.advice()
    alone = dataclasses.replace(of_digits, tried=TRIED[:1], micro_batch=4)
    assert "--micro-batch 4 (no other was tried)" in alone.advice()


def test_random_weights_are_scored_beside_given_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasting, "peak_of", lambda *_: None)
    config = recipes.resolve("digits", Options(**WORDS, steps=10))
    given = dataclasses.replace(config, run=dataclasses.replace(config.run, init="weights.pth"))
    fresh, going_on = (of_costs(one, COSTS, gpu="H100", utilisation=1.0) for one in (config, given))
    assert going_on.seconds - fresh.seconds == COSTS.first_evaluation
    assert fresh.mfu is None and "MFU" not in "\n".join(fresh.lines())


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_run_that_is_forecast_is_the_run_that_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    told = forecast("digits", **WORDS, steps=4, log=lines.append)
    assert list(tmp_path.iterdir()) == [], "nothing is written"
    run = sd.pretrain("digits", tmp_path / "run", **WORDS, steps=4, log=lambda _: None)
    assert told.config == run.config
    config = recipes.resolve("digits", Options(**WORDS, steps=4))
    assert told.flops == 4 * flops_of_step(build(config, Processes()))
    assert told.mfu is not None and told.mfu > 0 and told.step_seconds > 0 and told.memory_mb > 100
    assert [one.micro_batch for one in told.tried] == [None, 8, 4, 2]
    assert lines[0] == "timing    a few steps on this machine, for what the run costs"


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_batch_that_does_not_fit_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipes.resolve("digits", Options(**WORDS, steps=4, micro_batch=4))
    needed = sum(step_bytes(config).values())
    monkeypatch.setattr("simdino.device.memory_of", lambda _: needed)
    with pytest.raises(sd.InputError, match="give less, or a --micro-batch"):
        plan("digits", Options(**WORDS, steps=4), "runs/never", log=lambda _: None)
    lines: list[str] = []
    told = forecast("digits", **WORDS, steps=4, log=lines.append)
    assert told.micro_batch == told.config.speed.micro_batch == 4 and "--batch 16, --micro-batch 4" in told.advice()
    tried = [line for line in lines if line.startswith("memory")]
    assert tried == [f"memory    {n} images at once do not fit: trying --micro-batch {n // 2}" for n in (16, 8)]
    assert [one.micro_batch for one in told.tried] == [4, 2, 1]
    monkeypatch.setattr("simdino.device.memory_of", lambda _: 1.0)
    with pytest.raises(sd.InputError, match="needs"):
        forecast("digits", **WORDS, steps=4, log=lambda _: None)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_gpu_that_is_full_counts_as_one_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(timing.Trial):
        def __init__(self, config: sd.Config, *more: Any) -> None:
            if config.speed.micro_batch is None:
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().__init__(config, *more)

    monkeypatch.setattr(timing, "Trial", Full)
    assert forecast("digits", **WORDS, steps=4, log=lambda _: None).micro_batch == 8


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_command_says_it_in_json_and_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    words = [part for name, value in WORDS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    main(["plan", "digits", *words, "--images", "64", "--gpu", "l40s", "--utilisation", "0.5", "--json"])
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["steps"] == 4 and told["images"] == 64 and told["config"]["run"]["steps"] == 4
    assert told["on_gpus"]["1"] == pytest.approx(told["flops"] / (0.5 * 362e12))
    assert err.startswith("timing") and "length    4 steps of 16 images" in err
    main(["plan", "digits", *words, "--steps", "4"])
    heads = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert heads == ["time", "memory", "work", "speed", "take", "GPUs", "assumed"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"gpu": "H10"}, "did you mean H100?"),
        ({"utilisation": 0.0}, "--utilisation 0.0 must be above 0, at most 1"),
        ({"encoder": "vit_smal"}, "did you mean vit_small?"),
        ({"minutes": 1.0, "flops": 1e9}, "give one of --minutes and --flops, not 2"),
    ],
)
def test_bad_words_are_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(sd.InputError) as error:
        forecast("digits", **words, log=lambda _: None)
    assert message in str(error.value)


def test_images_become_whole_steps() -> None:
    assert recipes.resolve("digits", Options(**WORDS, images=100)).run.steps == 6
    with pytest.raises(sd.InputError, match="--images 15 is less than one step: a batch has 16 images"):
        recipes.resolve("digits", Options(**WORDS, images=15))
    with pytest.raises(sd.InputError, match="give one of --epochs and --images, not 2"):
        recipes.resolve("digits", Options(**WORDS, images=100, epochs=2.0))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_operations_become_the_steps_that_they_pay_for(tmp_path: Path) -> None:
    one = flops_of_step(build(recipes.resolve("digits", Options(**WORDS, steps=4)), Processes()))
    lines: list[str] = []
    planned = plan("digits", Options(**WORDS, flops=3.9 * one), tmp_path / "run", log=lines.append)
    assert planned.config.run.steps == math.floor(3.9)
    assert lines[0] == "timing    a few steps on this machine, for the length of the run"
    assert any(line.startswith("length    3 steps of 16 images") for line in lines)
    assert planned.training is not None and planned.training.flops == one, "it is not counted again"
    with pytest.raises(sd.InputError, match="--flops 1000 is less than one step: that takes"):
        plan("digits", Options(**WORDS, flops=1000.0), tmp_path / "run", log=lambda _: None)
