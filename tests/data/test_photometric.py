"""Colours, blur and solarisation against torchvision and scipy; which image gets which, and how often."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from simdino import rng as counters
from simdino.config import ViewsConfig
from simdino.data import photometric as ours

CONFIG = ViewsConfig()
OFF = ViewsConfig(jitter=0.0, grey=0.0, blur=(0.0, 0.0, 0.0), solarize=(0.0, 0.0, 0.0))
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
WEIGHTS = 2e-4  # torchvision's luminance is 0.2989 r + 0.587 g + 0.114 b, Pillow's and ours has 0.299


def keys_of(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(counters.sample_keys(seed, 0, np.arange(count)))


def noise(count: int = 5, channels: int = 3, height: int = 20, width: int = 20) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def levels(count: int, channels: int = 3, size: int = 16) -> Tensor:
    return (255 * noise(count, channels, size, size)).round().to(torch.uint8)


def augment(images: Tensor, draws: np.ndarray, *, config: ViewsConfig, view: int) -> Tensor:
    chosen = ours.distortions(draws, config=config, view=view, colour=images.shape[1] == 3)
    return ours.distort(images, chosen)


def column(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


OPERATIONS: list[tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, float], Tensor], float]] = [
    (ours.brightness, tv.adjust_brightness, 1e-6),
    (ours.contrast, tv.adjust_contrast, WEIGHTS),
    (ours.saturation, tv.adjust_saturation, WEIGHTS),
]
FACTORS = (0.0, 0.3, 0.6, 1.0, 1.4, 2.0)


@pytest.mark.parametrize(("operation", "reference", "tolerance"), OPERATIONS, ids=lambda x: getattr(x, "__name__", ""))
def test_jitter_with_a_factor_per_image_equals_torchvision(
    operation: Callable, reference: Callable, tolerance: float
) -> None:
    x = noise(len(FACTORS))
    expected = torch.stack([reference(image, factor) for image, factor in zip(x, FACTORS, strict=True)])
    torch.testing.assert_close(operation(x, column(*FACTORS)), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("operation", "reference"), [(ours.brightness, tv.adjust_brightness), (ours.contrast, tv.adjust_contrast)]
)
def test_brightness_and_contrast_of_one_channel_equal_torchvision(operation: Callable, reference: Callable) -> None:
    x = noise(len(FACTORS), channels=1)
    expected = torch.stack([reference(image, factor) for image, factor in zip(x, FACTORS, strict=True)])
    torch.testing.assert_close(operation(x, column(*FACTORS)), expected, atol=1e-6, rtol=0)


SHIFTS = (-0.5, -0.31, -0.1, -0.01, 0.0, 0.05, 0.1, 0.25, 0.5)


@pytest.mark.parametrize("shift", SHIFTS)
def test_hue_equals_torchvision(shift: float) -> None:
    x = noise(2, height=64, width=64)
    torch.testing.assert_close(ours.hue(x, column(shift)), tv.adjust_hue(x, shift), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shift", SHIFTS)
def test_hue_of_pure_colours_equals_torchvision(shift: float) -> None:
    corners = torch.tensor([[r, g, b] for r in (0, 0.5, 1) for g in (0, 0.5, 1) for b in (0, 0.5, 1)])
    x = corners.T.reshape(1, 3, 1, 27)
    torch.testing.assert_close(ours.hue(x, column(shift)), tv.adjust_hue(x, shift), atol=1e-5, rtol=0)


def test_hue_leaves_grey_pixels_alone() -> None:
    x = noise(3, channels=1).expand(-1, 3, -1, -1).clone()
    assert (ours.hue(x, column(-0.1, 0.05, 0.4)) == x).all()


def test_hue_turned_forth_and_back_is_the_image() -> None:
    x = noise(4)
    shift = column(0.1, -0.07, 0.33, 0.5)
    torch.testing.assert_close(ours.hue(ours.hue(x, shift), -shift), x, atol=2e-5, rtol=0)


def test_hue_with_a_shift_per_image_equals_one_image_at_a_time() -> None:
    x = noise(3)
    alone = torch.cat([ours.hue(x[i : i + 1], column(s)) for i, s in enumerate((0.1, -0.05, 0.3))])
    assert (ours.hue(x, column(0.1, -0.05, 0.3)) == alone).all()


def test_a_third_of_a_turn_makes_red_green_and_green_blue() -> None:
    red, green, blue = (torch.eye(3)[i].view(1, 3, 1, 1) for i in range(3))
    torch.testing.assert_close(ours.hue(red, column(1 / 3)), green, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.hue(green, column(1 / 3)), blue, atol=1e-6, rtol=0)


def test_grey_equals_torchvision_and_the_weights_of_itu_601() -> None:
    x = noise()
    torch.testing.assert_close(ours.grey(x), tv.rgb_to_grayscale(x), atol=WEIGHTS, rtol=0)
    r, g, b = x.double().unbind(1)
    torch.testing.assert_close(ours.grey(x)[:, 0].double(), 0.299 * r + 0.587 * g + 0.114 * b, atol=1e-6, rtol=0)
    assert (ours.grey(x[:, :1]) == x[:, :1]).all()


def test_solarize_equals_torchvision_on_floats_and_pillows_threshold_on_all_levels() -> None:
    x = noise()
    assert (ours.solarize(x) == tv.solarize(x, 128 / 255)).all()
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    result = (ours.solarize(ours.to_unit_range(every)) * 255).round().to(torch.uint8)
    assert (result == tv.solarize(every, 128)).all()


def gaussian(image: Tensor, sigma: float) -> Tensor:
    """Blur with a kernel wide enough for anything, edges repeated, in float64."""
    pixels = image.double().numpy()
    for axis in (-2, -1):
        pixels = gaussian_filter1d(pixels, sigma, axis=axis, mode="nearest", radius=40)
    return torch.from_numpy(pixels)


TRUNCATED = 3e-3  # beyond three sigmas lie 0.27 % of a Gaussian


@pytest.mark.parametrize("shape", [(32, 32), (20, 31), (40, 7), (5, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_blur_with_a_sigma_per_image_equals_scipy(shape: tuple[int, int], channels: int) -> None:
    sigmas = (0.1, 0.3, 0.5, 1.0, 1.7, 2.0)
    x = noise(len(sigmas), channels, *shape)
    expected = torch.stack([gaussian(image, sigma) for image, sigma in zip(x, sigmas, strict=True)])
    torch.testing.assert_close(ours.gaussian_blur(x, column(*sigmas)).double(), expected, atol=TRUNCATED, rtol=0)


@pytest.mark.parametrize("sigma", [0.3, 0.8, 2.0])
def test_blur_inside_equals_torchvision(sigma: float) -> None:
    x = noise(2, height=40, width=40)
    expected = tv.gaussian_blur(x, [25, 25], [sigma, sigma])
    inside = (..., slice(12, -12), slice(12, -12))
    blurred = ours.gaussian_blur(x, column(sigma, sigma))
    torch.testing.assert_close(blurred[inside], expected[inside], atol=TRUNCATED, rtol=0)


@pytest.mark.parametrize("shape", [(32, 32), (20, 31), (40, 7), (5, 5)])
def test_the_second_methods_blur_is_torchvisions_up_to_the_edges(shape: tuple[int, int]) -> None:
    """DINOv2 and SimDINOv2: transforms.GaussianBlur(kernel_size=9), whose edges are reflected."""
    sigmas = (0.1, 0.5, 1.0, 2.0)
    x = noise(len(sigmas), 3, *shape)
    expected = torch.stack([tv.gaussian_blur(image, [9, 9], [s, s]) for image, s in zip(x, sigmas, strict=True)])
    blurred = ours.gaussian_blur(x, column(*sigmas), radius=4, reflect=True)
    torch.testing.assert_close(blurred, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_line_shorter_than_the_kernel_is_reflected_again_and_again(size: int) -> None:
    """0 1 2 goes on as 1 0 1 2 1 0 ...: numpy's reflection."""
    found = ours.shifts(size, 7, True).view(15, size, size)
    line = np.arange(size)
    padded = np.pad(line, 7, mode="reflect") if size > 1 else np.zeros(15, int)
    for k in range(15):
        assert (found[k] @ torch.arange(size, dtype=torch.float32)).tolist() == padded[k : k + size].tolist()


def test_blur_of_a_point_has_the_variance_of_its_sigma() -> None:
    x = torch.zeros(2, 1, 41, 41)
    x[:, :, 20, 20] = 1
    offsets = torch.arange(41.0) - 20
    for blurred, sigma in zip(ours.gaussian_blur(x, column(1.2, 2.0)), (1.2, 2.0), strict=True):
        torch.testing.assert_close(blurred.sum(), torch.tensor(1.0), atol=1e-5, rtol=0)
        variance = (blurred[0].sum(0) * offsets**2).sum().item()
        assert abs(variance / sigma**2 - 1) < 0.05


def test_blur_keeps_a_constant_up_to_the_edges() -> None:
    x = torch.full((3, 3, 9, 14), 0.7)
    torch.testing.assert_close(ours.gaussian_blur(x, column(0.1, 1.0, 2.0)), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("other", [0.5, 1.1, 1.5, 2.0])
def test_the_blur_of_an_image_does_not_depend_on_the_sigmas_beside_it(other: float) -> None:
    x = noise(2)
    alone = ours.gaussian_blur(x[:1], column(1.0))
    torch.testing.assert_close(ours.gaussian_blur(x, column(1.0, other))[:1], alone, atol=2e-6, rtol=0)


GROUPS = {"first global": (0, 0), "second global": (1, 1), "first local": (2, 2), "last local": (11, 2)}
COUNT = 4_000


def close_to_rate(hits: np.ndarray, rate: float) -> bool:
    return abs(hits.mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / len(hits))


def changed(config: ViewsConfig, view: int, images: Tensor) -> np.ndarray:
    """Which of the images differ after the operations that the configuration leaves on."""
    after = augment(images.clone(), ours.view_draws(keys_of(len(images)), view), config=config, view=view)
    return ((after - images).abs().flatten(1).amax(1) > 1e-4).numpy()


RATES: dict[str, Callable[[int], tuple[dict, float]]] = {
    "jitter": lambda _: ({"jitter": CONFIG.jitter}, CONFIG.jitter),
    "grey": lambda _: ({"grey": CONFIG.grey}, CONFIG.grey),
    "blur": lambda group: ({"blur": CONFIG.blur, "blur_sigma": (1.0, 2.0)}, CONFIG.blur[group]),
    "solarize": lambda group: ({"solarize": CONFIG.solarize}, CONFIG.solarize[group]),
}


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("place", GROUPS)
def test_each_operation_has_the_rate_of_its_view(place: str, name: str) -> None:
    view, group = GROUPS[place]
    fields, rate = RATES[name](group)
    assert close_to_rate(changed(dataclasses.replace(OFF, **fields), view, noise(COUNT, 3, 4, 4)), rate)


@pytest.mark.parametrize(("globals_", "view", "group"), [(1, 0, 0), (1, 1, 2), (2, 1, 1), (3, 2, 1), (3, 3, 2)])
def test_the_view_number_tells_global_from_local(globals_: int, view: int, group: int) -> None:
    blur = tuple(1.0 if i == group else 0.0 for i in range(3))
    config = dataclasses.replace(OFF, global_views=globals_, blur=blur, blur_sigma=(1.0, 2.0))
    assert changed(config, view, noise(20, 3, 8, 8)).all()


def test_operations_are_chosen_independently_of_each_other_and_of_other_views() -> None:
    chosen = []
    for view in (0, 1, 2):
        for fields in (
            {"jitter": 0.5},
            {"grey": 0.5},
            {"blur": (0.5,) * 3, "blur_sigma": (1.0, 2.0)},
            {"solarize": (0.5,) * 3},
        ):
            chosen.append(changed(dataclasses.replace(OFF, **fields), view, noise(COUNT, 3, 4, 4)))
    between = np.corrcoef(np.array(chosen)) - np.eye(len(chosen))
    assert np.abs(between).max() < 5 / np.sqrt(COUNT)


STRENGTHS = [
    (0.4, 0, 0.6, 1.4),
    (0.2, 2, 0.8, 1.2),
    (1.5, 1, 0.0, 2.5),
    (0.1, 3, -0.1, 0.1),
    (0.0, 0, 1.0, 1.0),
    (0.0, 3, 0.0, 0.0),
]


@pytest.mark.parametrize(("strength", "number", "low", "high"), STRENGTHS)
def test_jitter_factors_fill_torchvisions_range(strength: float, number: int, low: float, high: float) -> None:
    factors = ours.jitter_factor(np.linspace(0, 1, 101), strength, number)
    np.testing.assert_allclose(factors, np.linspace(low, high, 101), atol=1e-12)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_factors_differ_from_image_to_image(name: str) -> None:
    strengths = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, name: 0.2}
    config = dataclasses.replace(OFF, jitter=1.0, **strengths)
    same = 0.2 + 0.5 * noise(1).expand(50, -1, -1, -1).clone()
    after = augment(same.clone(), ours.view_draws(keys_of(50), 0), config=config, view=0)
    assert len({row.round(decimals=4).numpy().tobytes() for row in after}) == 50


def test_the_sigmas_of_the_blur_fill_their_range() -> None:
    config = dataclasses.replace(OFF, blur=(1.0, 1.0, 1.0), blur_sigma=(0.5, 2.0))
    point = torch.zeros(300, 1, 25, 25)
    point[:, :, 12, 12] = 1
    after = augment(point, ours.view_draws(keys_of(300), 0), config=config, view=0)
    sigma = (after[:, 0].sum(1) * (torch.arange(25.0) - 12) ** 2).sum(-1).sqrt().numpy()
    assert sigma.min() > 0.45 and sigma.max() < 2.02
    assert abs(sigma.mean() - 1.25) < 0.1 and np.ptp(sigma) > 1.4


def by_hand(image: Tensor, draws: np.ndarray, config: ViewsConfig) -> tuple[Tensor, tuple[int, ...]]:
    """Jitter of one image with torchvision, in the order of the draws; the order is given back too."""
    factors = (config.brightness, config.contrast, config.saturation)
    reference = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    place = np.argsort(draws[1:5])  # the numbers of the operations, first to last
    for number in place:
        value = 1 - factors[number] + 2 * factors[number] * draws[5 + number] if number < 3 else 0.0
        value = config.hue * (2 * draws[8] - 1) if number == 3 else value
        image = reference[number](image, value)
    return image, tuple(place.tolist())


def test_jitter_equals_torchvision_in_an_order_of_each_images_own() -> None:
    config = dataclasses.replace(OFF, jitter=1.0)
    x = noise(100)
    draws = ours.view_draws(keys_of(100), 0)
    after = augment(x.clone(), draws, config=config, view=0)
    orders = set()
    for i in range(100):
        expected, order = by_hand(x[i], draws[i], config)
        orders.add(order)
        torch.testing.assert_close(after[i], expected, atol=3e-3, rtol=0)  # clamped colours amplify WEIGHTS in hue
    assert len(orders) > 20  # of 24


def test_all_orders_of_the_jitter_are_equally_likely() -> None:
    orders = ours.view_draws(keys_of(24_000), 0)[:, 1:5].argsort(1) @ [64, 16, 4, 1]
    _, counts = np.unique(orders, return_counts=True)
    assert len(counts) == 24 and np.abs(counts - 1_000).max() < 5 * np.sqrt(1_000)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("first", [0, 2])
def test_a_view_of_an_image_does_not_depend_on_its_batch(channels: int, first: int) -> None:
    keys, crops = keys_of(24), levels(48, channels).view(2, 24, channels, 16, 16)
    options = {"config": CONFIG, "first": first, "mean": (0.0,) * channels, "std": (1.0,) * channels}
    together = ours.photometric(crops, keys, **options)
    alone = [ours.photometric(crops[:, i : i + 1], keys[i : i + 1], **options) for i in range(24)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), atol=2e-6, rtol=0)


def test_without_blur_a_view_is_the_same_bit_for_bit_in_every_batch() -> None:
    config = dataclasses.replace(CONFIG, blur=(0.0, 0.0, 0.0))
    keys, crops = keys_of(16), levels(32).view(2, 16, 3, 16, 16)
    together = ours.photometric(crops, keys, config=config, first=0, **PLAIN)
    alone = [ours.photometric(crops[:, i : i + 1], keys[i : i + 1], config=config, first=0, **PLAIN) for i in range(16)]
    assert (together == torch.cat(alone, dim=1)).all()


def test_a_view_has_its_number_whichever_views_come_with_it() -> None:
    keys, crops = keys_of(8), levels(24).view(3, 8, 3, 16, 16)
    together = ours.photometric(crops, keys, config=CONFIG, first=0, **PLAIN)
    last = ours.photometric(crops[2:], keys, config=CONFIG, first=2, **PLAIN)
    assert (together[2:] == last).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_views_stay_in_the_unit_range_and_crops_as_they_were(channels: int) -> None:
    crops = levels(400, channels).view(2, 200, channels, 16, 16)
    before = crops.clone()
    views = ours.photometric(crops, keys_of(200), config=CONFIG, first=0, mean=(0.0,) * channels, std=(1.0,) * channels)
    assert views.dtype == torch.float32 and views.shape == crops.shape
    assert views.min() > -1e-6 and views.max() < 1 + 1e-6
    assert (crops == before).all()


def test_with_everything_off_a_view_is_its_crop() -> None:
    crops = levels(6).view(2, 3, 3, 16, 16)
    views = ours.photometric(crops, keys_of(3), config=OFF, first=0, **PLAIN)
    assert (views == crops.float() / 255).all()


@pytest.mark.parametrize(("mean", "std"), [((0.3,), (0.2,)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_normalise_equals_torchvision(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    x = noise(4, len(mean))
    torch.testing.assert_close(ours.normalise(x, mean=mean, std=std), tv.normalize(x, list(mean), list(std)))
    views = x.view(2, 2, len(mean), 20, 20)
    assert (ours.normalise(views, mean=mean, std=std).flatten(0, 1) == ours.normalise(x, mean=mean, std=std)).all()
