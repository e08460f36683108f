"""Thumbnails lie where the atlas says, and look like their pictures."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from simdino.show.atlas import SHEET_SIDE, Atlas, atlas_of, thumbnail


def smooth(width: int, height: int, seed: int) -> Image.Image:
    """A picture of soft colours, no two seeds alike."""
    coarse = np.random.default_rng(seed).integers(50, 206, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def cut(atlas: Atlas, i: int) -> np.ndarray:
    """Thumbnail i as a page cuts it out."""
    sheet, left, top = atlas.place(i)
    width, height = atlas.sizes[i]
    with Image.open(BytesIO(base64.b64decode(atlas.addresses()[sheet].split(",")[1]))) as picture:
        assert picture.format == "WEBP" and max(picture.size) <= max(SHEET_SIDE, atlas.cell)
        return np.asarray(picture.convert("RGB").crop((left, top, left + width, top + height)), np.int64)


def test_each_thumbnail_is_its_picture_and_none_of_its_neighbours() -> None:
    shapes = [(90, 60), (60, 90), (80, 80), (31, 47), (96, 12)]
    pictures = [smooth(*shapes[i % len(shapes)], seed=i) for i in range(23)]
    atlas = atlas_of([thumbnail(one, 64) for one in pictures])
    assert len(atlas.sheets) == 1 and atlas.cell == 64
    found = [cut(atlas, i) for i in range(len(pictures))]
    for i, picture in enumerate(pictures):
        ratio = min(1, 64 / max(picture.size))
        size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
        assert atlas.sizes[i] == size
        own = np.asarray(picture.resize(size, Image.Resampling.LANCZOS), np.int64)
        assert np.abs(found[i] - own).mean() < 8
        others = [found[j] for j in range(len(pictures)) if j != i and found[j].shape == own.shape]
        assert all(np.abs(other - own).mean() > 20 for other in others)


@pytest.mark.slow
def test_many_thumbnails_take_several_sheets() -> None:
    pictures = [Image.new("RGB", (500, 500), (i * 3 % 256, i * 7 % 256, i * 11 % 256)) for i in range(35)]
    atlas = atlas_of(pictures)
    assert (atlas.cell, atlas.columns, len(atlas.sheets)) == (512, 4, 3)
    assert [atlas.place(i) for i in (0, 15, 16, 34)] == [(0, 0, 0), (0, 1536, 1536), (1, 0, 0), (2, 1024, 0)]
    for i in range(35):
        assert np.abs(cut(atlas, i) - np.asarray(pictures[i], np.int64)).mean() < 3


def test_small_pictures_stay_small_and_slivers_keep_a_pixel() -> None:
    assert thumbnail(smooth(28, 20, 0), 112).size == (28, 20)
    assert thumbnail(Image.new("RGB", (4000, 3)), 112).size == (112, 1)
    assert atlas_of([smooth(28, 20, 0)]).cell == 32


def test_a_thumbnail_larger_than_a_sheet_has_one_of_its_own() -> None:
    atlas = atlas_of([Image.new("RGB", (2100, 10), "red"), Image.new("RGB", (8, 8), "blue")])
    assert atlas.columns == 1 and len(atlas.sheets) == 2
    assert np.abs(cut(atlas, 1) - np.array([0, 0, 255])).mean() < 4
