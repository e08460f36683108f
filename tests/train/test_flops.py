"""The operations of a step: as torch counts them in the step that is then taken, and at no cost to the state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from simdino import recipes
from simdino.assembly import build
from simdino.options import Options
from simdino.train.flops import flops_of_step
from simdino.train.loop import Training
from simdino.train.parallel import Processes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
SMALL: dict[str, Any] = {
    "encoder": "vit_toy", "patch_size": 4, "batch": 8, "steps": 6, "precision": "float32", "device": "cpu",
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "a ViT": {},
    "with local views": {"local_views": 2, "image_size": 16},
    "whose branches are dropped by the images' keys": {"drop_path": 0.5, "teacher": "ema"},
    "masked by the images' keys": {"method": "dinov2", "prototypes": 32, "drop_path": 0.2},
    "in bfloat16": {"precision": "bfloat16"},
    "in micro-batches, through which the student goes twice": {"micro_batch": 4},
    "updated by Muon": {"optimizer": "muon"},
    "a CRATE": {"encoder": "crate_nano"},
    "a ConvNet": {"encoder": "conv_pico"},
}


def made(**words: Any) -> Training:
    return build(recipes.resolve("digits", Options(**{**SMALL, **words})), Processes())


def taken(training: Training) -> float:
    """What torch counts in the next step of the run itself."""
    at = training.state.step
    views, _ = next(iter(training.loader.steps(at, at + 1)))
    with FlopCounterMode(display=False) as counter:
        training.step(views)
    return counter.get_total_flops()


@pytest.mark.parametrize("case", CASES)
def test_the_count_is_that_of_the_step_that_follows(case: str) -> None:
    training = made(**CASES[case])
    for _ in range(2):
        counted = flops_of_step(training)
        assert counted == taken(training) > 0


def test_a_linear_layer_more_costs_what_its_products_do() -> None:
    """Of a projector's middle layer, h x h: one product forward and two of its gradient, for each view of an image."""
    width, hidden, images, views = 32, 64, 8, 2
    shape = {"projector.hidden_dim": hidden, "projector.out_dim": width}
    one, two = (
        flops_of_step(build(recipes.resolve("digits", Options({**shape, "projector.layers": n}, **SMALL)), Processes()))
        for n in (2, 3)
    )  # fmt: skip
    assert recipes.resolve("digits", Options(**SMALL)).optim.teacher == "none", "the student's pass gives the targets"
    assert two - one == 3 * 2 * hidden * hidden * images * views


@pytest.mark.parametrize("words", [{}, {"method": "dino", "prototypes": 16}, {"encoder": "conv_pico"}])
def test_counting_changes_nothing(words: dict[str, Any]) -> None:
    counted, plain = made(**words), made(**words)
    for _ in range(2):
        flops_of_step(counted)
        for one in (counted, plain):
            views, _ = next(iter(one.loader.steps(one.state.step, one.state.step + 1)))
            one.step(views)
    first, second = counted.state.tensors(), plain.state.tensors()
    assert first["step"] == second["step"] == 2
    for part in ("student", "teacher"):
        assert all(torch.equal(value, second[part][name]) for name, value in first[part].items()), part
    moments = (state["optimizer"]["state"] for state in (first, second))
    for one, other in zip(*(found.values() for found in moments), strict=True):
        assert all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one)
    assert counted.state.model is None


def test_utilisation_is_operations_a_second_over_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    from simdino.peaks import Peak
    from simdino.train import loop

    training = made()
    assert training.mfu(100.0) is None, "nothing is counted yet"
    training.flops = 8e9  # of a batch of 8
    monkeypatch.setattr(loop, "peak_of", lambda device, precision: Peak(flops=2e11, source=f"{device} {precision}"))
    assert training.mfu(100.0) == pytest.approx(100 * 1e9 / 2e11)
    training.processes = Processes(0, 4)
    assert training.mfu(100.0) == pytest.approx(100 * 1e9 / 8e11)
    monkeypatch.setattr(loop, "peak_of", lambda *_: None)
    assert training.mfu(100.0) is None
