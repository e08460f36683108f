"""The compiled operations give what the torch form gives, image by image and operation by operation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from simdino import rng as counters
from simdino.config import ViewsConfig
from simdino.data import photometric_cpu
from simdino.data.photometric import distort, distortions, normalise, photometric, to_unit_range, view_draws

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
    made[::7, :, :5] = torch.tensor([255, 0, 128][:channels], dtype=torch.uint8).view(-1, 1, 1)
    return made


def by_torch(crops: Tensor, config: ViewsConfig, view: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    chosen = distortions(view_draws(KEYS, view), config=config, view=view, colour=crops.shape[1] == 3)
    return normalise(distort(to_unit_range(crops), chosen), mean=mean, std=std)


@pytest.mark.parametrize("config", [CONFIG, *ALONE])
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 24, 24), (1, 24, 24), (3, 19, 30), (3, 5, 3)])
@pytest.mark.parametrize("view", [0, 1, 5])
def test_the_views_are_those_of_the_torch_form(
    config: ViewsConfig, channels: int, height: int, width: int, view: int
) -> None:
    mean, std = (0.5, 0.4, 0.3)[:channels], (0.2, 0.25, 0.3)[:channels]
    crops = photos(channels, height, width)
    views = photometric(crops[None], KEYS, config=config, first=view, mean=mean, std=std)[0]
    difference = (views - by_torch(crops, config, view, mean, std)).abs()
    # A value within rounding of the threshold of solarisation may fall on its other side.
    assert (difference > 1e-5 / min(std)).float().mean() < 1e-3
    assert difference.median() < 1e-6


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
