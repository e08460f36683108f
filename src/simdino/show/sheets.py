"""Contact sheets: the augmented views of a few images, and the nearest neighbours of a few images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import floor

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from simdino.data.pictures import as_rgb
from simdino.text import readable

VIEW_HEIGHT = 112  # a global view is drawn about this high
NEIGHBOUR_BOX = 84  # a neighbour is drawn at most this wide and high
WIDEST = 1240  # two columns of neighbours must fit in this

MARGIN, GAP, WIDE_GAP, COLUMN_GAP, FRAME = 12, 6, 18, 40, 2
TEXT_SIZE, TEXT_LINE = 11, 18
PAPER, INK, RULE = (255, 255, 255), (91, 96, 112), (222, 225, 232)
AGREES, DISAGREES = (22, 145, 90), (205, 52, 52)
Colour = tuple[int, int, int]


def views_sheet(originals: Sequence[Tensor], global_views: Tensor, local_views: Tensor | None) -> Image.Image:
    """Draw a row per image: the original, then its global and local crops.

    All crops are enlarged by one factor, so a local crop is as small beside a global one as the encoder sees it.

    Args:
        originals: B images, uint8 `[C,H,W]`, of any sizes.
        global_views: uint8 `[G,B,C,H,W]`.
        local_views: uint8 `[M,B,C,h,w]`, or None where the recipe has none.
    """
    scale = _view_scale(global_views.shape[-2])
    groups = [("global", global_views)] + ([] if local_views is None else [("local", local_views)])
    columns = [
        (f"{word} {i + 1}", [_scaled(to_picture(x), scale) for x in v]) for word, g in groups for i, v in enumerate(g)
    ]
    box = max(columns[0][1][0].size)
    columns.insert(0, ("image", [_fitted(to_picture(x), box) for x in originals]))
    if len({len(pictures) for _, pictures in columns}) != 1:
        raise ValueError(f"views_sheet: {len(originals)} originals for views of {global_views.shape[1]} images")

    font = font_of()
    widths = [max(round(font.getlength(text)), *(p.width for p in pictures)) for text, pictures in columns]
    heights = [max(p.height for p in row) for row in zip(*(pictures for _, pictures in columns), strict=True)]
    gaps = [GAP if a.split()[0] == b.split()[0] else WIDE_GAP for (a, _), (b, _) in pairwise(columns)]
    width = 2 * MARGIN + sum(widths) + sum(gaps)
    sheet = Image.new("RGB", (width, 2 * MARGIN + TEXT_LINE + sum(heights) + GAP * (len(heights) - 1)), PAPER)
    pen, left = ImageDraw.Draw(sheet), MARGIN
    for (text, pictures), wide, gap in zip(columns, widths, [*gaps, 0], strict=True):
        write(pen, text, (left + wide // 2, MARGIN), wide, INK)
        top = MARGIN + TEXT_LINE
        for picture, high in zip(pictures, heights, strict=True):
            sheet.paste(picture, (left + (wide - picture.width) // 2, top + (high - picture.height) // 2))
            top += high + GAP
        left += wide + gap
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
        [_fitted(to_picture(x), NEIGHBOUR_BOX) for x in (query, *nearest)]
        for query, nearest in zip(queries, neighbours, strict=True)
    ]
    labels: list[list[str]] | None = None
    if query_labels is not None and neighbour_labels is not None:
        labels = [[mine, *theirs] for mine, theirs in zip(query_labels, neighbour_labels, strict=True)]
        if [len(x) for x in labels] != [len(x) for x in rows]:
            raise ValueError("neighbours_sheet: a label for each neighbour is needed, or none at all")

    cell_width = max(p.width for row in rows for p in row) + 2 * FRAME
    cell_height = max(p.height for row in rows for p in row) + 2 * FRAME
    k = max(len(row) for row in rows) - 1
    row_width = cell_width + WIDE_GAP + k * (cell_width + GAP) - GAP
    row_height = cell_height + (TEXT_LINE if labels else GAP)
    two = len(rows) > 6 and 2 * (row_width + MARGIN) + COLUMN_GAP <= WIDEST
    tall = (len(rows) + 1) // 2 if two else len(rows)
    width = 2 * MARGIN + row_width + (COLUMN_GAP + row_width if two else 0)
    sheet = Image.new("RGB", (width, 2 * MARGIN + TEXT_LINE + tall * row_height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        left = MARGIN + (i // tall) * (row_width + COLUMN_GAP)
        top = MARGIN + TEXT_LINE + (i % tall) * row_height
        for j, picture in enumerate(row):
            x = left + (j and WIDE_GAP - GAP + j * (cell_width + GAP))
            if i % tall == 0:
                title = ("image", "nearest")[j] if j < 2 else str(j)
                write(pen, title, (x + cell_width // 2, MARGIN), cell_width, INK)
            _place(sheet, picture, (x, top, cell_width, cell_height), j, labels[i] if labels else None)
        rule = left + cell_width + WIDE_GAP // 2
        pen.line((rule, top, rule, top + cell_height), fill=RULE)
    return sheet


def _place(
    sheet: Image.Image,
    picture: Image.Image,
    cell: tuple[int, int, int, int],
    j: int,
    labels: list[str] | None,
) -> None:
    """Draw image `j` of a row (0 is the query) in the middle of its cell, framed and captioned as its label asks
    for."""
    pen, (left, top, width, height) = ImageDraw.Draw(sheet), cell
    x, y = left + (width - picture.width) // 2, top + (height - picture.height) // 2
    if labels is not None:
        agrees = labels[0] == labels[j]
        if j > 0:
            frame = (x - FRAME, y - FRAME, x + picture.width + FRAME - 1, y + picture.height + FRAME - 1)
            pen.rectangle(frame, outline=AGREES if agrees else DISAGREES, width=FRAME)
        if j == 0 or not agrees:
            write(pen, labels[j], (left + width // 2, top + height + 2), width, DISAGREES if j else INK)
    sheet.paste(picture, (x, y))


def to_picture(image: Tensor) -> Image.Image:
    """Return uint8 `[C,H,W]` as an RGB image: the first three of three or more channels, else the first as grey."""
    return Image.fromarray(as_rgb(image).permute(1, 2, 0).contiguous().cpu().numpy())


def _view_scale(height: int) -> float:
    """Return a whole factor for small crops, so that their pixels stay square and sharp; a fraction for large ones."""
    ratio = VIEW_HEIGHT / height
    return max(1, round(ratio)) if ratio > 2 / 3 else ratio


def _fitted(picture: Image.Image, box: int) -> Image.Image:
    """Return the image as large as fits in a square of `box`, enlarged by whole factors only."""
    ratio = box / max(picture.size)
    return _scaled(picture, floor(ratio) if ratio >= 1 else ratio)


def _scaled(picture: Image.Image, scale: float) -> Image.Image:
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


def font_of() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of all sheets."""
    return ImageFont.load_default(TEXT_SIZE)


def write(pen: ImageDraw.ImageDraw, text: str, place: tuple[int, int], room: int, colour: Colour) -> None:
    """Draw text centred below `place`, cut to `room` pixels."""
    font = font_of()
    text = readable(" ".join(text.split()))
    if font.getlength(text) > room:
        while text and font.getlength(text + "..") > room:
            text = text[:-1]
        text += ".."
    pen.text((place[0] - font.getlength(text) / 2, place[1]), text, fill=colour, font=font)
