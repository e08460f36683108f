"""SimDINO's loss, terms and gradient against its formula, written as the slowest possible loops."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from simdino.contracts import Embeddings, identity
from simdino.losses.simdino import SimDINO

GLOBAL, DIM, BATCH, SHARD = 2, 5, 12, 4
GAMMAS = ["balanced", "theorem", "released", 0.0, 0.7]


def unit_vectors(views: int, batch: int = BATCH, dim: int = DIM, *, seed: int) -> Tensor:
    z = torch.randn(views, batch, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(z, dim=-1)


def embeddings(cls: Tensor, indices: Tensor | None = None) -> Embeddings:
    indices = torch.arange(cls.shape[1]) if indices is None else indices
    return Embeddings(cls=cls, backbone=cls, indices=indices)


def student_and_teacher(local_views: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    return unit_vectors(GLOBAL + local_views, seed=seed).requires_grad_(), unit_vectors(GLOBAL, seed=seed + 1)


def objective(**options: Any) -> SimDINO:
    return SimDINO(**{"batch": BATCH, "dim": DIM, "global_views": GLOBAL, "eps": 0.3, "shard_size": SHARD, **options})


def slow_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of ½||z_t - z_s||² over images and cross-view pairs, one pair at a time."""
    total, pairs = torch.zeros((), dtype=torch.float64), 0
    for image in range(student.shape[1]):
        for g, v in product(range(len(teacher)), range(len(student))):
            if g != v:
                difference = teacher[g, image] - student[v, image]
                total, pairs = total + 0.5 * (difference * difference).sum(), pairs + 1
    return total / pairs


def slow_rate(student: Tensor, teacher: Tensor, *, eps: float, shards: int, rate_on: str) -> Tensor:
    """Mean over global views and shards of ½ logdet(I + d/(n eps²) Z Zᵀ), with n the whole batch."""
    n, d = student.shape[1:]
    rates = []
    for g, shard in product(range(len(teacher)), range(shards)):
        moments = torch.zeros(d, d, dtype=torch.float64)
        for image in range(shard * n // shards, (shard + 1) * n // shards):
            z = student[g, image] if rate_on == "student" else 0.5 * (student[g, image] + teacher[g, image])
            moments = moments + torch.outer(z, z)
        rates.append(0.5 * torch.logdet(torch.eye(d, dtype=torch.float64) + d / (n * eps**2) * moments))
    return torch.stack(rates).mean()


def slow_loss(loss: SimDINO, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shards = 1 if loss.scope == "global" else BATCH // SHARD
    distance = slow_distance(student, teacher)
    rate = slow_rate(student, teacher, eps=loss.eps, shards=shards, rate_on=loss.rate_on)
    return distance - loss.weight * rate, distance, loss.weight * rate


def gradient_of(value: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(value, student)[0]


ALL_OPTIONS = pytest.mark.parametrize(
    ("gamma", "scope", "rate_on", "local_views"),
    list(product(GAMMAS, ["global", "shards"], ["student", "mean"], [0, 3])),
)


@ALL_OPTIONS
def test_loss_terms_and_gradient_are_those_of_the_loops(gamma: Any, scope: Any, rate_on: Any, local_views: int) -> None:
    loss = objective(gamma=gamma, scope=scope, rate_on=rate_on, local_views=local_views)
    student, teacher = student_and_teacher(local_views)
    total, distance, weighted = slow_loss(loss, student, teacher)
    result = loss(embeddings(student), embeddings(teacher))
    assert result.total.item() == pytest.approx(total.item(), rel=1e-12)
    assert result.terms["distance"].item() == pytest.approx(distance.item(), rel=1e-12)
    assert result.terms["rate_weighted"].item() == pytest.approx(weighted.item(), rel=1e-12)
    torch.testing.assert_close(gradient_of(result.total, student), gradient_of(total, student), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scope", ["global", "shards"])
@pytest.mark.parametrize("rate_on", ["student", "mean"])
@pytest.mark.parametrize("sizes", [[4, 4, 4], [6, 6], [5, 7], [1] * 12, [11, 1]])
def test_parts_of_a_batch_add_up_to_the_batch(scope: Any, rate_on: Any, sizes: list[int]) -> None:
    loss = objective(scope=scope, rate_on=rate_on, local_views=2)
    student, teacher = student_and_teacher(2)
    whole = loss(embeddings(student), embeddings(teacher))
    shuffled = torch.randperm(BATCH, generator=torch.Generator().manual_seed(0))  # a shard crosses the parts
    parts = [
        (embeddings(student[:, indices], indices), embeddings(teacher[:, indices], indices))
        for indices in shuffled.split(sizes)
    ]
    students, teachers = zip(*parts, strict=True)
    statistics = loss.global_statistics(teachers, students, temperature=1.0, all_reduce=identity)
    results = [loss(*part) for part in zip(students, teachers, statistics, strict=True)]
    total = torch.stack([r.total for r in results]).sum()
    assert total.item() == pytest.approx(whole.total.item(), rel=1e-12)
    torch.testing.assert_close(gradient_of(total, student), gradient_of(whole.total, student), rtol=1e-10, atol=1e-12)
    for name in whole.terms:
        assert sum(r.terms[name].item() for r in results) == pytest.approx(whole.terms[name].item(), rel=1e-10)
    for name in whole.health:
        # The norm of alignment's gradient is known of each part only, so the ratio is a mean over parts.
        rel = 0.1 if name == "gradient_ratio" else 1e-10
        assert sum(r.health[name].item() for r in results) == pytest.approx(whole.health[name].item(), rel=rel)


def test_places_and_not_positions_choose_the_shard() -> None:
    loss = objective(scope="shards", gamma=1.0)
    student, teacher = student_and_teacher(0)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
    plain = loss(embeddings(student), embeddings(teacher)).total
    permuted = loss(embeddings(student[:, order], order), embeddings(teacher[:, order], order)).total
    assert permuted.item() == pytest.approx(plain.item(), rel=1e-12)
    regrouped = loss(embeddings(student[:, order]), embeddings(teacher[:, order])).total
    assert abs(regrouped.item() - plain.item()) > 1e-6


def test_the_teacher_gets_no_gradient_from_its_own_graph_when_it_has_none() -> None:
    student, teacher = student_and_teacher(1)
    result = objective(local_views=1)(embeddings(student), embeddings(teacher))
    assert result.total.requires_grad and not teacher.requires_grad
    assert not any(x.requires_grad for x in (*result.terms.values(), *result.health.values()))


def test_same_view_pairs_do_not_count() -> None:
    student, teacher = unit_vectors(2, seed=0), unit_vectors(2, seed=1)
    loss = objective(gamma=0.0)
    expected = 0.5 * ((student[0] - teacher[1]).square() + (student[1] - teacher[0]).square()).sum(-1).mean() / 2
    result = loss(embeddings(student), embeddings(teacher))
    assert result.total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert result.health["alignment"].item() == pytest.approx(1 - expected.item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_reach_the_loss(dtype: torch.dtype) -> None:
    student, teacher = (x.detach().float() for x in student_and_teacher(2))
    loss = objective(local_views=2)
    plain = loss(embeddings(student), embeddings(teacher))
    with torch.autocast("cpu", dtype=dtype):
        cast = loss(embeddings(student), embeddings(teacher))
    assert cast.total.item() == plain.total.item()


@pytest.mark.parametrize("scope", ["global", "shards"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_give_a_loss_that_is_not(scope: Any, bad: float) -> None:
    student, teacher = student_and_teacher(0)
    student.data[1, 7, 2] = bad
    result = objective(scope=scope)(embeddings(student), embeddings(teacher))
    assert not result.total.isfinite()
    assert result.terms["rate_weighted"].isnan() and result.health["rate"].isnan()


# --- health ------------------------------------------------------------------------------------------------------


def identical(views: int, batch: int, dim: int) -> Tensor:
    return unit_vectors(1, 1, dim, seed=3).expand(views, batch, dim)


@pytest.mark.parametrize("scope", ["global", "shards"])
@pytest.mark.parametrize(("batch", "dim", "shard"), [(32, 8, 16), (32, 8, 4), (8, 32, 4)])
def test_expansion_fraction_is_zero_when_collapsed_and_one_for_a_flat_spectrum(
    scope: Any, batch: int, dim: int, shard: int
) -> None:
    loss = objective(batch=batch, dim=dim, scope=scope, shard_size=shard)
    columns = batch if scope == "global" else shard
    flat = torch.eye(dim, dtype=torch.float64)[:columns].repeat(-(-columns // dim), 1)[:columns]
    flat = flat.repeat(batch // columns, 1).expand(2, -1, -1)
    collapsed = identical(2, batch, dim)
    for features, fraction in ((collapsed, 0.0), (flat, 1.0)):
        health = loss(embeddings(features), embeddings(features)).health
        assert health["expansion_fraction"].item() == pytest.approx(fraction, abs=1e-9)
        assert health["alignment"].item() == pytest.approx((features[0] * features[1]).sum(-1).mean().item(), abs=1e-9)


def test_effective_rank_of_four_stacked_identities_is_eight_and_of_collapse_one() -> None:
    loss = objective(batch=32, dim=8)
    stacked = torch.eye(8, dtype=torch.float64).repeat(4, 1).expand(2, -1, -1)
    for features, rank in ((stacked, 8), (identical(2, 32, 8), 1)):
        health = loss(embeddings(features), embeddings(features)).health
        assert health["effective_rank"].item() == pytest.approx(rank, rel=1e-6)


@ALL_OPTIONS
def test_gradient_ratio_is_the_quotient_of_autograd_norms(
    gamma: Any, scope: Any, rate_on: Any, local_views: int
) -> None:
    loss = objective(gamma=gamma, scope=scope, rate_on=rate_on, local_views=local_views)
    student, teacher = student_and_teacher(local_views, seed=5)
    _, _, weighted = slow_loss(loss, student, teacher)
    cosines = [
        (teacher[g] * student[v]).sum(-1).mean() for g, v in product(range(GLOBAL), range(len(student))) if g != v
    ]
    pull = gradient_of(torch.stack(cosines).mean(), student).norm()
    push = gradient_of(weighted, student).norm()
    measured = loss(embeddings(student), embeddings(teacher)).health["gradient_ratio"]
    assert measured.item() == pytest.approx((push / pull).item(), rel=1e-9)


def test_health_says_the_rate() -> None:
    student, teacher = student_and_teacher(0)
    expected = slow_rate(student, teacher, eps=0.3, shards=1, rate_on="student")
    rate = objective()(embeddings(student), embeddings(teacher)).health["rate"]
    assert rate.item() == pytest.approx(expected.item(), rel=1e-12)
