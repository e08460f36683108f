"""The sizes of pages and contact sheets, and what is drawn over pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from simdino.show import sheets
from simdino.show.sheets import GAP, MARGIN, PAGE_TILE, PAPER, SHEET_TILE, TEXT_LINE, as_tile, contact_sheet, page
from simdino.show.tiles import DIM, HEAT, MASKS, coloured, heat, kept, tinted, with_heat


def noise(width: int = 200, height: int = 200) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def bytes_of(picture: Image.Image) -> int:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.tell()


@pytest.mark.parametrize(("size", "drawn"), [((640, 640), (100, 100)), ((28, 28), (100, 100)), ((400, 100), (160, 40))])
def test_tiles_have_the_area_of_a_square_and_an_end(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    assert as_tile(noise(*size), 100).size == drawn
    wide = as_tile(noise(300, 200), 100).size
    assert wide[0] * wide[1] == pytest.approx(100**2, rel=0.02) and wide[0] <= sheets.LONGER * 100


@pytest.mark.parametrize(("rows", "tiles", "columns"), [(1, 3, 1), (3, 3, 1), (4, 3, 2), (12, 3, 2), (12, 2, 4)])
def test_a_contact_sheet_holds_every_tile_in_columns_that_fit(rows: int, tiles: int, columns: int) -> None:
    sheet = contact_sheet([[("x", noise())] * tiles] * rows)
    width = tiles * (SHEET_TILE + GAP) - GAP
    assert (sheet.width - 2 * MARGIN + 40) // (width + 40) == columns and sheet.width <= sheets.WIDEST
    tall = -(-rows // columns)
    assert sheet.height == 2 * MARGIN + TEXT_LINE + tall * (SHEET_TILE + GAP) - GAP
    paper = np.asarray(sheet) == np.array(PAPER)
    assert (~paper.all(-1)).sum() >= rows * tiles * SHEET_TILE**2  # the tiles, and the captions


def test_twelve_pictures_that_do_not_compress_stay_under_three_megabytes() -> None:
    sheet = contact_sheet([[("image", noise()), ("features", noise()), ("foreground", noise())]] * 12)
    assert bytes_of(sheet) < 3e6
    assert bytes_of(page([[("x", noise())] * 3, [("head", noise())] * 12])) < 3e6


def test_a_long_line_of_a_page_goes_on_below() -> None:
    sheet = page([[("image", noise())], [("head", noise())] * (sheets.ACROSS + 1)])
    assert sheet.size == (
        2 * MARGIN + sheets.ACROSS * (PAGE_TILE + GAP) - GAP,
        2 * MARGIN + 3 * (PAGE_TILE + 18 + GAP) - GAP,
    )


def test_heat_runs_from_the_least_to_the_greatest_value_patch_by_patch() -> None:
    colours = heat(torch.tensor([[0.2, 0.2], [0.2, 0.7]]), size=(8, 8))
    assert colours[0, 0].tolist() == list(HEAT[0]) and colours[3, 7].tolist() == list(HEAT[0])
    assert colours[4, 4].tolist() == pytest.approx(list(HEAT[-1])) and colours.shape == (8, 8, 3)
    assert np.isfinite(heat(torch.ones(2, 2), size=(4, 4))).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_outside_a_mask_is_grey_and_dark(channels: int) -> None:
    image = torch.tensor([200, 100, 50], dtype=torch.uint8)[:channels].view(-1, 1, 1).expand(-1, 8, 8)
    drawn = np.asarray(kept(image, torch.tensor([[True, False]])))
    assert drawn[0, 0].tolist() == ([200, 100, 50] if channels == 3 else [200] * 3)
    outside = drawn[0, 7].astype(float)
    assert outside.max() == outside.min() < 200 * DIM + 1


def test_colours_lie_on_what_is_in_front_alone() -> None:
    image = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    colours = torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]])
    drawn = np.asarray(coloured(image, colours, torch.tensor([[True, False]])))
    assert drawn[2, 1].tolist() == [255, 0, 128] and drawn[2, 6].tolist() == [30, 30, 30]


def test_masks_have_a_colour_each_and_the_first_lies_on_top() -> None:
    image = torch.zeros(3, 10, 20, dtype=torch.uint8)
    left, all_ = torch.zeros(10, 20, dtype=torch.bool), torch.ones(10, 20, dtype=torch.bool)
    left[:, :10] = True
    drawn = np.asarray(tinted(image, torch.stack([left, all_]), longest=200))
    assert drawn.shape == (100, 200, 3)
    assert drawn[50, 50].tolist() == [round(0.55 * c) for c in MASKS[0]]
    assert drawn[50, 99].tolist() == list(MASKS[0])  # the outline
    assert drawn[50, 150].tolist() == [round(0.55 * c) for c in MASKS[1]]
    assert np.asarray(tinted(image, torch.zeros(0, 10, 20), longest=40)).max() == 0  # nothing found


def test_heat_over_a_picture_has_its_size() -> None:
    assert with_heat(torch.zeros(1, 12, 20, dtype=torch.uint8), torch.rand(3, 5)).size == (20, 12)
