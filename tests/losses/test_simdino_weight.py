"""gamma: the published numbers, and what each rule promises."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from simdino.contracts import Embeddings
from simdino.losses.simdino import SimDINO

EPS = 0.05**0.5


def published(shard: int, count: int, **options: Any) -> SimDINO:
    """The official flags on `count` processes of `shard` images."""
    return SimDINO(
        **{"batch": shard * count, "dim": 256, "local_views": 10, "eps": EPS, "gamma": "released", "scope": "shards"}
        | {"shard_size": shard, **options}
    )


def rate_weighted(loss: SimDINO, features: Tensor) -> float:
    views = features.expand(loss.global_views + loss.local_views, -1, -1)
    indices = torch.arange(loss.batch)
    student = Embeddings(cls=views, backbone=views, indices=indices)
    teacher = Embeddings(cls=views[: loss.global_views], backbone=views, indices=indices)
    return loss(student, teacher).terms["rate_weighted"].item()


@pytest.mark.parametrize("rate_on", ["student", "mean"])
@pytest.mark.parametrize(("shard", "count", "expected"), [(64, 8, 0.4496), (128, 8, 0.5599)])
def test_orthonormal_features_give_the_published_ceiling(shard: int, count: int, expected: float, rate_on: Any) -> None:
    loss = published(shard, count, rate_on=rate_on, local_views=1)
    value = rate_weighted(loss, torch.eye(256)[:shard].repeat(count, 1))
    assert round(value, 4) == expected
    assert value == pytest.approx(loss.weight * loss.ceiling, rel=1e-9)


@pytest.mark.slow
def test_collapsed_features_give_the_number_of_the_log_that_collapsed() -> None:
    loss = published(78, 32, local_views=1)
    value = rate_weighted(loss, torch.nn.functional.normalize(torch.ones(78 * 32, 256, dtype=torch.float64), dim=-1))
    assert round(value, 4) == 0.0109
    assert value == pytest.approx(loss.weight * loss.floor, rel=1e-9)


@pytest.mark.parametrize(
    ("loss", "rho", "digits"),
    [
        (published(64, 8), 1.4, 1),
        (published(128, 8), 1.7, 1),
        (published(512, 1, scope="global"), 8, 0),
        (published(64, 1, scope="global"), 13, 0),
    ],
    ids=["v1", "v2", "one process of 512", "one process of 64"],
)
def test_operating_point_of_the_published_flags(loss: SimDINO, rho: float, digits: int) -> None:
    one = SimDINO(**{**vars_of(loss), "gamma": "balanced", "rho": 1.0})
    assert round(loss.weight / one.weight, digits) == rho


def vars_of(loss: SimDINO) -> dict[str, Any]:
    return {name: getattr(loss, name) for name in SimDINO.__dataclass_fields__}


@pytest.mark.parametrize("scope", ["global", "shards"])
@pytest.mark.parametrize("rate_on", ["student", "mean"])
@pytest.mark.parametrize(("n", "d", "shard", "views", "local"), [(512, 256, 64, 2, 10), (64, 256, 32, 3, 0)])
def test_balanced_is_rho_times_alignment_over_rate(
    scope: Any, rate_on: Any, n: int, d: int, shard: int, views: int, local: int
) -> None:
    loss = SimDINO(
        batch=n, dim=d, global_views=views, local_views=local, eps=EPS, rho=2.5, scope=scope, shard_size=shard,
        rate_on=rate_on,
    )  # fmt: skip
    shards = 1 if scope == "global" else n // shard
    pairs = views * (views + local - 1)
    alignment = sqrt(views * (views - 1) ** 2 + local * views**2) / (pairs * sqrt(n))
    largest = 0.5 * sqrt(d * min(d, n // shards) / (n * EPS**2)) / sqrt(shards) / sqrt(views)
    factor = 1 if rate_on == "student" else 2  # half of the mean is the student's
    assert loss.weight == pytest.approx(factor * 2.5 * alignment / largest, rel=1e-12)


@pytest.mark.parametrize("rate_on", ["student", "mean"])
def test_balanced_makes_the_largest_rate_gradient_rho_times_that_of_alignment(rate_on: Any) -> None:
    n, d, rho = 16, 8, 1.5
    loss = SimDINO(batch=n, dim=d, eps=1.0, rho=rho, rate_on=rate_on, local_views=1)
    # eps 1 and equal eigenvalues n/d: every singular value is 1/sqrt(a), where the bound is reached by unit features.
    features = torch.eye(d, dtype=torch.float64).repeat(n // d, 1).expand(3, -1, -1)
    student = Embeddings(cls=features, backbone=features, indices=torch.arange(n))
    teacher = Embeddings(cls=features[:2], backbone=features, indices=torch.arange(n))
    assert loss(student, teacher).health["gradient_ratio"].item() == pytest.approx(rho, rel=1e-9)


def test_balanced_has_no_batch_size_in_it_from_the_dimension_up() -> None:
    weights = [SimDINO(batch=n, dim=256, local_views=10, eps=EPS).weight for n in (256, 512, 4096, 65536)]
    assert weights == pytest.approx([weights[0]] * 4, rel=1e-12)
    g = sqrt(2 + 10 * 4) / 22
    assert weights[0] == pytest.approx(2 * 1.5 * EPS * sqrt(2) * g / 256, rel=1e-12)
    assert SimDINO(batch=128, dim=256, local_views=10, eps=EPS).weight != pytest.approx(weights[0], rel=0.1)


@pytest.mark.parametrize("n", [64, 512, 1024])
def test_theorem_released_and_numbers(n: int) -> None:
    assert SimDINO(batch=n, dim=256, eps=EPS, gamma="released").weight == pytest.approx((n + 256) / (256 * n))
    theorem = SimDINO(batch=n, dim=256, eps=EPS, gamma="theorem").weight
    assert theorem == pytest.approx(sqrt(0.05 * n / (256 * min(256, n))))
    assert SimDINO(batch=n, dim=256, eps=EPS, gamma=0.25).weight == 0.25


def test_numbers_of_both_rules_as_the_method_page_prints_them() -> None:
    def weight(n: int, gamma: Any) -> float:
        return SimDINO(batch=n, dim=256, eps=EPS, gamma=gamma).weight

    assert [round(weight(n, "theorem"), 4) for n in (512, 1024)] == [0.0198, 0.0280]
    assert [round(weight(n, "released"), 5) for n in (512, 1024)] == [0.00586, 0.00488]


@pytest.mark.parametrize(
    ("shard", "count", "ceiling_local", "ceiling_global"),
    [
        (64, 8, 0.450, 2.28),
        (256, 2, 1.80, 2.28),
        (512, 1, 2.28, 2.28),
        (256, 1, 3.05, 3.05),
        (128, 1, 2.79, 2.79),
        (128, 8, 0.560, 1.90),
        (64, 16, 0.280, 1.90),
        (78, 32, 0.187, 1.68),
        (24, 1, 2.94, 2.94),
    ],
)
def test_largest_reachable_rates_of_known_runs(
    shard: int, count: int, ceiling_local: float, ceiling_global: float
) -> None:
    local, whole = published(shard, count), published(shard, count, scope="global")
    assert local.weight * local.ceiling == pytest.approx(ceiling_local, abs=6e-3 if ceiling_local > 1 else 6e-4)
    assert whole.weight * whole.ceiling == pytest.approx(ceiling_global, abs=6e-3)
