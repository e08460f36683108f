"""Thumbnails of many images in a few large sheets, which a page loads at once."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from simdino.show.sheets import PAPER, scaled

SHEET_SIDE = 2048  # pixels: what every browser draws from, phones too
BLOCK = 16  # pixels of a side that WebP codes together: cells of whole blocks keep out of each other's
QUALITY = 70  # of WebP: 2,000 photographs at 112 px in 5 MB


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """Thumbnails in square cells of sheets, row by row, each in the upper left corner of its cell."""

    cell: int  # pixels of a side
    columns: int  # cells of a row, and rows of a full sheet
    sizes: list[tuple[int, int]]  # width and height of each thumbnail
    sheets: list[bytes]  # WebP

    def place(self, i: int) -> tuple[int, int, int]:
        """Return the sheet of thumbnail i, and left and top in it."""
        sheet, cell = divmod(i, self.columns**2)
        row, column = divmod(cell, self.columns)
        return sheet, column * self.cell, row * self.cell

    def addresses(self) -> list[str]:
        """Return the sheets as data URLs."""
        return [f"data:image/webp;base64,{base64.b64encode(sheet).decode('ascii')}" for sheet in self.sheets]


def thumbnail(picture: Image.Image, side: int) -> Image.Image:
    """Return a picture that fits into a square; a smaller one stays as it is."""
    return scaled(picture, min(1, side / max(picture.size)))


def atlas_of(thumbnails: Sequence[Image.Image]) -> Atlas:
    """Draw thumbnails, one at least, into sheets."""
    largest = max(max(one.size) for one in thumbnails)
    cell = -(-largest // BLOCK) * BLOCK
    columns = max(1, SHEET_SIDE // cell)
    atlas = Atlas(cell=cell, columns=columns, sizes=[one.size for one in thumbnails], sheets=[])
    for first in range(0, len(thumbnails), columns**2):
        part = thumbnails[first : first + columns**2]
        sheet = Image.new("RGB", (min(columns, len(part)) * cell, -(-len(part) // columns) * cell), PAPER)
        for i, picture in enumerate(part, start=first):
            sheet.paste(extended(picture, cell), atlas.place(i)[1:])
        file = BytesIO()
        sheet.save(file, "WEBP", quality=QUALITY)
        atlas.sheets.append(file.getvalue())
    return atlas


def extended(picture: Image.Image, cell: int) -> Image.Image:
    """Return a picture with its right and lower edge repeated up to the end of a block, as far as a cell goes: lossy
    compression mixes what lies in one block."""
    width, height = (min(cell, -(-length // BLOCK) * BLOCK) for length in picture.size)
    wide = Image.new("RGB", (width, height))
    right, bottom = picture.width - 1, picture.height - 1
    wide.paste(picture.crop((right, bottom, right + 1, bottom + 1)).resize((width, height)))
    wide.paste(picture.crop((right, 0, right + 1, bottom + 1)).resize((width, picture.height)))
    wide.paste(picture.crop((0, bottom, right + 1, bottom + 1)).resize((picture.width, height)))
    wide.paste(picture)
    return wide
