"""The rate made steeper near collapse: a function of the rate, its own gradient, and nothing where runs are healthy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from simdino.contracts import Embeddings, identity
from simdino.losses.simdino import SimDINO

BATCH, DIM, LIFT = 24, 6, 3.0


def objective(**options: Any) -> SimDINO:
    return SimDINO(**{"batch": BATCH, "dim": DIM, "eps": 0.3, "lift": LIFT, **options})


def features(spread: float, *, seed: int = 0) -> Tensor:
    """Unit vectors [2, n, d] around one direction: alike for a small spread."""
    noise = torch.randn(2, BATCH, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(torch.eye(DIM, dtype=torch.float64)[0] + spread * noise, dim=-1)


def embeddings(cls: Tensor) -> Embeddings:
    return Embeddings(cls=cls, backbone=cls, indices=torch.arange(cls.shape[1]))


def mean_rate(z: Tensor, eps: float) -> Tensor:
    eye = torch.eye(DIM, dtype=torch.float64)
    return torch.stack([0.5 * torch.logdet(eye + DIM / (BATCH * eps**2) * view.T @ view) for view in z]).mean()


def by_hand(z: Tensor, teacher: Tensor, loss: SimDINO) -> Tensor:
    """Distance - gamma F(R), F by its formula and its gradient by autograd."""
    floor, ceiling = (
        0.5 * torch.log1p(torch.tensor(DIM / loss.eps**2)),
        DIM / 2 * torch.log1p(torch.tensor(1 / loss.eps**2)),
    )
    rate = mean_rate(z, loss.eps)
    f = (rate - floor.double()) / (ceiling - floor).double()
    lifted = rate + loss.lift / 5 * (ceiling - floor) * (1 - (1 - f) ** 5)
    distance = 0.5 * ((z[0] - teacher[1]).square().sum(-1) + (z[1] - teacher[0]).square().sum(-1)).mean() / 2
    return distance - loss.weight * lifted


@pytest.mark.parametrize("spread", [0.05, 0.3, 3.0])
def test_value_and_gradient_are_those_of_the_formula(spread: float) -> None:
    loss, teacher = objective(), features(spread, seed=1)
    mine, theirs = (features(spread).requires_grad_() for _ in range(2))
    result = loss(embeddings(mine), embeddings(teacher)).total
    expected = by_hand(theirs, teacher, loss)
    assert result.item() == pytest.approx(expected.item(), rel=1e-6)
    (got,), (wanted,) = torch.autograd.grad(result, mine), torch.autograd.grad(expected, theirs)
    assert ((got - wanted).norm() / wanted.norm()).item() < 1e-6


@pytest.mark.parametrize("spread", [0.05, 3.0])
def test_micro_batches_add_up(spread: float) -> None:
    loss, teacher = objective(), features(spread, seed=1)
    whole, split = (features(spread).requires_grad_() for _ in range(2))
    total = loss(embeddings(whole), embeddings(teacher)).total
    rows = [torch.arange(0, 10), torch.arange(10, 17), torch.arange(17, BATCH)]
    parts = [(embeddings(split[:, r]), embeddings(teacher[:, r])) for r in rows]
    ahead = [embeddings(s.cls.detach()) for s, _ in parts]
    statistics = loss.global_statistics([t for _, t in parts], ahead, temperature=1.0, all_reduce=identity)
    totals = [loss(s, t, p).total for (s, t), p in zip(parts, statistics, strict=True)]
    assert torch.stack(totals).sum().item() == pytest.approx(total.item(), rel=1e-12)
    (one,), (many,) = torch.autograd.grad(total, whole), torch.autograd.grad(sum(totals), split)
    torch.testing.assert_close(many, one, rtol=1e-10, atol=1e-14)


def test_it_is_steep_near_collapse_and_gone_where_runs_are_healthy() -> None:
    loss = objective()
    floor, ceiling = (torch.tensor(x, dtype=torch.float64) for x in (loss.floor, loss.ceiling))
    value, slope = loss.lifted(floor)
    assert slope.item() == pytest.approx(1 + LIFT) and value.item() == pytest.approx(loss.floor)
    assert loss.lifted(ceiling)[1].item() == pytest.approx(1)
    assert loss.lifted(floor + 0.7 * (ceiling - floor))[1].item() < 1.03
    plain, steep = (objective(lift=lift)(embeddings(features(0.05)), embeddings(features(0.05))) for lift in (0, LIFT))
    assert steep.health["gradient_ratio"] > 3 * plain.health["gradient_ratio"]


def test_without_lift_the_rate_is_the_papers() -> None:
    rate = torch.tensor(5.0, dtype=torch.float64)
    value, slope = objective(lift=0.0).lifted(rate)
    assert value.item() == 5.0 and slope.item() == 1.0
