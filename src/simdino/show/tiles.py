"""Images side by side: the page of one image, and the contact sheet of several. The look is that of `sheets`."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from PIL import Image, ImageDraw

from simdino.show.sheets import COLUMN_GAP, GAP, INK, MARGIN, PAPER, TEXT_LINE, WIDEST, write

PAGE_TILE = 232  # on the page of one image a tile has the area of a square of this side ...
SHEET_TILE = 132  # ... and on a contact sheet of this one, so that twelve photographs stay under 3 MB
LONGER = 1.6  # times that side is the longest side of a tile
ACROSS = 6  # tiles beside each other on a page

Tile = tuple[str, Image.Image]


def page(lines: Sequence[Sequence[Tile]]) -> Image.Image:
    """Draw lines of tiles, each an image under its caption; a line of more than six goes on below."""
    broken = [line[i : i + ACROSS] for line in lines for i in range(0, len(line), ACROSS)]
    tiles = [[(caption, inside(picture, PAGE_TILE)) for caption, picture in line] for line in broken]
    cell = max(picture.width for line in tiles for _, picture in line)
    heights = [max(picture.height for _, picture in line) + TEXT_LINE + GAP for line in tiles]
    across = max(len(line) for line in tiles)
    sheet = Image.new("RGB", (2 * MARGIN + across * (cell + GAP) - GAP, 2 * MARGIN + sum(heights) - GAP), PAPER)
    pen, top = ImageDraw.Draw(sheet), MARGIN
    for line, height in zip(tiles, heights, strict=True):
        for i, (caption, picture) in enumerate(line):
            left = MARGIN + i * (cell + GAP)
            write(pen, caption, (left + cell // 2, top), cell, INK)
            sheet.paste(picture, (left + (cell - picture.width) // 2, top + TEXT_LINE))
        top += height
    return sheet


def contact_sheet(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Draw a row of tiles for each image, all with the same captions, which stand once on top. Two or three rows stand
    side by side where there are several and they fit."""
    tiles = [[inside(picture, SHEET_TILE) for _, picture in row] for row in rows]
    cell = max(picture.width for row in tiles for picture in row)
    width = len(rows[0]) * (cell + GAP) - GAP
    fitting = max(1, (WIDEST - 2 * MARGIN + COLUMN_GAP) // (width + COLUMN_GAP))
    columns = min(fitting, -(-len(rows) // 3))
    tall = -(-len(rows) // columns)
    heights = [max(picture.height for row in tiles[i::tall] for picture in row) + GAP for i in range(tall)]
    size = (2 * MARGIN + columns * (width + COLUMN_GAP) - COLUMN_GAP, 2 * MARGIN + TEXT_LINE + sum(heights) - GAP)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, row in enumerate(tiles):
        left, line = MARGIN + i // tall * (width + COLUMN_GAP), i % tall
        top, height = MARGIN + TEXT_LINE + sum(heights[:line]), heights[line] - GAP
        for j, picture in enumerate(row):
            x = left + j * (cell + GAP)
            if line == 0:
                write(pen, rows[0][j][0], (x + cell // 2, MARGIN), cell, INK)
            sheet.paste(picture, (x + (cell - picture.width) // 2, top + (height - picture.height) // 2))
    return sheet


def inside(picture: Image.Image, tile: int) -> Image.Image:
    """Resize an image to the area of a square of side `tile`, up to 1.6 times as long. Small images are enlarged too,
    so that a 28 px digit can be seen."""
    width, height = picture.size
    ratio = min(tile / sqrt(width * height), LONGER * tile / max(width, height))
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return picture.resize(size, Image.Resampling.NEAREST if ratio >= 2 else Image.Resampling.LANCZOS)
