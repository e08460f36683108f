"""Schedules against DINO's own scheduler and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from simdino.config import OptimConfig, Ramp
from simdino.train.optim import cosine, values_at, warmup_cosine

CONFIG = OptimConfig(lr=2e-3, final_lr=1e-5, warmup=0.2, weight_decay=0.04, final_weight_decay=0.4, momentum=0.99)


def dinos_cosine_scheduler(base: float, final: float, steps: int, *, warmup: int = 0) -> NDArray[np.float64]:
    """DINO's utils.cosine_scheduler, whose warm-up here stops one step short of the peak that follows it."""
    iterations = np.arange(steps - warmup)
    falling = final + 0.5 * (base - final) * (1 + np.cos(np.pi * iterations / len(iterations)))
    return np.concatenate([np.linspace(0, base, warmup, endpoint=False), falling])


def released_schedule(
    start: float, peak: float, end: float, steps: int, *, warmup: int, endpoint: bool
) -> NDArray[np.float64]:
    """numpy's line of `warmup` steps, with the peak as its last or as the step after it, and half a cosine."""
    rising = np.linspace(start, peak, warmup, endpoint=endpoint)
    falling = end + 0.5 * (peak - end) * (1 + np.cos(np.pi * np.arange(steps - warmup) / (steps - warmup)))
    return np.concatenate([rising, falling])


def column(name: str, steps: int, config: OptimConfig = CONFIG) -> NDArray[np.float64]:
    return np.array([getattr(values_at(step, steps=steps, config=config), name) for step in range(steps)])


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.1), (0.04, 0.4), (0.996, 1.0), (3.0, 3.0)])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_cosine_is_dinos_law(start: float, end: float, steps: int) -> None:
    ours = [cosine(step, steps, start=start, end=end) for step in range(steps)]
    np.testing.assert_allclose(ours, dinos_cosine_scheduler(start, end, steps), rtol=1e-12)
    assert ours[0] == pytest.approx(start, rel=1e-12)
    assert cosine(steps, steps, start=start, end=end) == pytest.approx(end, rel=1e-12)
    assert cosine(2 * steps, steps, start=start, end=end) == pytest.approx(end, rel=1e-12)  # and stays
    if steps % 2 == 0:
        assert cosine(steps // 2, steps, start=start, end=end) == pytest.approx((start + end) / 2, rel=1e-12)


@pytest.mark.parametrize(("steps", "warmup"), [(10, 1), (10, 4), (100, 10), (10, 9), (10, 0)])
def test_warmup_is_a_line_and_then_dinos_law(steps: int, warmup: int) -> None:
    ours = [warmup_cosine(step, steps, warmup=warmup, peak=2.0, end=0.5) for step in range(steps)]
    np.testing.assert_allclose(ours, dinos_cosine_scheduler(2.0, 0.5, steps, warmup=warmup), rtol=1e-12)
    assert ours[warmup] == max(ours) == 2.0
    np.testing.assert_allclose(np.diff(ours[: warmup + 1]), 2.0 / max(warmup, 1), rtol=1e-12)
    assert (np.diff(ours[warmup:]) < 0).all()
    assert warmup_cosine(steps, steps, warmup=warmup, peak=2.0, end=0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("steps", [1, 2, 10, 137])
def test_a_runs_weight_decay_and_momentum_are_dinos(steps: int) -> None:
    np.testing.assert_allclose(column("weight_decay", steps), dinos_cosine_scheduler(0.04, 0.4, steps), rtol=1e-12)
    np.testing.assert_allclose(column("momentum", steps), dinos_cosine_scheduler(0.99, 1.0, steps), rtol=1e-12)


@pytest.mark.parametrize("steps", [5, 10, 137])
def test_a_runs_learning_rate_is_dinos_without_its_first_step_of_zero(steps: int) -> None:
    expected = dinos_cosine_scheduler(2e-3, 1e-5, steps + 1, warmup=round(0.2 * steps))[1:]
    np.testing.assert_allclose(column("lr", steps), expected, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
def test_every_step_of_every_run_moves_the_weights(steps: int, warmup: float) -> None:
    rates = column("lr", steps, OptimConfig(lr=1e-3, final_lr=0.0, warmup=warmup))
    assert (rates > 0).all() and rates.max() == pytest.approx(1e-3)
    peak = int(rates.argmax())
    assert peak == max(1, round(warmup * steps)) - 1
    assert (np.diff(rates[: peak + 1]) > 0).all() and (np.diff(rates[peak:]) < 0).all()


def test_values_rise_and_fall_as_they_should() -> None:
    assert (np.diff(column("weight_decay", 50)) > 0).all()
    momentum = column("momentum", 50)
    assert (np.diff(momentum) > 0).all() and momentum[-1] < 1
    assert column("lr", 1000)[-1] == pytest.approx(1e-5, rel=1e-3)


def test_values_depend_on_the_step_and_nothing_else() -> None:
    forwards = [values_at(step, steps=20, config=CONFIG) for step in range(20)]
    backwards = [values_at(step, steps=20, config=CONFIG) for step in reversed(range(20))]
    assert forwards == backwards[::-1]


# --- the released codes' ramps --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "warmup"), [(10, 1), (10, 2), (137, 27), (1000, 200)])
@pytest.mark.parametrize(("ramp", "first"), [("inclusive", 0.0), ("exclusive", 1e-6), ("inclusive", 1e-6)])
def test_a_released_ramp_is_its_sources(ramp: Ramp, first: float, steps: int, warmup: int) -> None:
    config = OptimConfig(lr=2e-3, final_lr=1e-6, first_lr=first, warmup=warmup / steps, ramp=ramp)
    expected = released_schedule(first, 2e-3, 1e-6, steps, warmup=warmup, endpoint=ramp == "inclusive")
    np.testing.assert_allclose(column("lr", steps, config), expected, rtol=1e-12)
    assert column("lr", steps, config)[0] == first


@pytest.mark.parametrize("steps", [10, 137, 1000])
def test_the_ramps_differ_by_a_step_in_the_warm_up_and_then_no_more(steps: int) -> None:
    ours, theirs = (column("lr", steps, OptimConfig(lr=1e-3, warmup=0.2, ramp=ramp)) for ramp in ("ahead", "exclusive"))
    warmup = round(0.2 * steps)
    np.testing.assert_allclose(ours[: warmup - 1], theirs[1:warmup], rtol=1e-12)
    assert np.abs(ours - theirs)[warmup:].max() < 1e-3 * np.pi / 2 / (steps - warmup)


def test_the_temperature_of_a_released_run_has_both_ends() -> None:
    config = OptimConfig(temperature=(0.04, 0.07), temperature_warmup=0.3, ramp="inclusive")
    expected = [*np.linspace(0.04, 0.07, 30), *[0.07] * 70]
    np.testing.assert_allclose(column("temperature", 100, config), expected, rtol=1e-12)
    assert column("temperature", 3, config).tolist() == [0.04, 0.07, 0.07], "a line of one step is its start"
