"""Crops: boxes against torchvision's RandomResizedCrop, pixels against torchvision and Pillow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from simdino import rng as counters
from simdino.config import Interpolation, ViewsConfig
from simdino.data.views import centred_boxes, crop_boxes, crops, decoded_side, resize, resized_crop

CONFIG = ViewsConfig(local_views=3)
KEYS = counters.sample_keys(0, 0, np.arange(2_000))
RATIO = (3 / 4, 4 / 3)


def boxes_of(height: int, width: int, config: ViewsConfig = CONFIG, keys: np.ndarray = KEYS) -> np.ndarray:
    return crop_boxes(keys, np.full(len(keys), height), np.full(len(keys), width), config)[0]


def photo(height: int = 120, width: int = 160, channels: int = 3) -> Tensor:
    """Smooth shading, hard edges, fine stripes and a little noise: what real pictures have."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    layers = []
    for c in range(channels):
        layer = 120 + 90 * np.sin(5 * x + c) * np.cos(4 * y) + 40 * ((x - 0.5) ** 2 + (y - 0.3) ** 2 < 0.04)
        layer += 30 * (np.sin(60 * (x + y)) > 0) * (x > 0.6) + np.random.default_rng(c).normal(0, 4, x.shape)
        layers.append(layer)
    return torch.from_numpy(np.stack(layers).clip(0, 255).astype(np.uint8))


def to_pillow(image: Tensor) -> Image.Image:
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def from_pillow(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def largest_difference(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


SHAPES = [
    (1, 1),
    (1, 2),
    (2, 1),
    (3, 3),
    (8, 8),
    (28, 28),
    (100, 20000),
    (20000, 100),
    (1, 5000),
    (375, 500),
    (501, 333),
]


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_boxes_lie_inside_the_image(height: int, width: int) -> None:
    top, left, h, w = np.moveaxis(boxes_of(height, width), -1, 0)
    assert min(top.min(), left.min()) >= 0
    assert min(h.min(), w.min()) >= 1
    assert (top + h).max() <= height and (left + w).max() <= width


def test_boxes_of_a_mixed_batch_are_those_of_each_image_alone() -> None:
    heights, widths = np.array(SHAPES).T
    keys = KEYS[: len(SHAPES)]
    boxes, flips = crop_boxes(keys, heights, widths, CONFIG)
    for i, (height, width) in enumerate(SHAPES):
        alone, flip = crop_boxes(keys[i : i + 1], np.array([height]), np.array([width]), CONFIG)
        assert (alone[0] == boxes[i]).all() and (flip[0] == flips[i]).all()


def law(height: int, width: int, scale: tuple[float, float], count: int) -> np.ndarray:
    """Boxes [count, 4] of torchvision."""
    torch.manual_seed(0)
    image = torch.empty(1, 1, 1).expand(1, height, width)
    return np.array([RandomResizedCrop.get_params(image, list(scale), list(RATIO)) for _ in range(count)])


def statistics(boxes: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    top, left, h, w = boxes.T.astype(float)
    return {
        "area": h * w / (height * width),
        "log ratio": np.log(w / h),
        "top": top / height,
        "left": left / width,
        "middle": (top + h / 2) / height,
    }


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(224, 224), (375, 500), (300, 200), (28, 28), (200, 90)])
@pytest.mark.parametrize("group", ["global", "local"])
def test_boxes_have_the_law_of_torchvision(height: int, width: int, group: str) -> None:
    scale = CONFIG.global_scale if group == "global" else CONFIG.local_scale
    views = slice(None, 2) if group == "global" else slice(2, None)
    ours = statistics(boxes_of(height, width)[:, views].reshape(-1, 4), height, width)
    theirs = statistics(law(height, width, scale, 3_000), height, width)
    for name in ours:
        a, b = ours[name], theirs[name]
        spread = max(b.std(), 1e-3)
        error = spread * np.sqrt(1 / len(a) + 1 / len(b))
        assert abs(a.mean() - b.mean()) < 5 * error, name
        assert abs(a.std() - b.std()) < 5 * error, name
        assert stats.ks_2samp(a, b).pvalue > 1e-4, name


@pytest.mark.parametrize("view", range(5))
def test_every_view_keeps_to_its_own_scale(view: int) -> None:
    low, high = CONFIG.global_scale if view < 2 else CONFIG.local_scale
    boxes = boxes_of(1000, 1000)[:, view]
    area = boxes[:, 2] * boxes[:, 3] / 1e6
    assert low - 2e-3 < area.min() and area.max() < high + 2e-3
    assert area.max() - area.min() > 0.9 * (high - low)


@pytest.mark.parametrize(("height", "width"), [(30, 3000), (3000, 30), (20000, 100), (1, 50), (50, 1)])
def test_the_fallback_for_extreme_shapes_is_torchvisions(height: int, width: int) -> None:
    scale = (0.9, 1.0)  # no box of a permitted ratio has this area, so that every try fails
    config = ViewsConfig(global_scale=scale, local_views=0)
    ours = boxes_of(height, width, config, KEYS[:5]).reshape(-1, 4)
    assert (ours == law(height, width, scale, 1)).all()


@pytest.mark.parametrize("height", [1, 2, 3, 5, 7, 64, 333])
@pytest.mark.parametrize("width", [1, 2, 4, 6, 9, 85, 500])
def test_centred_boxes_follow_the_rule_for_a_fallback(height: int, width: int) -> None:
    w, h = width, height
    if width / height < min(RATIO):
        h = round(width / min(RATIO))
    elif width / height > max(RATIO):
        w = round(height * max(RATIO))
    expected = [(height - h) // 2, (width - w) // 2, h, w]
    assert centred_boxes(np.array([height]), np.array([width]))[0].tolist() == expected


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 1.0])
def test_flips_happen_at_their_rate_in_every_view(rate: float) -> None:
    sizes = np.full(len(KEYS), 32)
    flips = crop_boxes(KEYS, sizes, sizes, ViewsConfig(local_views=3, flip=rate))[1]
    tolerance = 5 * np.sqrt(rate * (1 - rate) / len(KEYS))
    assert np.abs(flips.mean(0) - rate).max() <= tolerance


def test_views_of_an_image_are_independent() -> None:
    boxes = boxes_of(500, 500).astype(float)
    area = boxes[..., 2] * boxes[..., 3]
    flips = crop_boxes(KEYS, np.full(2_000, 9), np.full(2_000, 9), CONFIG)[1].astype(float)
    for values in (area, boxes[..., 0], flips):
        between = np.corrcoef(values.T) - np.eye(5)
        assert np.abs(between).max() < 5 / np.sqrt(len(KEYS))


def test_a_further_local_view_does_not_change_the_others() -> None:
    assert (boxes_of(90, 70) == boxes_of(90, 70, ViewsConfig(local_views=8))[:, :5]).all()


SIZES = [
    (120, 160, 96),
    (120, 160, 224),
    (33, 47, 32),
    (17, 300, 28),
    (500, 9, 16),
    (1, 1, 8),
    (64, 128, 64),
    (7, 7, 7),
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_resize_equals_torchvision(height: int, width: int, size: int, channels: int) -> None:
    image = photo(height, width, channels)
    expected = tv.resize(image, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    assert resize(image, size).dtype == torch.uint8
    assert largest_difference(resize(image, size), expected) <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_resize_equals_pillow(height: int, width: int, size: int, channels: int) -> None:
    image = photo(height, width, channels)
    expected = to_pillow(image).resize((size, size), Image.Resampling.BICUBIC)
    assert largest_difference(resize(image, size), from_pillow(expected)) <= 2


def test_resize_of_noise_at_full_contrast_equals_pillow() -> None:
    image = torch.from_numpy(np.random.default_rng(0).choice([0, 255], (3, 90, 70)).astype(np.uint8))
    for size in ((30, 20), (200, 150), (90, 20)):
        expected = to_pillow(image).resize(size[::-1], Image.Resampling.BICUBIC)
        assert largest_difference(resize(image, size), from_pillow(expected)) <= 2


@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_resize_keeps_a_constant(value: int) -> None:
    image = torch.full((3, 77, 31), value, dtype=torch.uint8)
    assert (resize(image, 24) == value).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_equal_cropping_resizing_and_flipping_with_torchvision(channels: int) -> None:
    image = photo(channels=channels)
    keys = KEYS[:8]
    boxes, flips = (x.reshape(-1, *x.shape[2:]) for x in crop_boxes(keys, np.full(8, 120), np.full(8, 160), CONFIG))
    views = crops(image, boxes, flips, 48)
    assert views.shape == (40, channels, 48, 48) and views.dtype == torch.uint8
    assert 0 < flips.sum() < len(flips)
    for view, (top, left, height, width), flip in zip(views, boxes.tolist(), flips, strict=True):
        expected = tv.resized_crop(image, top, left, height, width, [48, 48], InterpolationMode.BICUBIC, antialias=True)
        assert largest_difference(view, tv.horizontal_flip(expected) if flip else expected) <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_equal_pillows_crop_resize_and_mirror(channels: int) -> None:
    image = photo(channels=channels)
    boxes, flips = crop_boxes(KEYS[:8], np.full(8, 120), np.full(8, 160), CONFIG)
    for view, (top, left, height, width), flip in zip(
        crops(image, boxes[:, 0], flips[:, 0], 48), boxes[:, 0].tolist(), flips[:, 0], strict=True
    ):
        expected = (
            to_pillow(image).crop((left, top, left + width, top + height)).resize((48, 48), Image.Resampling.BICUBIC)
        )
        if flip:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert largest_difference(view, from_pillow(expected)) <= 2


def test_crops_leave_the_image_as_it_was() -> None:
    image = photo()
    before = image.clone()
    boxes = np.array([[0, 0, 120, 160], [3, 4, 48, 48]])
    crops(image, boxes, np.array([True, True]), 48)[:] = 0
    assert (image == before).all()


@pytest.mark.parametrize("config", [ViewsConfig(), ViewsConfig(local_views=0, global_size=64)])
def test_an_image_decoded_small_still_needs_no_enlarging(config: ViewsConfig) -> None:
    side, keys = decoded_side(config), np.arange(4000)
    sides = np.full(len(keys), side)
    boxes, _ = crop_boxes(keys, sides, sides * 3 // 2, config)
    needed = [config.global_size] * config.global_views + [config.local_size] * config.local_views
    smallest = boxes[..., 2:].min((0, 2))
    assert (smallest >= np.array(needed) - 1).all()  # a box is rounded to whole pixels
    half, _ = crop_boxes(keys, sides // 2, sides // 2, config)
    assert (half[..., 2:].min((0, 2)) < np.array(needed)).any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sides", [(1, 1), (1, 3000), (2000, 7), (3, 1001), (31, 777), (48, 64), (300, 400), (5, 5)])
@pytest.mark.parametrize(("short", "size"), [(64, 56), (32, 32)])
def test_a_crop_is_that_of_the_resized_whole(sides: tuple[int, int], channels: int, short: int, size: int) -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (channels, *sides), dtype=np.uint8))
    new = tuple(max(size, round(short * side / min(sides))) for side in sides)
    whole = resize(image, (new[0], new[1]))
    for share in (0.0, 0.5, 0.83, 1.0):  # from the first pixels to the last
        top, left = (int(share * (side - size)) for side in new)
        crop = resized_crop(image, (new[0], new[1]), (top, left, size, size))
        assert largest_difference(crop, whole[:, top : top + size, left : left + size]) <= (
            2 if max(sides) > 700 else 0
        )


@pytest.mark.parametrize("sides", [(1, 1_000_000), (500_000, 2)])
def test_a_strip_is_not_enlarged_whole(sides: tuple[int, int]) -> None:
    """Its whole would have 5e10 pixels; its middle shows the same, as it is enlarged by a whole number."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *sides), dtype=np.uint8))
    times = 224 // min(sides)
    short = image.narrow(1 + int(np.argmax(sides)), max(sides) // 2 - 10, 20)

    def middle(strip: Tensor) -> Tensor:
        new = times * strip.shape[1], times * strip.shape[2]
        return resized_crop(strip, new, ((new[0] - 200) // 2, (new[1] - 200) // 2, 200, 200))

    assert middle(image).shape == (3, 200, 200)
    assert largest_difference(middle(image), middle(short)) <= 2


@pytest.mark.parametrize(("interpolation", "pillows"), [("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR)])
def test_crops_are_pillows_of_the_same_box_within_a_level(interpolation: Interpolation, pillows: int) -> None:
    """torchvision's RandomResizedCrop of a Pillow image: DINO's heads take its default, which is bilinear."""
    pixels = np.random.default_rng(0).integers(0, 255, (61, 83, 3), dtype=np.uint8)
    boxes = np.array([[3, 5, 40, 44], [0, 0, 61, 83], [20, 30, 9, 12]])
    found = crops(torch.from_numpy(pixels).permute(2, 0, 1), boxes, np.zeros(3, bool), 24, interpolation=interpolation)
    for crop, (top, left, height, width) in zip(found, boxes.tolist(), strict=True):
        cut = Image.fromarray(pixels[top : top + height, left : left + width]).resize((24, 24), pillows)
        apart = np.abs(crop.permute(1, 2, 0).numpy().astype(int) - np.asarray(cut, int))
        assert apart.max() <= 1
    other = crops(torch.from_numpy(pixels).permute(2, 0, 1), boxes, np.zeros(3, bool), 24)
    assert torch.equal(found, other) == (interpolation == "bicubic")


def test_quarter_turns_are_drawn_by_themselves_and_turn_the_crop() -> None:
    sizes = np.full(len(KEYS), 40)
    plain, turned = (crop_boxes(KEYS, sizes, sizes, replace(CONFIG, turns=turns)) for turns in (False, True))
    assert np.array_equal(plain[0], turned[0]) and np.array_equal(plain[1], turned[1] % 2)
    shares = np.bincount(turned[1].flatten() // 2, minlength=4) / turned[1].size
    assert np.abs(shares - 0.25).max() < 4 * (0.25 * 0.75 / turned[1].size) ** 0.5
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 16, 16), dtype=np.uint8))
    whole = np.tile([0, 0, 16, 16], (8, 1))
    views = crops(image, whole, np.arange(8), 16)
    assert len({view.numpy().tobytes() for view in views}) == 8
    for way, view in enumerate(views):
        expected = image.numpy()[:, :, ::-1] if way % 2 else image.numpy()
        assert np.array_equal(view.numpy(), np.rot90(expected, way // 2, (1, 2)))
