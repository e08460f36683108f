"""Training crops of images with masks: against the recipe written out a pixel at a time."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simdino import rng as counters
from simdino.contracts import InputError, Preprocess
from simdino.data.annotated import scale_of
from simdino.data.opening import BrokenImage
from simdino.data.workers import in_order
from simdino.evaluate.segmentation import crops as segment_crops
from simdino.evaluate.segmentation.crops import (
    CropBatches,
    WholeImages,
    choose_place,
    distort,
    nearest,
    saturate,
    scaled_sides,
    training_crop,
)
from simdino.evaluate.segmentation.masks import Pairs

PREPROCESS = Preprocess(resize=16, crop=16, channels=3, mean=(0.4, 0.5, 0.6), std=(0.25, 0.5, 0.2))
COLOURS = np.array([[250, 10, 10], [10, 10, 250]], np.uint8)
SIZE = 16


def make(root: Path, count: int = 5, sides: tuple[int, int] = (24, 40)) -> Pairs:
    """Images in two colours, whose masks tell which: a border that moves from image to image."""
    for part in ("images", "masks"):
        (root / part).mkdir()
    for i in range(count):
        labels = np.zeros(sides, np.uint8)
        labels[:, 10 + 4 * i :] = 1
        Image.fromarray(COLOURS[labels]).save(root / "images" / f"{i}.png")
        Image.fromarray(labels).save(root / "masks" / f"{i}.png")
    names = [f"{i}.png" for i in range(count)]
    return Pairs(
        root=root, folder="images", images=[f"images/{n}" for n in names], masks=[f"masks/{n}" for n in names],
        reduce_zero=False, scale=scale_of(root, [], None),
    )  # fmt: skip


def test_the_short_side_is_scaled_and_the_long_one_stays_under_four_times_it() -> None:
    assert scaled_sides(480, 640, short=512) == (512, 683)  # 682.67
    assert scaled_sides(640, 480, short=512) == (683, 512)
    assert scaled_sides(100, 400, short=50) == (50, 200)
    assert scaled_sides(100, 800, short=50) == (25, 200)
    assert scaled_sides(1, 800, short=50) == (1, 200)


@pytest.mark.parametrize("sides", [(3, 5), (6, 10), (7, 23), (48, 80)])
def test_masks_are_scaled_to_the_pixel_under_the_middle(sides: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).integers(0, 256, (6, 10), np.uint8)
    expected = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None].double(), sides, mode="nearest-exact")
    assert np.array_equal(nearest(mask, sides), expected[0, 0].numpy())


def slow_place(mask: np.ndarray, size: int, draws: np.ndarray) -> tuple[tuple[int, int], int]:
    """The place, and how many were looked at."""
    for number, (u, v) in enumerate(draws):
        top = int(u * (max(mask.shape[0] - size, 0) + 1))
        left = int(v * (max(mask.shape[1] - size, 0) + 1))
        if number == 10:
            break
        inside = [int(x) for x in mask[top : top + size, left : left + size].ravel() if x != 255]
        counts = [inside.count(label) for label in set(inside)]
        if len(counts) > 1 and max(counts) / sum(counts) < 0.75:
            return (top, left), number + 1
    return (top, left), 11


def test_a_crop_is_the_first_that_no_class_fills_to_three_quarters() -> None:
    random = np.random.default_rng(0)
    tries = []
    for _ in range(200):
        mask = np.full((20, 30), 255, np.uint8)
        mask[: random.integers(8, 20), : random.integers(8, 30)] = 1
        mask[random.integers(0, 16) :, random.integers(0, 26) :] = random.integers(0, 3)
        draws = random.random((11, 2))
        place, looked_at = slow_place(mask, 8, draws)
        assert choose_place(mask, 8, draws) == place
        tries.append(looked_at)
    assert {1, 2, 11} <= set(tries) and len(set(tries)) > 5


def test_exactly_three_quarters_is_too_much_and_ignored_pixels_do_not_count() -> None:
    mask = np.array([[1, 1, 1, 2, 255, 255], [1, 1, 1, 2, 3, 1], [1, 1, 1, 2, 255, 255]], np.uint8)
    draws = np.array([[0.9, 0.2]] + [[0, 0.99]] * 9 + [[0, 0.5]])
    assert choose_place(mask, 2, draws) == (0, 4)  # 1, 1, 1, 1 first; then 3 and 1 beside two ignored: half and half
    mask[1, 5] = 3  # a single class now, in all ten
    assert choose_place(mask, 2, draws) == (0, 2)
    quarter = np.array([[1, 1, 9], [1, 2, 9]], np.uint8)
    assert choose_place(quarter, 2, np.array([[0.0, 0]] * 10 + [[0, 0.9]])) == (0, 1)


def test_images_smaller_than_the_crop_are_taken_whole() -> None:
    assert choose_place(np.zeros((5, 7), np.uint8), 8, np.full((11, 2), 0.99)) == (0, 0)


def slow_distort(pixel: tuple[float, ...], draws: np.ndarray) -> tuple[float, ...]:
    """OpenCV's HSV is colorsys's."""
    if draws[0] < 0.5:
        pixel = tuple(min(1, max(0, x + (2 * draws[4] - 1) * 32 / 255)) for x in pixel)

    def contrast(pixel: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(min(1, x * (0.5 + draws[5])) for x in pixel)

    if draws[1] < 0.5 and draws[8] >= 0.5:
        pixel = contrast(pixel)
    h, s, v = colorsys.rgb_to_hsv(*pixel)
    if draws[2] < 0.5:
        s = min(1, s * (0.5 + draws[6]))
    if draws[3] < 0.5:
        h = (h + (2 * draws[7] - 1) * 18 / 180) % 1
    pixel = colorsys.hsv_to_rgb(h, s, v)
    return contrast(pixel) if draws[1] < 0.5 and draws[8] < 0.5 else pixel


def test_colours_are_distorted_as_mmseg_does() -> None:
    random = np.random.default_rng(1)
    image = torch.from_numpy(random.random((3, 4, 5))).float()
    image[:, 0, 0], image[:, 0, 1] = 0, 0.5  # black and grey: no hue
    for number in range(40):
        draws = random.random(9)
        draws[:4] = [0.9 * (number >> bit & 1) for bit in range(4)]
        expected = [slow_distort(tuple(pixel), draws) for pixel in image.flatten(1).T.double().tolist()]
        found = distort(image, draws).flatten(1).T
        torch.testing.assert_close(found, torch.tensor(expected).float(), atol=2e-6, rtol=0)
    grey = torch.full((1, 2, 2), 0.5)
    assert float(distort(grey, np.array([0.9, 0, 0, 0, 0, 0.75, 0, 0, 0]))[0, 0, 0]) == 0.5 * 1.25


def test_saturation_ends_where_a_channel_is_empty() -> None:
    pixel = torch.tensor([0.8, 0.6, 0.4])[:, None, None]
    torch.testing.assert_close(saturate(pixel, 1.5).flatten(), torch.tensor([0.8, 0.5, 0.2]))
    torch.testing.assert_close(saturate(pixel, 9.0).flatten(), torch.tensor([0.8, 0.4, 0.0]))


def test_crops_and_masks_show_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_crops, "distort", lambda image, draws: image)
    pairs = make(tmp_path)
    mirrored, scales, smaller = [], [], 0
    for key in counters.sample_keys(0, 0, np.arange(60)):
        crop, mask = training_crop(pairs, 1, PREPROCESS, size=SIZE, key=key)
        assert (crop.shape, crop.dtype, mask.shape, mask.dtype) == ((3, 16, 16), torch.float32, (16, 16), torch.uint8)
        free = mask == 255
        assert not crop[:, free].any()
        below, right = free[:, :1], free[:1]
        assert torch.equal(free, below | right)
        assert torch.equal(below, below.sort(0).values) and torch.equal(right, right.sort(1).values)
        smaller += bool(free.any())
        pixels = crop * torch.tensor(PREPROCESS.std)[:, None, None] + torch.tensor(PREPROCESS.mean)[:, None, None]
        blue = (pixels[2] > pixels[0]).to(torch.uint8)
        assert ((blue != mask) & ~free).sum() <= 16  # a column of resampled pixels at the border
        there = mask[:, ~free[0]][~free[:, 0]]
        if (there == 0).any() and (there == 1).any():
            mirrored.append(bool(there[0, 0] == 1))
        scales.append(int((~free[:, 0]).sum()))
    assert 0.2 < np.mean(mirrored) < 0.8
    assert 5 < smaller < 40
    assert min(scales) in (8, 9, 10) and max(scales) == 16


def test_batches_follow_from_seed_and_step_alone(tmp_path: Path) -> None:
    pairs = make(tmp_path)
    batches = CropBatches(pairs, PREPROCESS, size=SIZE, batch=3, steps=5, seed=4)
    order = [i for step in range(5) for i, _ in batches.samples(step)]
    assert [sorted(order[k : k + 5]) for k in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    assert order[:5] != order[5:10]
    assert len({key for step in range(5) for _, key in batches.samples(step)}) == 15
    alone, ahead = (list(in_order(batches, range(5), workers=workers)) for workers in (0, 1))
    assert len(alone) == len(ahead) == 5
    for one, other in zip(alone, ahead, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
        assert one[1].dtype == torch.int64
    other = CropBatches(pairs, PREPROCESS, size=SIZE, batch=3, steps=5, seed=5)[0]
    assert not torch.equal(other[0], alone[0][0])


def test_a_broken_image_is_replaced_and_named_and_nothing_but_broken_ones_ends_it(tmp_path: Path) -> None:
    pairs = make(tmp_path)
    (tmp_path / "images" / "2.png").write_bytes(b"")
    batches = CropBatches(pairs, PREPROCESS, size=SIZE, batch=5, steps=1, seed=0)
    batch = batches[0]
    assert len(batch[0]) == 5
    assert batch[2] == {"images/2.png": "the file is empty (0 bytes)"}
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="17 images in a row could not be read"):
        list(in_order(batches, range(1), workers=1))


def test_test_images_have_their_short_side_at_the_size_and_their_whole_mask(tmp_path: Path) -> None:
    pairs = make(tmp_path)
    (tmp_path / "images" / "4.png").write_bytes(b"")
    *good, bad = in_order(WholeImages(pairs, 1, size=12), range(5), workers=0)
    assert isinstance(bad, BrokenImage) and bad.name == "images/4.png"
    assert not isinstance(good[0], BrokenImage)
    image, mask = good[0]
    assert tuple(image.shape) == (1, 12, 20) and image.dtype == torch.uint8
    assert tuple(mask.shape) == (24, 40)
