"""The coding rate against closed forms and against float64 autograd of its formula."""

from __future__ import annotations

from math import inf, log, nan, sqrt

import pytest
import torch
from torch import Tensor

from simdino.losses.coding_rate import (
    coding_rate,
    collapse_is_better,
    effective_rank,
    largest_gradient,
    rate_ceiling,
    rate_floor,
    rate_from_moments,
    second_moments,
)

D = 256
EPS = 0.05**0.5


def formula(z: Tensor, *, eps: float, n: int | None = None) -> Tensor:
    """R as the paper writes it, columns and all, by the determinant of whichever of the two matrices is smaller."""
    columns = z.double().T
    d, count = columns.shape
    a = d / ((n or count) * eps**2)
    gram = columns @ columns.T if d <= count else columns.T @ columns
    return 0.5 * torch.logdet(torch.eye(len(gram), dtype=torch.float64) + a * gram)


def features(n: int, d: int, *, seed: int = 0) -> Tensor:
    z = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(z, dim=-1)


def orthonormal(rows: int, columns: int, *, seed: int = 0) -> Tensor:
    """[rows, columns] with orthonormal rows or columns, whichever there are fewer of."""
    z = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    u, _, vh = torch.linalg.svd(z, full_matrices=False)
    return u @ vh


def flat_spectrum(n: int, d: int) -> Tensor:
    """Unit features whose nonzero eigenvalues are all n / min(d, n)."""
    return orthonormal(n, d) if n <= d else torch.eye(d, dtype=torch.float64).repeat(n // d, 1) @ orthonormal(d, d)


def collapsed(n: int, d: int) -> Tensor:
    return features(1, d).expand(n, d)


def gradient_of(rate: Tensor, z: Tensor) -> Tensor:
    return torch.autograd.grad(rate, z)[0]


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


# --- value -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(2, 8), (8, 2), (8, 8), (64, 16), (16, 64), (1, 1)])
@pytest.mark.parametrize("eps", [1.0, 0.3, 0.01])
def test_value_is_the_formula(n: int, d: int, eps: float) -> None:
    z = features(n, d)
    assert coding_rate(z, eps=eps).item() == pytest.approx(formula(z, eps=eps).item(), rel=1e-10)


@pytest.mark.parametrize(("n", "d"), [(5, 9), (9, 5)])
def test_sylvester_the_rate_of_features_and_of_their_gram_matrix_are_one_number(n: int, d: int) -> None:
    z = features(n, d)
    a = d / (n * EPS**2)
    other_side = 0.5 * torch.logdet(torch.eye(n, dtype=torch.float64) + a * z @ z.T)
    assert coding_rate(z, eps=EPS).item() == pytest.approx(other_side.item(), rel=1e-12)


def test_rotating_the_features_leaves_the_rate_and_rotates_its_gradient() -> None:
    rotation = orthonormal(12, 12, seed=1)
    z = features(20, 12).requires_grad_()
    turned = (z.detach() @ rotation).requires_grad_()
    rate, rate_turned = coding_rate(z, eps=EPS), coding_rate(turned, eps=EPS)
    assert rate.item() == pytest.approx(rate_turned.item(), rel=1e-12)
    assert relative(gradient_of(rate_turned, turned), gradient_of(rate, z) @ rotation) < 1e-12


def test_order_of_the_samples_does_not_matter() -> None:
    z = features(20, 12)
    assert coding_rate(z, eps=EPS).item() == pytest.approx(coding_rate(z.flip(0), eps=EPS).item(), rel=1e-12)


def test_a_shard_takes_the_whole_batch_in_its_scale() -> None:
    z = features(16, 8)
    assert coding_rate(z, eps=EPS, n=64).item() == pytest.approx(formula(z, eps=EPS, n=64).item(), rel=1e-12)
    # The same number as a whole batch of 16 at four times the eps²: the hidden normalisation of the released code.
    assert coding_rate(z, eps=EPS, n=64).item() == pytest.approx(coding_rate(z, eps=2 * EPS).item(), rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(8, 8), (32, 8), (8, 32), (2, 5)])
@pytest.mark.parametrize("eps", [1.0, 0.2])
def test_collapsed_features_reach_the_floor_and_a_flat_spectrum_the_ceiling(n: int, d: int, eps: float) -> None:
    floor, ceiling = rate_floor(d=d, n=n, eps=eps), rate_ceiling(d=d, n=n, eps=eps)
    assert coding_rate(collapsed(n, d), eps=eps).item() == pytest.approx(floor, rel=1e-10)
    assert coding_rate(flat_spectrum(n, d), eps=eps).item() == pytest.approx(ceiling, rel=1e-10)
    assert floor == pytest.approx(0.5 * log(1 + d / eps**2), rel=1e-12)
    if n >= d:
        assert ceiling == pytest.approx(d / 2 * log(1 + 1 / eps**2), rel=1e-12)


@pytest.mark.parametrize(("n", "d", "rank"), [(32, 16, 4), (8, 32, 4), (8, 8, 8), (8, 32, 99)])
def test_features_of_a_low_rank_reach_its_ceiling_and_its_largest_gradient(n: int, d: int, rank: int) -> None:
    possible = min(rank, n, d)
    z = torch.zeros(n, d, dtype=torch.float64)
    z[:, :possible] = flat_spectrum(n, possible)
    ceiling = rate_ceiling(d=d, n=n, eps=EPS, rank=rank)
    assert coding_rate(z, eps=EPS).item() == pytest.approx(ceiling, rel=1e-10)
    assert ceiling < rate_ceiling(d=d, n=n, eps=EPS) or possible == min(n, d)
    singular = (n * EPS**2 / d) ** 0.5  # 1/sqrt(a)
    z = (singular * z / torch.linalg.matrix_norm(z, ord=2)).requires_grad_()
    (gradient,) = torch.autograd.grad(coding_rate(z, eps=EPS), z)
    assert gradient.norm().item() == pytest.approx(largest_gradient(d=d, n=n, eps=EPS, rank=rank), rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(32, 8), (8, 32)])
def test_no_unit_features_leave_the_bounds(n: int, d: int) -> None:
    floor, ceiling = rate_floor(d=d, n=n, eps=EPS), rate_ceiling(d=d, n=n, eps=EPS)
    for seed in range(20):
        assert floor < coding_rate(features(n, d, seed=seed), eps=EPS).item() < ceiling


def test_bounds_of_a_shard_are_reached_by_its_columns() -> None:
    floor, ceiling = (f(d=16, n=64, eps=EPS, columns=8) for f in (rate_floor, rate_ceiling))
    assert coding_rate(collapsed(8, 16), eps=EPS, n=64).item() == pytest.approx(floor, rel=1e-10)
    assert coding_rate(flat_spectrum(8, 16), eps=EPS, n=64).item() == pytest.approx(ceiling, rel=1e-10)


# --- gradient ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(2, 8), (8, 2), (64, 16), (16, 64)])
@pytest.mark.parametrize("eps", [1.0, EPS, 0.001**0.5])
def test_gradient_is_autograd_of_the_formula(n: int, d: int, eps: float) -> None:
    z = features(n, d).requires_grad_()
    assert relative(gradient_of(coding_rate(z, eps=eps), z), gradient_of(formula(z, eps=eps), z)) < 1e-9


@pytest.mark.parametrize(("n", "d"), [(8, 8), (64, 16), (16, 64)])
@pytest.mark.parametrize("eps", [1.0, 0.2])
def test_largest_gradient_is_reached_at_singular_values_of_one_over_root_a(n: int, d: int, eps: float) -> None:
    bound = sqrt(d * min(d, n) / n) / (2 * eps)
    assert largest_gradient(d=d, n=n, eps=eps) == pytest.approx(bound, rel=1e-12)
    a = d / (n * eps**2)
    z = (orthonormal(n, d) / sqrt(a)).requires_grad_()
    assert gradient_of(coding_rate(z, eps=eps), z).norm().item() == pytest.approx(bound, rel=1e-10)


@pytest.mark.parametrize("size", [1e-3, 0.1, 1.0, 10.0, None])
def test_largest_gradient_is_never_exceeded(size: float | None) -> None:
    for n, d in ((8, 8), (32, 8), (8, 32)):
        for seed in range(10):
            z = features(n, d, seed=seed)
            if size is not None:
                z = size * torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            z.requires_grad_()
            norm = gradient_of(coding_rate(z, eps=EPS), z).norm().item()
            assert norm <= largest_gradient(d=d, n=n, eps=EPS) * (1 + 1e-12)


def test_w_times_the_features_is_the_gradient() -> None:
    z = features(10, 6).requires_grad_()
    _, w = rate_from_moments(second_moments(z.detach()), n=10, eps=EPS)
    assert relative(z.detach() @ w, gradient_of(formula(z, eps=EPS), z)) < 1e-12


# --- numerics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=["f16", "bf16", "f32"])
@pytest.mark.parametrize("eps2", [1.0, 0.05, 0.001])
@pytest.mark.parametrize("n", [2, 64, 4096])
@pytest.mark.parametrize("kind", ["collapsed", "near-collapsed", "random"])
def test_every_float_type_gives_the_rate_of_its_rounded_features(
    kind: str, n: int, eps2: float, dtype: torch.dtype
) -> None:
    d = 64
    spread = {"collapsed": 0.0, "near-collapsed": 1e-3, "random": 1.0}[kind]
    exact = torch.nn.functional.normalize((1 - spread) * collapsed(n, d) + spread * features(n, d, seed=1), dim=-1)
    z = exact.to(dtype).requires_grad_()
    rounded = z.detach().double().requires_grad_()
    rate, expected = coding_rate(z, eps=eps2**0.5), formula(rounded, eps=eps2**0.5)
    assert rate.dtype == torch.float64
    assert rate.item() == pytest.approx(expected.item(), rel=1e-6)
    got = gradient_of(rate, z)
    assert got.dtype == dtype and got.isfinite().all()
    assert relative(got, gradient_of(expected, rounded)) < {torch.float32: 1e-6}.get(dtype, torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_reach_the_rate(dtype: torch.dtype) -> None:
    z = features(32, 16).float().requires_grad_()
    plain = coding_rate(z, eps=0.1)
    with torch.autocast("cpu", dtype=dtype):
        cast = coding_rate(z, eps=0.1)
    assert cast.dtype == torch.float64 and cast.item() == plain.item()
    assert torch.equal(gradient_of(cast, z), gradient_of(plain, z))


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (8, 4), (4, 8)])
def test_features_that_are_not_finite_give_nan_and_no_plausible_number(n: int, d: int, bad: float) -> None:
    z = features(n, d)
    z[-1, -1] = bad
    assert coding_rate(z, eps=EPS).isnan()
    assert coding_rate(torch.full((n, d), bad), eps=EPS).isnan()


def test_one_bad_matrix_of_several_leaves_the_others() -> None:
    moments = second_moments(features(8, 4)).repeat(3, 1, 1)
    moments[1, 0, 0] = nan
    rates, _ = rate_from_moments(moments, n=8, eps=EPS)
    assert rates.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("shape", "eps", "what"), [((4,), 0.1, r"\(4,\)"), ((1, 2, 3), 0.1, "shape"), ((4, 2), 0, "eps")]
)
def test_wrong_arguments_are_refused(shape: tuple[int, ...], eps: float, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        coding_rate(torch.zeros(shape), eps=eps)


# --- what is read off it -----------------------------------------------------------------------------------------


def test_effective_rank_of_four_stacked_identities_is_eight() -> None:
    assert effective_rank(second_moments(torch.eye(8).repeat(4, 1))).item() == pytest.approx(8, rel=1e-12)


def test_effective_rank_between_one_and_the_dimension() -> None:
    assert effective_rank(second_moments(collapsed(32, 8))).item() == pytest.approx(1, rel=1e-6)
    assert effective_rank(second_moments(flat_spectrum(4, 8))).item() == pytest.approx(4, rel=1e-6)
    # Eigenvalues 3/4 and 1/4: exp of the entropy of (3/4, 1/4).
    z = torch.tensor([[1.0, 0, 0]] * 3 + [[0.0, 1, 0]])
    assert effective_rank(second_moments(z)).item() == pytest.approx(4 / 3**0.75, rel=1e-10)


@pytest.mark.parametrize("bad", [nan, inf])
def test_effective_rank_of_moments_that_are_not_finite_is_nan(bad: float) -> None:
    moments = second_moments(features(32, 8))
    moments[2, :] = moments[:, 2] = bad
    assert effective_rank(moments).isnan()


def test_effective_rank_of_zero_moments_is_finite() -> None:
    assert effective_rank(torch.zeros(4, 4)).isfinite()


@pytest.mark.parametrize(
    ("shard", "count", "better"),
    [(64, 8, False), (128, 8, False), (64, 16, True), (78, 32, True)],
    ids=["README", "v2 README", "ISSUE 29", "ISSUE 20"],
)
def test_collapse_is_the_better_minimum_in_the_runs_that_collapsed(shard: int, count: int, better: bool) -> None:
    n = shard * count
    bounds = {"d": D, "n": n, "eps": EPS, "columns": shard}
    weight = 1 / n + 1 / D
    healthy = 0.6 + weight * rate_ceiling(**bounds)
    assert (healthy < 1 + weight * rate_floor(**bounds)) is better
    assert collapse_is_better(weight=weight, ceiling=rate_ceiling(**bounds), floor=rate_floor(**bounds)) is better
