"""A folder of pictures: a page for each image, and one contact sheet of all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from simdino.files import written
from simdino.result import Result
from simdino.show.tiles import Tile, contact_sheet, page

SHEET = "sheet.png"
LONGEST_NAME = 60  # characters


@dataclass(frozen=True, kw_only=True)
class Gallery(Result):
    """The files that were written."""

    folder: Path
    pages: tuple[Path, ...]  # one for each image
    sheet: Path
    broken: dict[str, str]  # images left out, and why

    def as_dict(self) -> dict[str, Any]:
        """Return the paths, and the images left out, in values that JSON holds."""
        pages = [str(path) for path in self.pages]
        return {"out": str(self.folder), "sheet": str(self.sheet), "pages": pages, "broken": self.broken}

    def __str__(self) -> str:
        pages = f"a page for each of {len(self.pages)} images" if len(self.pages) > 1 else "a page for the image"
        return f"wrote {self.sheet} and {pages}"


def write_gallery(
    out: Path,
    names: Sequence[str],
    pages: Sequence[Sequence[Sequence[Tile]]],
    rows: Sequence[Sequence[Tile]],
    broken: dict[str, str],
) -> Gallery:
    """Draw and write a page for each named image, and the contact sheet of the rows."""
    return save(out, names, [page(lines) for lines in pages], contact_sheet(rows), broken)


def save(
    out: Path, names: Sequence[str], pages: Sequence[Image.Image], sheet: Image.Image, broken: dict[str, str]
) -> Gallery:
    """Write finished pages, named after the images, and the contact sheet. Raises InputError for a folder it cannot
    write to."""
    paths = [out / name for name in file_names(names)]
    for path, picture in [*zip(paths, pages, strict=True), (out / SHEET, sheet)]:
        with written(path, option="--out") as aside:
            picture.save(aside, "PNG", optimize=True)
    return Gallery(folder=out, pages=tuple(paths), sheet=out / SHEET, broken=broken)


def file_names(names: Sequence[str]) -> list[str]:
    """Return NAME.png for each image's name, which may be a path: letters, digits, dots and dashes on one level, no two
    alike even where case is ignored, and none that of the contact sheet."""
    taken = {SHEET}
    found = []
    for name in names:
        plain = re.sub(r"[^\w.-]+", "-", name.rpartition(".")[0] or name).strip(".-")[-LONGEST_NAME:] or "picture"
        candidates = (f"{plain}{ending}.png" for ending in ("", *(f"-{i}" for i in range(2, len(names) + 3))))
        chosen = next(candidate for candidate in candidates if candidate.lower() not in taken)
        taken.add(chosen.lower())
        found.append(chosen)
    return found
