"""What a survey says of a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simdino.contracts import InputError
from simdino.data.base import ArraySource
from simdino.data.sources import open_dataset
from simdino.data.survey import DatasetStatistics, Noticed, measure_dataset, spread_of


def test_survey_of_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    Image.new("L", (10, 20), 255).save(tmp_path / "a" / "1.png")
    Image.new("RGB", (40, 30), (0, 0, 255)).save(tmp_path / "a" / "2.png")
    Image.new("RGB", (1, 1), (0, 255, 0)).save(tmp_path / "b" / "3.png")
    (tmp_path / "b" / "4.png").write_bytes(b"")
    found = measure_dataset(open_dataset(tmp_path))
    assert (found.images, found.read, found.channels) == (4, 4, 3)
    assert found.broken == {"b/4.png": "the file is empty (0 bytes)"}
    assert (found.short_side, found.long_side, found.smallest) == (10, 20, 1)
    # White, blue and green count alike, whatever their sizes.
    np.testing.assert_allclose(found.mean, [1 / 3, 2 / 3, 2 / 3], atol=1e-6)
    np.testing.assert_allclose(found.std, [(2 / 9) ** 0.5] * 3, atol=1e-6)
    assert found.labels == 2 and found.class_counts == {"a": 2, "b": 2}


def test_statistics_equal_numpy_on_images_of_one_size() -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), dtype=np.uint8)
    found = measure_dataset(ArraySource("x", images, [str(i) for i in range(7)]))
    np.testing.assert_allclose(found.mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-5)
    assert found.labels == 0 and found.class_counts == {}


def test_probes_are_even_distinct_and_repeatable() -> None:
    images = np.zeros((100, 2, 2), dtype=np.uint8)
    images[[0, 33, 66, 99]] = 255
    source = ArraySource("x", images, [str(i) for i in range(100)])
    assert measure_dataset(source, limit=4).mean == (1.0,)
    assert measure_dataset(source, limit=4) == measure_dataset(source, limit=4)
    assert (
        measure_dataset(source, limit=4).read,
        measure_dataset(source, limit=None).read,
        measure_dataset(source).read,
    ) == (4, 100, 100)
    assert measure_dataset(source, limit=1).read == 1


def test_grey_only_if_every_image_is(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 9).save(tmp_path / "1.png")
    assert measure_dataset(open_dataset(tmp_path)).channels == 1
    assert len(measure_dataset(open_dataset(tmp_path)).mean) == 1
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "2.png")
    assert measure_dataset(open_dataset(tmp_path)).channels == 3


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 1 images .* 1\.png"):
        measure_dataset(open_dataset(tmp_path))
    with pytest.raises(InputError, match="no image"):
        measure_dataset(open_dataset(tmp_path).select([]))


@pytest.mark.slow
def test_a_large_photo_is_read_small_and_measured_whole(tmp_path: Path) -> None:
    y, x = np.mgrid[0:1200, 0:1600]
    wave = 128 + 60 * np.sin(x / 90) + 50 * np.cos(y / 70)
    Image.fromarray(np.stack([wave, 200 - wave / 2, wave / 3], -1).astype(np.uint8)).save(tmp_path / "a.jpg")
    found = measure_dataset(open_dataset(tmp_path))
    assert (found.short_side, found.long_side) == (1200, 1600)
    whole = np.asarray(Image.open(tmp_path / "a.jpg")) / 255
    np.testing.assert_allclose(found.mean, whole.mean((0, 1)), atol=2e-3)
    np.testing.assert_allclose(found.std, whole.std((0, 1)), atol=2e-3)


def some(count: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 12, 10, 3), dtype=np.uint8)


def of(images: np.ndarray) -> DatasetStatistics:
    return measure_dataset(ArraySource("x", images, [str(i) for i in range(len(images))]))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((9, 12, 10, 3), np.uint8),
        some(1).repeat(9, axis=0),
        np.full((9, 12, 10), 200, np.uint8) + (np.arange(9) == 4).astype(np.uint8)[:, None, None],  # nearly
    ],
)
def test_images_that_are_all_alike_are_named(images: np.ndarray) -> None:
    assert any("all 9 images looked at are alike" in line for line in of(images).warnings())


def test_images_of_one_colour_each_are_named_where_they_are_many() -> None:
    images = some(30)
    images[::9] = np.array([10, 20, 30], np.uint8)
    assert of(images).flat == Noticed(4, "0")
    assert any("4 of the 30 images looked at have one colour each, first 0" in line for line in of(images).warnings())
    images[1:3] = 7
    assert of(images[1:]).flat.images == 5
    assert of(some(30)).warnings() == []
    few = some(30)
    few[5] = 0
    assert of(few).flat == Noticed(1, "5") and of(few).warnings() == []


def test_one_image_is_not_alike() -> None:
    assert of(some(1)).spread is None and of(some(1)).warnings() == []


def test_the_spread_is_the_largest_standard_deviation_of_a_cell() -> None:
    images = np.full((4, 32, 32), 100, np.uint8)
    images[:2, 5, 6] = 140
    assert of(images).spread == pytest.approx(20 / 255)
    assert spread_of(ArraySource("x", images, list("abcd"))) == pytest.approx(20 / 255)


@pytest.mark.parametrize("kind", ["png", "webp", "tif"])
def test_partly_transparent_images_are_counted(tmp_path: Path, kind: str) -> None:
    pixels = np.dstack([some(1)[0], np.full((12, 10), 255, np.uint8)])
    Image.fromarray(pixels).save(tmp_path / f"a.{kind}")  # opaque
    pixels[3, 4, 3] = 254
    for name in "bc":
        Image.fromarray(pixels).save(tmp_path / f"{name}.{kind}")
    found = measure_dataset(open_dataset(tmp_path))
    assert found.transparent == Noticed(2, f"b.{kind}")
    assert any("2 of the 3 images looked at are partly transparent" in line for line in found.warnings())


@pytest.mark.parametrize(("grey", "colour"), [(2, 1), (1, 1), (0, 1), (2, 0)])
def test_a_few_colours_among_grey_images_are_told(grey: int, colour: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(grey + colour):
        shape = (8, 8) if i < grey else (8, 8, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    found = measure_dataset(open_dataset(tmp_path))
    assert found.coloured.images == colour
    told = [line for line in found.warnings() if "have colours, first 2.png" in line and "--channels 1" in line]
    assert len(told) == (colour < grey and colour > 0)


def test_a_colour_that_stands_for_nothing_is_transparent_too(tmp_path: Path) -> None:
    Image.new("P", (4, 4)).save(tmp_path / "a.gif", transparency=0)
    Image.fromarray(some(1)[0][..., 0]).save(tmp_path / "b.png")
    assert measure_dataset(open_dataset(tmp_path)).transparent == Noticed(1, "a.gif")
