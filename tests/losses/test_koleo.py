"""KoLeo against its loops, and the whole batch's features from those of its parts."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor
from written_out import DTYPES, TOLERANCE, norm_one, relative, slow_koleo

from simdino.losses.dinov2 import koleo, spread_out


def features(n: int = 9, width: int = 5, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    x = 3 * torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 9, 20])
def test_value_and_gradient_are_those_of_the_loops(n: int, dtype: torch.dtype) -> None:
    x = features(n, dtype=dtype)
    ours, expected = koleo(x), slow_koleo(x)
    assert relative(ours.detach(), expected.detach()) < TOLERANCE[dtype]
    mine, theirs = (torch.autograd.grad(value, x, retain_graph=True)[0] for value in (ours, expected))
    assert relative(mine, theirs) < TOLERANCE[dtype]


def test_the_length_of_a_feature_does_not_count() -> None:
    x = features()
    scales = torch.arange(1, 10, dtype=torch.float64)[:, None]
    assert koleo(x * scales).item() == pytest.approx(koleo(x).item(), rel=1e-12)


def test_on_a_circle_the_nearest_is_the_next_one() -> None:
    angles = torch.arange(6, dtype=torch.float64) * torch.pi / 3
    hexagon = torch.stack([angles.cos(), angles.sin()], dim=1)  # neighbours at distance 1
    assert koleo(hexagon).item() == pytest.approx(0.0, abs=1e-7)
    assert koleo(hexagon[::2]).item() == pytest.approx(-log(3**0.5), abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equal_features_give_a_large_finite_loss_and_gradient(dtype: torch.dtype) -> None:
    x = torch.ones(4, 3, dtype=dtype).requires_grad_()
    value = koleo(x)
    value.backward()
    assert value.dtype == torch.float32 and x.grad.isfinite().all()
    assert value.item() == pytest.approx(-log(2e-8), rel=0.01)  # log of 1e-8 and the least distance, 1e-8


def test_a_descent_spreads_the_features() -> None:
    x = features(8)
    for _ in range(50):
        (gradient,) = torch.autograd.grad(koleo(x), x)
        x = (norm_one(x) - 0.02 * gradient).detach().requires_grad_()
    assert koleo(x).item() < koleo(features(8)).item() - 0.1


@pytest.mark.parametrize(("n", "among"), [(12, 3), (12, 6), (12, 12), (4, 2)])
def test_neighbours_among_shards_are_the_loops_of_each_shard(n: int, among: int) -> None:
    """What n / among processes compute on their own images, averaged."""
    x = features(n)
    expected = torch.stack([slow_koleo(part) for part in x.split(among)]).mean()
    ours = koleo(x, among=among)
    assert relative(ours.detach(), expected.detach()) < 1e-9
    mine, theirs = (torch.autograd.grad(value, x, retain_graph=True)[0] for value in (ours, expected))
    assert relative(mine, theirs) < 1e-9
    assert among == n or abs(ours.item() - koleo(x).item()) > 1e-3


# --- the whole batch from its parts ---------------------------------------------------------------------------------


def test_parts_are_spread_to_their_places_with_their_gradient() -> None:
    x, indices = features(3), torch.tensor([4, 0, 2])
    whole = spread_out(x, indices, batch=5)
    assert torch.equal(whole[indices], x) and not whole[[1, 3]].any()
    weights = torch.randn(5, x.shape[1], dtype=torch.float64)
    (gradient,) = torch.autograd.grad((whole * weights).sum(), x)
    assert torch.equal(gradient, weights[indices])


def test_parts_add_up_to_the_batch_in_the_order_of_places() -> None:
    x, order = features(9).detach(), torch.randperm(9, generator=torch.Generator().manual_seed(0))
    mine, others = order[:5], order[5:]
    parts = [spread_out(x[own], own, batch=9) for own in (mine[:2], mine[2:], others)]
    assert torch.equal(sum(parts), x)
    views = torch.stack([x, -x])
    assert torch.equal(sum(spread_out(views[:, own], own, batch=9) for own in (mine, others)), views)
