"""The loss of a batch is one number with one gradient, and a run arrives at one place, however batches are split."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from two_processes import (
    AUTOCAST,
    BATCH,
    DIM,
    Case,
    Outcome,
    flat,
    make_state,
    make_views,
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

ALIGNMENT, RATE, BOTH = 0.0, 1e7, "balanced"  # a rate weighted 1e7 leaves nothing of the alignment's gradient
SINGLE = [
    Case(torch.float32, ALIGNMENT),
    Case(torch.float32, RATE, "global", "mean"),
    Case(torch.float32, RATE, "shards", "student"),
    Case(torch.float32, BOTH, "global", "student"),
    Case(torch.float32, BOTH, "shards", "mean"),
]
DOUBLE = [
    Case(torch.float64, ALIGNMENT),
    *(Case(torch.float64, *rest) for rest in product((RATE, BOTH), ("global", "shards"), ("student", "mean"))),
]
CASES = SINGLE + DOUBLE
PLAIN = Case(torch.float64, BOTH)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
ONE_PROCESS: dict[str, dict[str, Any]] = {"8 x 64": {"micro_batch": 64}, "2 x 200 and 112": {"micro_batch": 200}}
TWO_PROCESSES: dict[str, dict[str, Any]] = {
    "256": {},
    "4 x 64": {"micro_batch": 64},
    "256, every second image": {"interleaved": True},
}
BROKEN: dict[str, dict[str, Any]] = {
    "nothing reduced": {"all_reduce": identity},
    "nothing reduced, micro-batches": {"all_reduce": identity, "micro_batch": 64},
}
WRONG = [(split, PLAIN._replace(gamma=gamma)) for split in BROKEN for gamma in (ALIGNMENT, BOTH)]
OPTIM = OptimConfig(lr=1e-2, momentum=0.9, warmup=0.0, clip=0.1)  # a clip that is felt


def everything(among: Processes) -> dict[str, Any]:
    """What this file asks of two processes, in one go: starting them costs more than their work."""
    return {
        "steps": {
            (split, case): one_step(case, among, **TWO_PROCESSES[split]) for split in TWO_PROCESSES for case in CASES
        }
        | {(split, case): one_step(case, among, **BROKEN[split]) for split, case in WRONG},
        "trained": {"whole": trained(among, None), "micro": trained(among, 8)},
        "messages": messages(among),
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_two_processes(everything, tmp_path_factory.mktemp("gloo"))


@cache
def whole(case: Case) -> Outcome:
    return one_step(case, Processes())


def check_same(outcome: Outcome, case: Case) -> None:
    """Value, terms, health, gradient."""
    reference, tolerance = whole(case), TOLERANCE[case.dtype]
    assert relative(outcome.gradient, reference.gradient) < tolerance
    for name, value in reference.metrics.items():
        if name != "gradient_ratio":
            assert outcome.metrics[name] == pytest.approx(value, rel=tolerance), name


def check_gradient_ratio(outcome: Outcome, case: Case) -> None:
    """Of the norm of alignment's gradient a micro-batch knows its own share, so the ratio is a mean over them."""
    expected = whole(case).metrics["gradient_ratio"]
    assert outcome.metrics["gradient_ratio"] == pytest.approx(expected, rel=0.02, abs=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("split", ONE_PROCESS)
def test_micro_batches_are_the_whole_batch(split: str, case: Case) -> None:
    check_same(in_micro_batches(split, case), case)


@pytest.mark.parametrize("split", ONE_PROCESS)
def test_micro_batches_measure_the_same_gradient_ratio(split: str) -> None:
    check_gradient_ratio(in_micro_batches(split, PLAIN), PLAIN)


@cache
def in_micro_batches(split: str, case: Case) -> Outcome:
    return one_step(case, Processes(), **ONE_PROCESS[split])


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("split", TWO_PROCESSES)
def test_two_processes_are_one(two: list[Any], split: str, case: Case) -> None:
    for results in two:
        check_same(results["steps"][split, case], case)


@pytest.mark.parametrize("split", TWO_PROCESSES)
def test_two_processes_measure_the_same_gradient_ratio(two: list[Any], split: str) -> None:
    for results in two:
        check_gradient_ratio(results["steps"][split, PLAIN], PLAIN)


@pytest.mark.parametrize("split", TWO_PROCESSES)
def test_two_processes_hold_the_same_numbers_to_the_bit(two: list[Any], split: str) -> None:
    for case in CASES:
        first, second = (results["steps"][split, case] for results in two)
        assert first.metrics == second.metrics and torch.equal(first.gradient, second.gradient)


# --- no split at all: the formula, by plain autograd through the network --------------------------------------------


def formula(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """distance, weighted rate and the gradient of all student parameters, without `step` and without SimDINO."""
    state, views = make_state(case.dtype), make_views(case.dtype)
    s = state.student(views).cls
    with torch.no_grad():
        t = state.teacher(views, student=False).cls
    pairs = [(g, v) for g in range(2) for v in range(4) if g != v]
    distance = torch.stack([1 - (t[g] * s[v]).sum(-1).mean() for g, v in pairs]).mean()
    rated = s[:2] if case.rate_on == "student" else (s[:2] + t) / 2
    groups = rated.unflatten(1, (1 if case.scope == "global" else BATCH // 64, -1))
    matrices = torch.eye(DIM, dtype=s.dtype) + DIM / (BATCH * 0.05) * groups.mT @ groups
    weighted = case.loss().weight * 0.5 * torch.logdet(matrices).mean()
    gradients = torch.autograd.grad(distance - weighted, list(state.student.parameters()))
    return distance.detach(), weighted.detach(), flat(gradients)


@pytest.mark.parametrize("case", DOUBLE, ids=str)
def test_the_whole_batch_is_the_formula(case: Case) -> None:
    distance, weighted, gradient = formula(case)
    outcome = whole(case)
    assert outcome.metrics["distance"] == pytest.approx(distance.item(), rel=1e-10)
    assert outcome.metrics["rate_weighted"] == pytest.approx(weighted.item(), rel=1e-10, abs=1e-12)
    assert outcome.metrics["loss"] == pytest.approx((distance - weighted).item(), rel=1e-10)
    assert relative(outcome.gradient, gradient) < 1e-9


# --- the comparisons are able to fail -------------------------------------------------------------------------------


def test_both_terms_pull_on_the_network_and_differently() -> None:
    alignment, rate, both = (whole(PLAIN._replace(gamma=gamma)).gradient for gamma in (ALIGNMENT, RATE, BOTH))
    torch.testing.assert_close(alignment + PLAIN.loss().weight / RATE * (rate - alignment), both)
    assert relative(alignment, both) > 0.1
    assert abs(torch.cosine_similarity(alignment, rate, dim=0).item()) < 0.99


@pytest.mark.parametrize("changes", [{"scope": "shards"}, {"rate_on": "mean"}])
def test_scopes_and_rated_features_are_different_objectives(changes: dict[str, Any]) -> None:
    assert relative(whole(PLAIN._replace(**changes)).gradient, whole(PLAIN).gradient) > 0.01


@pytest.mark.parametrize(("split", "case"), WRONG, ids=str)
def test_a_wrong_reduction_is_seen(two: list[Any], split: str, case: Case) -> None:
    for results in two:
        outcome = results["steps"][split, case]
        assert relative(outcome.gradient, whole(case).gradient) > 0.01
        assert outcome.metrics["loss"] != pytest.approx(whole(case).metrics["loss"], rel=0.01)


def test_drop_path_is_on_and_changes_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_drop_path(dtype: torch.dtype) -> Any:
        state = make_state(dtype)
        state.student.encoder.rates = [0.0, 0.0]
        return state

    reference = whole(PLAIN).gradient  # before the patch, also where no test before this one asked for it
    monkeypatch.setattr("two_processes.make_state", without_drop_path)
    assert relative(one_step(PLAIN, Processes()).gradient, reference) > 0.01


# --- several steps --------------------------------------------------------------------------------------------------


def trained(among: Processes, micro_batch: int | None) -> dict[str, Tensor]:
    """How far student and teacher have moved after three steps in float64."""
    batch = 64
    state = make_state(PLAIN.dtype)
    state.model = among.wrap(state.student)
    networks = {"student": state.student, "teacher": state.teacher}
    before = {name: flat(network.parameters()) for name, network in networks.items()}
    for i in range(3):
        views = share(make_views(PLAIN.dtype, batch, seed=i), among)
        step(
            state, views, PLAIN.loss(batch), steps=10, optim=OPTIM, all_reduce=among.sum, micro_batch=micro_batch,
            autocast=AUTOCAST,
        )  # fmt: skip
    return {name: flat(network.parameters()) - before[name] for name, network in networks.items()}


@pytest.mark.parametrize("split", ["whole", "micro"])
@pytest.mark.parametrize("network", ["student", "teacher"])
def test_three_steps_on_two_processes_are_three_steps_on_one(two: list[Any], split: str, network: str) -> None:
    moved = trained(Processes(), None)[network]
    assert moved.abs().max() > 1e-3  # there is something to compare
    for results in two:
        assert relative(results["trained"][split][network], moved) < 1e-7
    assert torch.equal(*(results["trained"][split][network] for results in two))


def test_three_steps_in_micro_batches_are_three_steps_at_once() -> None:
    at_once, micro = trained(Processes(), None), trained(Processes(), 24)
    for network in ("student", "teacher"):
        assert relative(micro[network], at_once[network]) < 1e-7


# --- messages -------------------------------------------------------------------------------------------------------


def messages(among: Processes) -> dict[str, Any]:
    x = (torch.tensor([1.0, 2.0]) * (among.rank + 1)).requires_grad_()
    total = among.sum(x)
    (total * torch.tensor([1.0, 10.0])).sum().backward()
    among.barrier()
    return {
        "who": (among.rank, among.world, among.first),
        "gathered": among.gather({"rank": among.rank}),
        "totals": among.total(among.rank + 1, 0.5),
        "sum": total.tolist(),
        "gradient": x.grad.tolist(),
    }


def test_messages_between_two_processes(two: list[Any]) -> None:
    for rank, results in enumerate(two):
        assert results["messages"] == {
            "who": (rank, 2, rank == 0),
            "gathered": [{"rank": 0}, {"rank": 1}],
            "totals": [3.0, 1.0],
            "sum": [3.0, 6.0],
            "gradient": [2.0, 20.0],  # the losses of both processes depend on each one's numbers
        }


def test_one_process_sends_nothing() -> None:
    alone, x, module = Processes(), torch.ones(2), torch.nn.Linear(1, 1)
    assert alone.first and alone.sum(x) is x and alone.wrap(module) is module
    assert alone.gather(3) == [3] and alone.total(1, 2) == [1, 2]
    alone.barrier()
