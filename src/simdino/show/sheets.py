"""Sheets of images under captions: pages of tiles, contact sheets, the views of images, and nearest neighbours."""

from collections.abc import Sequence
from itertools import pairwise
from math import floor, sqrt

from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from simdino.data.pictures import as_rgb
from simdino.text import readable

PAGE_TILE = 232  # on the page of one image a tile has the area of a square of this side ...
SHEET_TILE = 132  # ... and on a contact sheet of this one, so that twelve photographs stay under 3 MB
LONGER = 1.6  # times that side is the longest side of a tile
ACROSS = 6  # tiles beside each other on a page
VIEW_HEIGHT = 112  # a global view is drawn about this high
NEIGHBOUR_BOX = 84  # a neighbour is drawn at most this wide and high
WIDEST = 1240  # two columns of neighbours must fit in this

MARGIN, GAP, WIDE_GAP, COLUMN_GAP, FRAME = 12, 6, 18, 40, 2
FONT, TEXT_LINE = ImageFont.load_default(11), 18
PAPER, INK, RULE = (255, 255, 255), (91, 96, 112), (222, 225, 232)
AGREES, DISAGREES = (22, 145, 90), (205, 52, 52)

Tile = tuple[str, Image.Image]  # a caption and an image
Row = Sequence[Tile]


def page(lines: Sequence[Row]) -> Image.Image:
    """Draw lines of tiles, each under its caption; a line of more than six goes on below."""
    broken = [line[i : i + ACROSS] for line in lines for i in range(0, len(line), ACROSS)]
    tiles = [[(caption, as_tile(picture, PAGE_TILE)) for caption, picture in line] for line in broken]
    cell = max(picture.width for line in tiles for _, picture in line)
    heights = [max(picture.height for _, picture in line) + TEXT_LINE + GAP for line in tiles]
    sheet = blank(max(map(len, tiles)) * (cell + GAP) - GAP, sum(heights) - GAP)
    top = MARGIN
    for line, height in zip(tiles, heights, strict=True):
        for i, (caption, picture) in enumerate(line):
            left = MARGIN + i * (cell + GAP)
            write(sheet, caption, (left + cell // 2, top), cell)
            paste(sheet, picture, (left, top + TEXT_LINE), (cell, picture.height))
        top += height
    return sheet


def contact_sheet(rows: Sequence[Row]) -> Image.Image:
    """Draw a row of tiles for each image, all with the same captions, which stand once on top. Two or three rows stand
    side by side where there are several and they fit."""
    tiles = [[as_tile(picture, SHEET_TILE) for _, picture in row] for row in rows]
    cell = max(picture.width for row in tiles for picture in row)
    width = len(rows[0]) * (cell + GAP) - GAP
    fitting = max(1, (WIDEST - 2 * MARGIN + COLUMN_GAP) // (width + COLUMN_GAP))
    columns = min(fitting, -(-len(rows) // 3))
    tall = -(-len(rows) // columns)
    heights = [max(picture.height for row in tiles[i::tall] for picture in row) + GAP for i in range(tall)]
    sheet = blank(columns * (width + COLUMN_GAP) - COLUMN_GAP, TEXT_LINE + sum(heights) - GAP)
    for i, row in enumerate(tiles):
        left, line = MARGIN + i // tall * (width + COLUMN_GAP), i % tall
        top, height = MARGIN + TEXT_LINE + sum(heights[:line]), heights[line] - GAP
        for j, picture in enumerate(row):
            x = left + j * (cell + GAP)
            if line == 0:
                write(sheet, rows[0][j][0], (x + cell // 2, MARGIN), cell)
            paste(sheet, picture, (x, top), (cell, height))
    return sheet


def views_sheet(originals: Sequence[Tensor], global_views: Tensor, local_views: Tensor | None) -> Image.Image:
    """Draw a row per image: the original, then its global and local crops.

    All crops are enlarged by one factor, so a local crop is as small beside a global one as the encoder sees it.

    Args:
        originals: B images, uint8 `[C,H,W]`, of any sizes.
        global_views: uint8 `[G,B,C,H,W]`.
        local_views: uint8 `[M,B,C,h,w]`, or None where the recipe has none.
    """
    ratio = VIEW_HEIGHT / global_views.shape[-2]
    scale = max(1, round(ratio)) if ratio > 2 / 3 else ratio  # a whole factor keeps the pixels of small crops square
    groups = [("global", global_views)] + ([] if local_views is None else [("local", local_views)])
    columns = [
        (f"{word} {i + 1}", [scaled(to_picture(x), scale) for x in v]) for word, g in groups for i, v in enumerate(g)
    ]
    box = max(columns[0][1][0].size)
    columns.insert(0, ("image", [fitted(to_picture(x), box) for x in originals]))
    if len({len(pictures) for _, pictures in columns}) != 1:
        raise ValueError(f"views_sheet: {len(originals)} originals for views of {global_views.shape[1]} images")

    widths = [max(round(FONT.getlength(text)), *(p.width for p in pictures)) for text, pictures in columns]
    heights = [max(p.height for p in row) for row in zip(*(pictures for _, pictures in columns), strict=True)]
    gaps = [GAP if a.split()[0] == b.split()[0] else WIDE_GAP for (a, _), (b, _) in pairwise(columns)]
    sheet = blank(sum(widths) + sum(gaps), TEXT_LINE + sum(heights) + GAP * (len(heights) - 1))
    left = MARGIN
    for (text, pictures), width, gap in zip(columns, widths, [*gaps, 0], strict=True):
        write(sheet, text, (left + width // 2, MARGIN), width)
        top = MARGIN + TEXT_LINE
        for picture, height in zip(pictures, heights, strict=True):
            paste(sheet, picture, (left, top), (width, height))
            top += height + GAP
        left += width + gap
    return sheet


def neighbours_sheet(
    queries: Sequence[Tensor],
    neighbours: Sequence[Sequence[Tensor]],
    query_labels: Sequence[str] | None = None,
    neighbour_labels: Sequence[Sequence[str]] | None = None,
) -> Image.Image:
    """Draw a row per query: the image, then its nearest neighbours, nearest first, in two columns of rows where they
    fit.

    With labels, a green frame marks a neighbour with the query's label, and a red one a neighbour with another label,
    which is written below it.

    Args:
        queries: images, uint8 `[C,H,W]`, of any sizes.
        neighbours: for each query, the same number of images.
        query_labels: a label for each query.
        neighbour_labels: a label for each neighbour.
    """
    rows = [
        [fitted(to_picture(x), NEIGHBOUR_BOX) for x in (query, *nearest)]
        for query, nearest in zip(queries, neighbours, strict=True)
    ]
    labels: list[list[str]] | None = None
    if query_labels is not None and neighbour_labels is not None:
        labels = [[mine, *theirs] for mine, theirs in zip(query_labels, neighbour_labels, strict=True)]
        if [len(x) for x in labels] != [len(x) for x in rows]:
            raise ValueError("neighbours_sheet: a label for each neighbour is needed, or none at all")

    width = max(p.width for row in rows for p in row) + 2 * FRAME  # of a cell
    height = max(p.height for row in rows for p in row) + 2 * FRAME
    k = max(map(len, rows)) - 1
    row_width, row_height = width + WIDE_GAP + k * (width + GAP) - GAP, height + (TEXT_LINE if labels else GAP)
    two = len(rows) > 6 and 2 * (row_width + MARGIN) + COLUMN_GAP <= WIDEST
    tall = (len(rows) + 1) // 2 if two else len(rows)
    sheet = blank(row_width + (COLUMN_GAP + row_width if two else 0), TEXT_LINE + tall * row_height)
    for i, row in enumerate(rows):
        left, top = MARGIN + (i // tall) * (row_width + COLUMN_GAP), MARGIN + TEXT_LINE + (i % tall) * row_height
        for j, picture in enumerate(row):  # the query, then its neighbours
            x = left + (j and WIDE_GAP - GAP + j * (width + GAP))
            if i % tall == 0:
                write(sheet, ("image", "nearest")[j] if j < 2 else str(j), (x + width // 2, MARGIN), width)
            mark = None if labels is None or j == 0 else AGREES if labels[i][j] == labels[i][0] else DISAGREES
            paste(sheet, picture if mark is None else ImageOps.expand(picture, FRAME, mark), (x, top), (width, height))
            if labels is not None and mark != AGREES:
                write(sheet, labels[i][j], (x + width // 2, top + height + 2), width, mark or INK)
        rule = left + width + WIDE_GAP // 2
        ImageDraw.Draw(sheet).line((rule, top, rule, top + height), fill=RULE)
    return sheet


def blank(width: int, height: int) -> Image.Image:
    """Return an empty sheet with a margin around the given size."""
    return Image.new("RGB", (2 * MARGIN + width, 2 * MARGIN + height), PAPER)


def paste(sheet: Image.Image, picture: Image.Image, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """Draw an image in the middle of a cell, which is given by its upper left corner and its size."""
    (left, top), (width, height) = corner, size
    sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))


def write(sheet: Image.Image, text: str, at: tuple[int, int], room: int, colour: tuple[int, int, int] = INK) -> None:
    """Write text centred below a point, cut to `room` pixels."""
    text = readable(" ".join(text.split()))
    if FONT.getlength(text) > room:
        while text and FONT.getlength(text + "..") > room:
            text = text[:-1]
        text += ".."
    ImageDraw.Draw(sheet).text((at[0] - FONT.getlength(text) / 2, at[1]), text, fill=colour, font=FONT)


def to_picture(image: Tensor) -> Image.Image:
    """Return uint8 `[C,H,W]` as an RGB image: the first three of three or more channels, else the first as grey."""
    return Image.fromarray(as_rgb(image).permute(1, 2, 0).contiguous().cpu().numpy())


def as_tile(picture: Image.Image, side: int) -> Image.Image:
    """Resize an image to the area of a square, up to 1.6 times as long as its side. Small images are enlarged too, so
    that a 28 px digit can be seen."""
    ratio = min(side / sqrt(picture.width * picture.height), LONGER * side / max(picture.size))
    return scaled(picture, ratio, sharp_from=2)


def fitted(picture: Image.Image, box: int) -> Image.Image:
    """Return the image as large as fits in a square of `box`, enlarged by whole factors only."""
    ratio = box / max(picture.size)
    return scaled(picture, floor(ratio) if ratio >= 1 else ratio)


def scaled(picture: Image.Image, scale: float, *, sharp_from: float = 1) -> Image.Image:
    """Resize an image; from the given scale on, its pixels become squares."""
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale >= sharp_from else Image.Resampling.LANCZOS)
