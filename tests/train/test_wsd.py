"""Warm-up, stable, cool-down, and the encoder's own warm-up after a freeze, against numpy's closed forms in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from encoders import made
from simdino.config import Config, EncoderConfig, OptimConfig, Ramp
from simdino.contracts import InputError, Preprocess
from simdino.data.survey import DatasetStatistics
from simdino.models.catalogue import make_encoder
from simdino.models.groups import set_values
from simdino.models.projector import Embedder, Projector
from simdino.models.vit import ViT
from simdino.models.weights import save_encoder
from simdino.options import Options
from simdino.recipes import describe, resolve
from simdino.train.optim import Values, make_optimizer, values_at
from simdino.trunk import SHARES, counts, same_trunk, stable_from, trunk_end, with_length

SMALL = DatasetStatistics(
    images=400, read=400, channels=3, short_side=28, long_side=28, smallest=28, mean=(0.5,) * 3, std=(0.2,) * 3,
    labels=0, class_counts={}, broken={},
)  # fmt: skip


def column(name: str, steps: int, config: OptimConfig) -> NDArray[np.float64]:
    return np.array([getattr(values_at(step, steps=steps, config=config), name) for step in range(steps)])


def released_wsd(peak: float, end: float, steps: int, *, warmup: int, cooldown: int) -> NDArray[np.float64]:
    """A line from 0, a constant, and 1 - sqrt, as Hägele et al. 2024: in step n of N, 1 - √((n - N + D) / D)."""
    rates = np.full(steps, peak)
    rates[:warmup] = np.linspace(0, peak, warmup, endpoint=False)
    n = np.arange(steps - cooldown, steps)
    rates[steps - cooldown :] = end + (peak - end) * (1 - np.sqrt((n - (steps - cooldown)) / max(1, cooldown)))
    return rates


def planned(steps: int, **words: object) -> Config:
    return resolve("photos", Options(steps=steps, device="cpu", schedule="wsd", **words), statistics=SMALL)


def changed(config: Config, **optim: object) -> Config:
    return replace(config, optim=replace(config.optim, **optim))


@pytest.mark.parametrize(("steps", "warmup", "cooldown"), [(10, 1, 2), (100, 10, 20), (137, 30, 41), (1000, 50, 0)])
def test_wsd_is_its_formula(steps: int, warmup: int, cooldown: int) -> None:
    config = OptimConfig(
        lr=2e-3, final_lr=1e-5, warmup=warmup / steps, cooldown=cooldown / steps, schedule="wsd", ramp="exclusive"
    )
    expected = released_wsd(2e-3, 1e-5, steps, warmup=warmup, cooldown=cooldown)
    np.testing.assert_allclose(column("lr", steps, config), expected, rtol=1e-12)
    # ours has the rate of the next step: of a run of one step more, which cools down for one more, all but the first
    ahead = released_wsd(2e-3, 1e-5, steps + 1, warmup=warmup, cooldown=cooldown + 1 if cooldown else 0)[1:]
    np.testing.assert_allclose(column("lr", steps, replace(config, ramp="ahead")), ahead, rtol=1e-12)
    inclusive = column("lr", steps, replace(config, ramp="inclusive"))
    np.testing.assert_allclose(inclusive[warmup:], expected[warmup:], rtol=1e-12)
    np.testing.assert_allclose(inclusive[:warmup], np.linspace(0, 2e-3, warmup) if warmup > 1 else 0, rtol=1e-12)


@pytest.mark.parametrize("ramp", ["ahead", "inclusive", "exclusive"])
def test_a_trunk_is_constant_and_only_its_cool_down_knows_the_length(ramp: Ramp) -> None:
    short, long = (
        OptimConfig(
            schedule="wsd", warmup=10 / steps, ramp=ramp, temperature_warmup=30 / steps, freeze_prototypes=1 / steps
        )
        for steps in (100, 170)
    )
    first, second = ([values_at(i, steps=steps, config=config) for i in range(80)] for steps, config in (
        (100, short), (170, long)
    ))  # fmt: skip
    assert first == second, "bit for bit"
    assert len({value.lr for value in first[10:]}) == 1
    for name, value in (("weight_decay", short.weight_decay), ("momentum", short.momentum)):
        assert set(column(name, 100, short)) == {value}, "in the cool-down too"
    rates = column("lr", 100, short)
    assert (np.diff(rates[80:]) < 0).all() and rates[-1] < 0.2 * short.lr
    assert (column("lr", 100, replace(short, final_lr=0.0, ramp="ahead")) > 0).all(), "the last step still learns"


def test_without_a_cool_down_the_rate_never_falls() -> None:
    config = OptimConfig(schedule="wsd", cooldown=0.0)
    assert set(column("lr", 50, config)[5:]) == {config.lr}


# --- the encoder after a freeze ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "frozen", "warmup"), [(100, 5, 10), (37, 1, 4), (1000, 200, 50), (20, 19, 2)])
def test_an_encoder_that_was_frozen_warms_up_from_nothing(steps: int, frozen: int, warmup: int) -> None:
    config = OptimConfig(freeze_encoder=frozen / steps, warmup=warmup / steps)
    expected = np.concatenate([np.zeros(frozen), np.linspace(0, 1, warmup + 1)[1:], np.ones(steps)])[:steps]
    np.testing.assert_allclose(column("encoder_share", steps, config), expected, rtol=1e-12)
    assert column("freeze_encoder", steps, config).tolist() == [i < frozen for i in range(steps)]
    assert set(column("encoder_share", steps, replace(config, freeze_encoder=0.0))) == {1.0}


def test_only_the_encoders_groups_are_slowed_down_and_only_where_it_was_frozen() -> None:
    encoder = made(ViT, image_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2)
    model = Embedder(encoder, Projector(embed_dim=8, hidden_dim=8, out_dim=4))
    own = {id(p) for p in encoder.parameters()}
    plain = make_optimizer(model, OptimConfig())
    assert not any(group["encoder"] for group in plain.param_groups)
    for decay in (1.0, 0.5):
        optimizer = make_optimizer(model, OptimConfig(freeze_encoder=0.1, layer_decay=decay))
        set_values(optimizer, lr=1e-2, weight_decay=0.1, encoder_share=0.25)
        for group in optimizer.param_groups:
            assert {id(p) in own for p in group["params"]} == {group["encoder"]}
            assert group["lr"] == pytest.approx(1e-2 * group["lr_scale"] * (0.25 if group["encoder"] else 1.0))
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_the_split_of_groups_changes_no_step() -> None:
    def trained(config: OptimConfig) -> list[torch.Tensor]:
        torch.manual_seed(0)
        encoder = made(ViT, image_size=8, patch_size=4, in_chans=1, embed_dim=8, depth=1, num_heads=2)
        model = Embedder(encoder, Projector(embed_dim=8, hidden_dim=8, out_dim=4))
        optimizer = make_optimizer(model, config)
        set_values(optimizer, lr=1e-2, weight_decay=0.1)
        model.projector(encoder(torch.rand(4, 1, 8, 8)).cls).square().sum().backward()
        optimizer.step()
        return list(model.parameters())

    one, two = trained(OptimConfig()), trained(OptimConfig(freeze_encoder=0.1))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# --- lengths ----------------------------------------------------------------------------------------------------------


def test_of_two_lengths_a_run_with_nothing_given_has_one_trunk(tmp_path: Path) -> None:
    config = EncoderConfig(name="vit_pico", image_size=28, patch_size=4)
    encoder = make_encoder(config, Preprocess(resize=28, crop=28, channels=3, mean=(0.5,) * 3, std=(0.2,) * 3))
    save_encoder(encoder, tmp_path / "given.safetensors")
    for words in ({}, {"init": str(tmp_path / "given.safetensors")}):
        short, long = planned(300, **words), planned(2000, **words)
        for name in ("lr", "weight_decay", "momentum", "freeze_encoder", "encoder_share"):
            of_short, of_long = (column(name, config.run.steps, config.optim)[:240] for config in (short, long))
            assert (of_short == of_long).all(), name
        assert short.optim.freeze_encoder * 300 == pytest.approx(50 if words else 0)
    assert "stable until step 240 and then cooled down" in " ".join(describe(planned(300)))


def test_another_length_has_the_same_steps_in_the_same_trunk() -> None:
    config = changed(planned(300, method="dino"), freeze_encoder=7 / 300, warmup=13 / 300)
    for steps in (301, 777, 100_003):
        longer = with_length(config, steps)
        assert counts(vars(longer.optim), steps) == counts(vars(config.optim), 300)
        assert longer.run.steps == steps and longer.optim.cooldown == config.optim.cooldown
        free = same_trunk(longer, config.as_dict(), 240)
        assert free == {"run.steps", "optim.cooldown", *(f"optim.{name}" for name in SHARES)}
        assert same_trunk(longer, config.as_dict(), 241) == set(), "which is cooled down"
    assert (trunk_end(config), trunk_end(with_length(config, 1000)), stable_from(config)) == (240, 800, 90)
    assert trunk_end(changed(config, schedule="cosine")) is None
    assert same_trunk(changed(config, schedule="cosine"), config.as_dict(), 1) == set()
    assert "optim.warmup" not in same_trunk(config, changed(config, warmup=0.5).as_dict(), 100)
    for damaged in ({}, {"optim": None, "run": {}}, {"optim": {"schedule": "wsd"}, "run": {"steps": 3}}):
        assert same_trunk(config, damaged, 1) == set()
    with pytest.raises(InputError, match=r"50 steps are too few: optim\.temperature_warmup has 90 of the 300"):
        with_length(config, 50)


def test_a_frozen_encoder_is_stable_when_it_has_warmed_up() -> None:
    config = changed(planned(300), warmup=0.1, freeze_encoder=0.2)
    assert stable_from(config) == 90
    before, after = (values_at(step, steps=300, config=config.optim) for step in (88, 90))
    assert with_length(config, 91).optim.temperature_warmup == min(1, 0.3 * 300 / 91), "which SimDINO does not read"
    assert with_length(replace(config, optim=replace(config.optim, temperature_warmup=1.0)), 91).run.steps == 91
    assert isinstance(before, Values) and before.encoder_share < after.encoder_share == 1.0
