"""Monitors of a spectrum against closed forms, planted spectra and slow versions written from the formulas."""

from __future__ import annotations

from dataclasses import fields
from math import exp, log, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

from simdino.features.spectra import (
    Grouped,
    Moments,
    alpha_req,
    effective_rank,
    lidar,
    participation_ratio,
    rank_me,
    spectrum,
    spectrum_of,
    stable_rank,
    uniformity,
)
from simdino.losses.coding_rate import coding_rate
from simdino.runs.verdict import feature_rank

IDENTITIES = torch.eye(8).repeat(4, 1)


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    """Rows with a mean and an uneven spectrum."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, d + 1).float().pow(-0.7)
    return torch.randn(n, d, generator=generator) * scales + torch.linspace(0.2, 0.5, d)


def entropy_rank(values: np.ndarray, eps: float) -> float:
    """exp of the entropy, number by number."""
    shares = [value / values.sum() + eps for value in values]
    return exp(-sum(p * log(p) for p in shares if p > 0))


def test_four_stacked_identities_have_the_closed_forms() -> None:
    singular = Moments.of(IDENTITIES).singular_values
    assert rank_me(singular) == pytest.approx(8.0000069, abs=2e-7)
    assert effective_rank(singular) == pytest.approx(8, abs=1e-12)
    assert stable_rank(singular) == pytest.approx(8, abs=1e-12)
    statistics = spectrum(IDENTITIES, eps=sqrt(0.5))  # the official code's eps is the square of ours
    assert statistics.coding_rate == pytest.approx(4 * log(3), abs=1e-12)
    assert statistics.expansion_fraction == pytest.approx(1, abs=1e-12)
    assert statistics.mean_cosine == pytest.approx(8 * 4 * 3 / (32 * 31), abs=1e-12)  # of 31 others, three are the same


@pytest.mark.parametrize(("n", "d"), [(60, 12), (9, 20)], ids=["tall", "wide"])
def test_ranks_are_those_of_the_singular_values(n: int, d: int) -> None:
    z = rows(n, d)
    sigma = np.linalg.svd(z.double().numpy(), compute_uv=False)
    every = np.concatenate([sigma, np.zeros(max(0, d - n))])  # eps counts for each of the d
    singular = Moments.of(z).singular_values
    assert rank_me(singular) == pytest.approx(entropy_rank(every, 1e-7), rel=1e-9)
    assert effective_rank(singular) == pytest.approx(entropy_rank(sigma, 0), rel=1e-9)
    assert stable_rank(singular) == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-9)
    assert feature_rank(z) == pytest.approx(entropy_rank(sigma, 1e-7), rel=1e-9)


def test_the_participation_ratio_is_that_of_the_covariance() -> None:
    z = rows(50, 7)
    eigenvalues = np.linalg.eigvalsh(np.cov(z.double().numpy().T))
    expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert participation_ratio(Moments.of(z).covariance) == pytest.approx(expected, rel=1e-9)
    turned = torch.diag(torch.tensor([2.0, 2.0, 2.0, 0.0]).double())
    assert participation_ratio(turned) == pytest.approx(3)


def test_moments_do_not_depend_on_how_rows_come() -> None:
    z, parts = rows(30, 6), Moments()
    for part in z.split(7):
        parts.add(part)
    assert torch.allclose(parts.covariance, torch.cov(z.double().T), atol=1e-12)
    assert torch.allclose(parts.covariance, Moments.of(z).covariance, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.3])
def test_a_planted_power_law_is_found(alpha: float) -> None:
    planted = 3.7 * torch.arange(1, 65, dtype=torch.float64).pow(-alpha)
    assert alpha_req(planted) == (pytest.approx(alpha, abs=1e-10), (1, 64))
    assert alpha_req(planted, first=5, last=20) == (pytest.approx(alpha, abs=1e-10), (5, 20))


def test_alpha_is_the_weighted_least_squares_slope() -> None:
    eigenvalues = spectrum_of(Moments.of(rows(80, 16)).covariance)
    i = np.arange(1, 17)
    slope = np.polyfit(np.log(i), np.log(eigenvalues.numpy()), 1, w=np.sqrt(1 / i))[0]
    assert alpha_req(eigenvalues)[0] == pytest.approx(-slope, rel=1e-9)


def test_alpha_ends_before_what_is_zero_and_needs_two_eigenvalues() -> None:
    assert alpha_req(torch.tensor([1.0, 0.5, 0.25, 0.0, 0.0]))[1] == (1, 3)
    assert alpha_req(torch.tensor([1.0, 0.0, 0.0]))[0] is None
    assert alpha_req(torch.zeros(3))[0] is None


def slow_lidar(groups: np.ndarray) -> float:
    """With the inverse root that the formula has, image by image and view by view."""
    n, q, d = groups.shape
    means = groups.mean(1)
    centre = means.mean(0)
    between, within = np.zeros((d, d)), 1e-4 * np.eye(d)
    for mean, views in zip(means, groups, strict=True):
        between += np.outer(mean - centre, mean - centre) / (n - 1)
        for view in views:
            within += np.outer(view - mean, view - mean) / (n * (q - 1))
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    return entropy_rank(np.linalg.eigvalsh(root @ between @ root).clip(0), 1e-8)


@pytest.mark.parametrize(("n", "q", "d"), [(12, 3, 6), (5, 4, 9)], ids=["more images", "more numbers"])
def test_lidar_is_that_of_the_formula(n: int, q: int, d: int) -> None:
    images, noise = rows(n, d)[:, None].double(), rows(n * q, d, seed=1).view(n, q, d).double()
    groups = images + 0.3 * noise
    grouped = Grouped()
    for part in groups.split(2):
        grouped.add(part)
    found = lidar(grouped.between, grouped.within)
    assert found == pytest.approx(slow_lidar(groups.numpy()), rel=1e-7)
    assert found <= min(d, n - 1) + 1e-3


def test_the_share_between_groups_is_that_of_the_variance() -> None:
    groups = rows(10, 5)[:, None] + 0.5 * rows(40, 5, seed=2).view(10, 4, 5)
    grouped = Grouped()
    for part in groups.split(3):
        grouped.add(part)
    flat = groups.double().numpy().reshape(40, 5)
    means = groups.double().numpy().mean(1).repeat(4, axis=0)
    expected = means.var(0).sum() / flat.var(0).sum()
    assert grouped.between_share == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("spread_of_views", "share"), [(0.0, 1.0), (None, 0.25)], ids=["views agree", "views only"])
def test_the_share_is_one_where_views_agree_and_one_in_q_where_images_do_not_matter(
    spread_of_views: float | None, share: float
) -> None:
    noise = torch.randn(4000, 4, 3, generator=torch.Generator().manual_seed(0))
    grouped = Grouped()
    grouped.add(noise if spread_of_views is None else noise[:, :1].expand(-1, 4, -1))
    assert grouped.between_share == pytest.approx(share, abs=0.01)


def test_what_does_not_vary_has_no_share_between() -> None:
    grouped = Grouped()
    grouped.add(torch.ones(5, 3, 4))
    assert grouped.between_share == 0


@pytest.mark.parametrize("block", [1, 3, 512])
def test_uniformity_is_the_mean_over_pairs(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simdino.features.spectra.ROWS", block)
    x = torch.nn.functional.normalize(rows(11, 4).double(), dim=1)
    total, pairs = 0.0, 0
    for i in range(11):
        for j in range(i):
            total += exp(-2 * float((x[i] - x[j]).square().sum()))
            pairs += 1
    assert uniformity(x) == pytest.approx(log(total / pairs), rel=1e-9)
    assert uniformity(torch.eye(1, 4).expand(5, -1)) == 0


def test_the_rest_is_of_rows_of_unit_length() -> None:
    z = rows(40, 6)
    statistics, x = spectrum(z, eps=0.3), torch.nn.functional.normalize(z.double(), dim=1)
    cosines = (x @ x.T)[~torch.eye(40, dtype=torch.bool)]
    assert statistics.mean_cosine == pytest.approx(float(cosines.mean()), rel=1e-6)
    assert statistics.feature_std == pytest.approx(float(x.std(0).mean()) * sqrt(6), rel=1e-6)
    assert statistics.coding_rate == pytest.approx(float(coding_rate(x, eps=0.3)), rel=1e-6)
    assert statistics.uniformity == pytest.approx(uniformity(x), rel=1e-6)


def test_one_vector_is_at_the_floor_of_everything_and_gives_plain_numbers() -> None:
    statistics = spectrum(torch.tensor([[0.5, 0.5, 0.0]]).expand(6, -1), eps=0.2)
    assert statistics.expansion_fraction == pytest.approx(0, abs=1e-6)
    assert (statistics.participation_ratio, statistics.alpha) == (0, None)
    assert statistics.effective_rank == pytest.approx(1) and statistics.mean_cosine == pytest.approx(1)
    assert statistics.feature_std == pytest.approx(0, abs=1e-6) and statistics.uniformity == pytest.approx(0, abs=1e-6)
    assert set(statistics.as_dict()) == {field.name for field in fields(statistics)}


@pytest.mark.parametrize("bad", [torch.ones(1, 4), torch.ones(4), torch.full((3, 2), float("nan"))])
def test_what_is_no_set_of_rows_is_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="two at least"):
        spectrum(bad, eps=0.1)
