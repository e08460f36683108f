"""The compiled operations give what the torch form gives, image by image and operation by operation."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from simdino import rng as counters
from simdino.config import ViewsConfig
from simdino.data import photometric_cpu
from simdino.data.photometric import chosen_for, distort, noise, normalise, photometric, to_unit_range

CONFIG = ViewsConfig()
OFF = ViewsConfig(jitter=0.0, grey=0.0, blur=(0.0, 0.0, 0.0), solarize=(0.0, 0.0, 0.0))
KEYS = torch.from_numpy(counters.sample_keys(3, 0, np.arange(40)))
STRENGTHS = ("brightness", "contrast", "saturation", "hue")
ALONE = [
    *(
        dataclasses.replace(OFF, jitter=1.0, **{other: 0.0 for other in STRENGTHS if other != name})
        for name in STRENGTHS
    ),
    dataclasses.replace(OFF, jitter=1.0, brightness=0.9, contrast=1.5, saturation=1.0, hue=0.5),
    dataclasses.replace(OFF, grey=0.5),
    dataclasses.replace(OFF, blur=(1.0, 1.0, 1.0)),
    dataclasses.replace(OFF, blur=(1.0, 1.0, 1.0), blur_sigma=(0.1, 0.6)),
    dataclasses.replace(OFF, blur=(1.0, 1.0, 1.0), blur_sigma=(3.0, 4.0)),
    dataclasses.replace(OFF, blur=(1.0, 1.0, 1.0), blur_radius=4, blur_edges="reflect"),
    dataclasses.replace(OFF, blur=(1.0, 1.0, 1.0), blur_radius=9, blur_edges="reflect"),
    dataclasses.replace(OFF, solarize=(0.5, 0.5, 0.5)),
]


def photos(channels: int = 3, height: int = 24, width: int = 24) -> Tensor:
    """Smooth and hard places, pure colours, black and white."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [
        127 + 140 * np.sin(np.arange(len(KEYS))[:, None, None] + 5 * x + c) * np.cos(7 * y) for c in range(channels)
    ]
    made = torch.from_numpy(np.stack(waves, 1).clip(0, 255).astype(np.uint8))
    made[::7, :, :5] = torch.tensor([255, 0, 128, 3, 250][:channels], dtype=torch.uint8).view(-1, 1, 1)
    return made


def by_torch(crops: Tensor, config: ViewsConfig, view: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    chosen = chosen_for(KEYS, view, channels=crops.shape[1], config=config)
    return normalise(distort(to_unit_range(crops), chosen), mean=mean, std=std)


@pytest.mark.parametrize("config", [CONFIG, *ALONE])
@pytest.mark.parametrize(
    ("channels", "height", "width"), [(3, 24, 24), (1, 24, 24), (3, 19, 30), (3, 5, 3), (5, 24, 24), (2, 9, 7)]
)
@pytest.mark.parametrize("view", [0, 1, 5])
def test_the_views_are_those_of_the_torch_form(
    config: ViewsConfig, channels: int, height: int, width: int, view: int
) -> None:
    mean, std = (0.5, 0.4, 0.3, 0.2, 0.6)[:channels], (0.2, 0.25, 0.3, 0.1, 0.4)[:channels]
    crops = photos(channels, height, width)
    views = photometric(crops[None], KEYS, config=config, first=view, mean=mean, std=std)[0]
    difference = (views - by_torch(crops, config, view, mean, std)).abs()
    # A value within rounding of the threshold of solarisation may fall on its other side.
    assert (difference > 1e-5 / min(std)).float().mean() < 1e-3
    assert difference.median() < 1e-6


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_floating_point_crops_give_the_same_views(channels: int) -> None:
    law = {"config": CONFIG, "first": 0, "mean": (0.5,) * channels, "std": (0.25,) * channels}
    crops = photos(channels, 24, 24)
    torch.testing.assert_close(
        photometric(to_unit_range(crops)[None], KEYS, **law), photometric(crops[None], KEYS, **law), atol=1e-5, rtol=0
    )


def test_each_of_many_channels_has_its_own_brightness_and_contrast() -> None:
    """Against the formula in float64, for the order that was drawn."""
    config = replace(CONFIG, jitter=1.0, blur=(0.0,) * 3, solarize=(1.0,) * 3, grey=1.0)
    crops = photos(4, 12, 12)
    found = photometric(crops[None], KEYS, config=config, first=0, mean=(0.0,) * 4, std=(1.0,) * 4)[0]
    chosen = chosen_for(KEYS, 0, channels=4, config=config)
    assert chosen.bands.shape == (len(KEYS), 2, 4) and len(np.unique(chosen.bands)) == chosen.bands.size
    for i, image in enumerate(crops.double() / 255):
        for c, plane in enumerate(image):
            for operation in chosen.order[i]:
                factor = float(chosen.bands[i, min(operation, 1), c])
                if operation == 0:
                    plane = (plane * factor).clamp(0, 1)  # noqa: PLW2901
                elif operation == 1:
                    plane = (plane.mean() + factor * (plane - plane.mean())).clamp(0, 1)  # noqa: PLW2901
            torch.testing.assert_close(found[i, c].double(), plane, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [3, 6])
def test_a_lost_channel_is_at_the_mean_and_the_others_stay(channels: int) -> None:
    law = {"first": 0, "mean": (0.5,) * channels, "std": (0.25,) * channels}
    crops, config = photos(3, 9, 9).repeat(1, 2, 1, 1)[:, :channels], replace(CONFIG, channel_dropout=0.5)
    found = photometric(crops[None], KEYS, config=config, **law)[0]
    whole = photometric(crops[None], KEYS, config=CONFIG, **law)[0]
    lost = (found == 0).all((2, 3))
    assert 0.2 < float(lost.any(1).float().mean()) < 0.8 and int(lost.sum(1).max()) == 1
    assert torch.equal(found[~lost], whole[~lost])
    one = photometric(crops[None, :, :1], KEYS, config=config, first=0, mean=(0.5,), std=(0.25,))
    assert not (one == 0).all((-1, -2)).any()  # an only channel is never lost


def test_noise_is_normal_its_images_own_and_no_other_views() -> None:
    config, shape = replace(CONFIG, noise=0.5), torch.Size((3, 40, 40))

    def made(keys: Tensor, view: int) -> Tensor:
        return noise(keys, view, shape, config=config, device=torch.device("cpu"))

    found = made(KEYS, 0)
    stds = torch.from_numpy(0.5 * counters.uniform(KEYS.numpy(), counters.NOISE, 3)[:, 0])
    flat = found.flatten(1).double() / stds[:, None]
    assert (flat.mean(1).abs() < 5 / 4800**0.5).all() and ((flat.var(1) - 1).abs() < 5 * (2 / 4800) ** 0.5).all()
    assert stats.kstest(flat.flatten().numpy(), "norm").pvalue > 1e-3
    others = torch.corrcoef(torch.cat([flat, made(KEYS, 1).flatten(1).double(), flat[:, torch.randperm(4800)]]))
    assert others.fill_diagonal_(0).abs().max() < 6 / 4800**0.5
    for lag in (1, 2, 40, 1600):
        assert abs(float((flat[:, lag:] * flat[:, :-lag]).mean())) < 5 / flat[:, lag:].numel() ** 0.5
    assert torch.equal(made(KEYS[7:9], 0), found[7:9])


def test_noise_is_in_stds_of_the_training_images_and_comes_last() -> None:
    crops, law = photos(), {"first": 0, "mean": (0.5,) * 3, "std": (0.1, 0.2, 0.4)}
    plain = photometric(crops[None], KEYS, config=CONFIG, **law)[0]
    noisy = photometric(crops[None], KEYS, config=replace(CONFIG, noise=0.3), **law)[0]
    expected = noise(KEYS, 0, crops.shape[1:], config=replace(CONFIG, noise=0.3), device=torch.device("cpu"))
    torch.testing.assert_close(noisy - plain, expected, atol=1e-5, rtol=0)


def test_crops_in_any_memory_order_give_the_same_views() -> None:
    crops = photos()
    strided = crops.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    options = {"config": CONFIG, "first": 0, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    assert torch.equal(photometric(strided[None], KEYS, **options), photometric(crops[None], KEYS, **options))


@pytest.mark.parametrize(("sigma", "radius"), [(0.1, 1), (0.7, 3), (2.0, 6), (5.0, 15)])
def test_weights_of_the_blur_sum_to_one_and_come_in_fours(sigma: float, radius: int) -> None:
    taps = photometric_cpu.gaussian(np.float32(sigma), radius)
    assert len(taps) % 4 == 0 and len(taps) >= 2 * radius + 1 and not taps[2 * radius + 1 :].any()
    assert taps.sum() == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(taps[: 2 * radius + 1], taps[: 2 * radius + 1][::-1])


def test_the_mean_of_many_pixels_is_exact_enough() -> None:
    plane = np.random.default_rng(0).random(224 * 224).astype(np.float32)
    assert photometric_cpu.mean_of(plane) == pytest.approx(float(plane.astype(np.float64).mean()), abs=1e-6)
