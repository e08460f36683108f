"""SimDINOv2, DINO and DINOv2 too: a batch has one loss, one gradient and one set of buffers, however it is split."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from two_processes import (
    AUTOCAST,
    Case,
    K,
    Outcome,
    flat,
    make_state_of,
    make_views_of,
    on_two_processes,
    one_step,
    relative,
    share,
)

from simdino.config import OptimConfig
from simdino.contracts import identity
from simdino.train.parallel import Processes
from simdino.train.step import step

pytestmark = pytest.mark.slow

DTYPES = torch.float32, torch.float64
OBJECTIVES: list[dict[str, Any]] = [
    {"method": "simdinov2"},
    {"method": "simdinov2", "patch_rate": 1.0, "scope": "shards", "rate_on": "mean", "separate": True},
    {"method": "dino"},
    {"method": "dino", "centering": "sinkhorn"},
    {"method": "dinov2"},
    {"method": "dinov2", "centering": "sinkhorn", "separate": True},
    # one of two processes, and half of the micro-batches, have no masked patch at all
    {"method": "simdinov2", "patch_rate": 1.0, "separate": True, "half_masked": True},
    {"method": "dinov2", "separate": True, "half_masked": True},
    {"method": "dinov2", "centering": "sinkhorn", "separate": True, "half_masked": True},
]
CASES = [Case(dtype, "balanced", **options) for dtype in DTYPES for options in OBJECTIVES]
EXACT = [case for case in CASES if case.dtype == torch.float64]
SEEN = [case for case in EXACT if not case.half_masked]  # else one process has the mean of all masked patches
REMEMBERING = [case for case in EXACT if case.prototypes]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
ONE_PROCESS: dict[str, dict[str, Any]] = {"4 x 12": {"micro_batch": 12}, "20, 20, 8": {"micro_batch": 20}}
TWO_PROCESSES: dict[str, dict[str, Any]] = {
    "24": {},
    "10, 10, 4": {"micro_batch": 10},
    "24, every second image": {"interleaved": True},
}
ASKED = {split: CASES if split == "10, 10, 4" else EXACT for split in TWO_PROCESSES}  # float32: the hardest split
BROKEN: dict[str, dict[str, Any]] = {
    "nothing reduced": {"all_reduce": identity},
    "nothing reduced, micro-batches": {"all_reduce": identity, "micro_batch": 10},
}
OPTIM = OptimConfig(lr=1e-2, momentum=0.9, warmup=0.0, clip=0.1, freeze_prototypes=0.2, temperature=(0.04, 0.07))
STEPS = 10


def everything(among: Processes) -> dict[str, Any]:
    """What this file asks of two processes, in one go: starting them costs more than their work."""
    splits = TWO_PROCESSES | BROKEN
    return {
        "steps": {
            (split, case): one_step(case, among, **splits[split])
            for split in splits
            for case in (SEEN if split in BROKEN else ASKED[split])
        },
        "trained": {(case, micro): trained(case, among, micro) for case in EXACT for micro in (None, 10)},
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_two_processes(everything, tmp_path_factory.mktemp("gloo"))


@cache
def whole(case: Case) -> Outcome:
    return one_step(case, Processes())


def check_same(outcome: Outcome, case: Case) -> None:
    """Value, terms, health, gradient and buffers."""
    reference, tolerance = whole(case), TOLERANCE[case.dtype]
    assert relative(outcome.gradient, reference.gradient) < tolerance
    for name, value in reference.metrics.items():
        if name != "gradient_ratio":
            assert outcome.metrics[name] == pytest.approx(value, rel=tolerance, abs=tolerance * 1e-3), name
    assert outcome.buffers.keys() == reference.buffers.keys()
    for name, value in reference.buffers.items():
        assert relative(outcome.buffers[name], value) < tolerance, name


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("split", ONE_PROCESS)
def test_micro_batches_are_the_whole_batch(split: str, case: Case) -> None:
    check_same(one_step(case, Processes(), **ONE_PROCESS[split]), case)


@pytest.mark.parametrize(("split", "case"), [(split, case) for split in ASKED for case in ASKED[split]], ids=str)
def test_two_processes_are_one(two: list[Any], split: str, case: Case) -> None:
    for results in two:
        check_same(results["steps"][split, case], case)


@pytest.mark.parametrize("split", TWO_PROCESSES)
def test_two_processes_hold_the_same_numbers_to_the_bit(two: list[Any], split: str) -> None:
    for case in ASKED[split]:
        first, second = (results["steps"][split, case] for results in two)
        assert first.metrics == second.metrics and torch.equal(first.gradient, second.gradient)
        assert all(torch.equal(first.buffers[name], second.buffers[name]) for name in first.buffers)


# --- the comparisons are able to fail -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SEEN, ids=str)
@pytest.mark.parametrize("split", BROKEN)
def test_a_wrong_reduction_is_seen(two: list[Any], split: str, case: Case) -> None:
    for results in two:
        outcome = results["steps"][split, case]
        assert relative(outcome.gradient, whole(case).gradient) > 0.01
        assert outcome.metrics["loss"] != pytest.approx(whole(case).metrics["loss"], rel=0.01)
        for name, value in whole(case).buffers.items():
            assert relative(outcome.buffers[name], value) > 1e-3


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_every_trained_parameter_has_a_gradient(case: Case) -> None:
    """Class and patch parts, both heads, the mask token and the lengths of trained prototypes."""
    state = make_state_of(case)
    shapes = [p.numel() for p in state.student.parameters() if p.requires_grad]
    for part in whole(case).gradient.split(shapes):
        assert part.any()
    names = {name for name, _ in state.student.named_parameters()}
    assert ("encoder.mask_token" in names) == case.masked
    assert ("patch_projector.layers.0.weight" in names) == case.separate


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_every_term_is_felt(case: Case) -> None:
    terms = {
        "simdinov2": {"distance", "rate_weighted", "patch_distance"}, "dino": {"cross_entropy"},
        "dinov2": {"cross_entropy", "patch_cross_entropy", "koleo"},
    }[case.method] | ({"patch_rate_weighted"} if case.patch_rate else set())  # fmt: skip
    assert all(abs(whole(case).metrics[name]) > 1e-3 for name in terms)
    assert ("koleo" in whole(case).metrics) == (case.method == "dinov2")


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_drop_path_is_on_and_changes_the_gradient(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_drop_path(case: Case) -> Any:
        state = make_state_of(case)
        state.student.encoder.rates = [0.0, 0.0]
        return state

    reference = whole(case).gradient
    monkeypatch.setattr("two_processes.make_state_of", without_drop_path)
    assert relative(one_step(case, Processes()).gradient, reference) > 0.01


# --- several steps --------------------------------------------------------------------------------------------------


def trained(case: Case, among: Processes, micro_batch: int | None) -> dict[str, Tensor]:
    """How far student, teacher and centres have moved after four steps, in the first two of which prototypes are
    frozen."""
    state, loss = make_state_of(case), case.loss()
    state.buffers, state.model = loss.buffers, among.wrap(state.student)

    def everything() -> dict[str, Tensor]:
        networks = {"student": state.student, "teacher": state.teacher}
        values = {name: flat(network.parameters()).clone() for name, network in networks.items()}
        return values | {name: value.clone() for name, value in loss.buffers.items()}

    before = everything()
    for i in range(4):
        step(
            state, share(make_views_of(case, seed=i), among), loss, steps=STEPS, optim=OPTIM, all_reduce=among.sum,
            micro_batch=micro_batch, autocast=AUTOCAST,
        )  # fmt: skip
    return {name: value - before[name] for name, value in everything().items()}


@cache
def trained_alone(case: Case) -> dict[str, Tensor]:
    return trained(case, Processes(), None)


@pytest.mark.parametrize("micro_batch", [None, 10])
@pytest.mark.parametrize("case", EXACT, ids=str)
def test_four_steps_on_two_processes_are_four_steps_on_one(two: list[Any], case: Case, micro_batch: int | None) -> None:
    for name, moved in trained_alone(case).items():
        assert moved.abs().max() > 1e-3, name  # there is something to compare
        for results in two:
            assert relative(results["trained"][case, micro_batch][name], moved) < 1e-6, name
        assert torch.equal(*(results["trained"][case, micro_batch][name] for results in two))


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_four_steps_in_micro_batches_are_four_steps_at_once(case: Case) -> None:
    for name, moved in trained(case, Processes(), 20).items():
        assert relative(moved, trained_alone(case)[name]) < 1e-6, name


@pytest.mark.parametrize("case", REMEMBERING, ids=str)
def test_the_memory_is_of_the_prototypes(case: Case) -> None:
    names = {"dino": {"center"}, "dinov2": {"center", "patch_center"}}[case.method]
    assert whole(case).buffers.keys() == names
    assert all(value.shape == (K,) for value in whole(case).buffers.values())
