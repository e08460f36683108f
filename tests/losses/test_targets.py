"""Targets of a student: centring with the centre of the steps before, and Sinkhorn-Knopp as it is printed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from written_out import DTYPES, TOLERANCE, Largest, as_logits, relative, slow_centred, slow_sinkhorn

from simdino.contracts import Logits
from simdino.losses import cross_entropy
from simdino.losses.cross_entropy import balanced, centred, moved_center, sinkhorn

ROWS, K = 11, 6


def make_logits(rows: int = ROWS, *, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 0.3) -> Tensor:
    return (scale * torch.randn(rows, K, generator=torch.Generator().manual_seed(seed))).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.04, 0.07, 1.0])
def test_centred_targets_are_the_softmax_of_logits_without_their_centre(temperature: float, dtype: torch.dtype) -> None:
    logits, center = make_logits(dtype=dtype), make_logits(1, seed=1, dtype=dtype)[0]
    targets = centred(logits, center, temperature=temperature)
    assert targets.dtype == dtype
    assert relative(targets, slow_centred(logits, center, temperature)) < TOLERANCE[dtype]
    assert relative(targets, slow_centred(logits, -center, temperature)) > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_float32_targets(dtype: torch.dtype) -> None:
    logits = make_logits(dtype=dtype)
    targets = centred(logits, torch.zeros(K), temperature=0.04)
    assert targets.dtype == sinkhorn(logits, temperature=0.04).dtype == torch.float32
    assert relative(targets, slow_centred(logits, torch.zeros(K), 0.04)) < 1e-5
    assert relative(sinkhorn(logits, temperature=0.04), slow_sinkhorn(logits, 0.04)) < 1e-5


# --- the centre -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.9, 0.0, 1.0])
def test_the_centre_over_steps_is_the_sum_of_means_with_falling_weights(momentum: float) -> None:
    steps = [make_logits(seed=seed) for seed in range(4)]
    center = torch.full((K,), 0.5, dtype=torch.float64)
    for logits in steps:
        center = moved_center(center, [as_logits(logits)], momentum=momentum)
    expected = torch.full((K,), 0.5, dtype=torch.float64) * momentum**4
    for age, logits in enumerate(reversed(steps)):
        mean = sum(logits[row] for row in range(ROWS)) / ROWS
        expected = expected + (1 - momentum) * momentum**age * mean
    torch.testing.assert_close(center, expected, rtol=1e-12, atol=1e-15)


def test_the_centre_counts_rows_and_not_tensors() -> None:
    logits, start = make_logits(12), torch.zeros(K, dtype=torch.float64)
    whole = moved_center(start, [as_logits(logits)], momentum=0.9)
    parts = [as_logits(part) for part in (logits[:1], logits[1:12].unflatten(0, (11, 1)), logits[12:])]
    torch.testing.assert_close(moved_center(start, parts, momentum=0.9), whole, rtol=1e-12, atol=1e-15)


def test_without_a_row_the_centre_stays() -> None:
    center = make_logits(1)[0]
    assert torch.equal(moved_center(center, [as_logits(make_logits(0))] * 2, momentum=0.9), center)


def test_the_centre_of_shards_is_the_mean_of_their_means() -> None:
    """What processes with one, four and six rows compute: each counts alike (ibot_patch_loss.py of DINOv2)."""
    logits, start = make_logits(11), torch.full((K,), 0.5, dtype=torch.float64)
    shards = torch.tensor([2, 0, 1, 2, 2, 1, 1, 2, 1, 2, 2])
    means = [logits[shards == s].mean(0) for s in range(3)]
    expected = 0.9 * start + 0.1 * sum(means) / 3
    parts = {"shards": list(shards.split([4, 7])), "count": 3}
    moved = moved_center(start, [as_logits(part) for part in logits.split([4, 7])], momentum=0.9, **parts)
    torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-15)
    empty = moved_center(start, [as_logits(logits)], momentum=0.9, shards=[shards], count=5)
    torch.testing.assert_close(empty, expected, rtol=1e-12, atol=1e-15)  # shards without a row have no mean
    none = moved_center(start, [as_logits(logits[:0])], momentum=0.9, shards=[shards[:0]], count=2)
    assert torch.equal(none, start)


def test_the_centre_of_two_processes_is_that_of_all_rows() -> None:
    logits, start = make_logits(10), torch.zeros(K, dtype=torch.float64)
    others = {K: logits[3:].sum(0), 1: torch.tensor(7.0)}  # what the other process, with seven rows, adds
    moved = moved_center(start, [as_logits(logits[:3])], momentum=0.9, all_reduce=lambda x: x + others[x.numel()])
    torch.testing.assert_close(moved, 0.1 * logits.mean(0), rtol=1e-12, atol=1e-15)


# --- Sinkhorn-Knopp -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.04, 0.07, 1.0])
@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_sinkhorn_is_the_one_that_is_printed(iterations: int, temperature: float, dtype: torch.dtype) -> None:
    logits = make_logits(dtype=dtype)
    targets = sinkhorn(logits, temperature=temperature, iterations=iterations)
    assert targets.dtype == dtype
    assert relative(targets, slow_sinkhorn(logits, temperature, iterations)) < TOLERANCE[dtype]


def test_three_iterations_are_the_default() -> None:
    logits = make_logits()
    assert relative(sinkhorn(logits, temperature=0.05), slow_sinkhorn(logits, 0.05, 3)) < 1e-12
    assert relative(sinkhorn(logits, temperature=0.05), slow_sinkhorn(logits, 0.05, 2)) > 1e-4


def test_rows_sum_to_one_and_prototypes_are_used_equally_after_many_iterations() -> None:
    targets = sinkhorn(make_logits(), temperature=0.3, iterations=200)
    torch.testing.assert_close(targets.sum(1), torch.ones(ROWS, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(targets.sum(0), torch.full((K,), ROWS / K, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_large_logits_do_not_overflow(dtype: torch.dtype) -> None:
    logits = (make_logits() + 200).to(dtype)  # exp(200/0.05) is beyond float64
    targets = sinkhorn(logits, temperature=0.05)
    expected = slow_sinkhorn(logits.double() - 200)
    assert targets.isfinite().all() and relative(targets, expected) < 1e-3


def test_no_row_is_no_target() -> None:
    assert sinkhorn(make_logits(0), temperature=0.05).shape == (0, K)


@pytest.mark.parametrize("at_once", [1, 2 * 3 * K, 10_000])
@pytest.mark.parametrize("sizes", [[11], [4, 7], [1, 0, 10]])
def test_sinkhorn_of_a_batch_is_the_same_in_any_parts(
    at_once: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cross_entropy.AT_ONCE, "cpu", at_once)
    logits = make_logits(2 * ROWS).unflatten(0, (2, ROWS))  # of two views
    parts = balanced([as_logits(part) for part in logits.split(sizes, dim=1)], temperature=0.05)
    found = torch.cat([part.of(slice(None)) for part in parts], dim=1)
    assert relative(found, slow_sinkhorn(logits.flatten(0, 1), 0.05).view_as(logits)) < 1e-12


def test_balancing_makes_nothing_larger_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cross_entropy.AT_ONCE, "cpu", 2 * 4 * 500)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(500, 7, generator=generator)
    parts = [Logits(features=torch.randn(2, 32, 7, generator=generator), weight=weight) for _ in range(4)]
    with Largest() as largest:
        for part in balanced(parts, temperature=0.5):
            part.of(slice(0, 4))
    assert largest.seen == 2 * 4 * 500  # two views of four rows; all logits would be 32 times as many


def test_a_row_that_fits_no_prototype_has_a_target_all_the_same() -> None:
    """Its exponentials are below what float32 holds: printed as it is, the formula would divide 0 by 0."""
    logits = torch.tensor([[10.0, 9.0, 8.0], [8.0, 10.0, 9.0], [-20.0, -19.0, -21.0]])
    targets = sinkhorn(logits, temperature=0.1)
    assert targets.isfinite().all() and (targets[2].argmax(), round(targets[2].sum().item(), 5)) == (1, 1)
