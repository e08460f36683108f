"""What the pictures of an encoder share: their keywords, how images are read for them, and the folder that they write,
with a page for each image and one contact sheet of all.

Nothing heavy is imported here: the command line is made of the pictures' signatures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from simdino.files import check_folder, written
from simdino.keywords import AT_LEAST_1, PIXELS, Option
from simdino.result import Result

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from simdino.config import PositionRule
    from simdino.models.encoder import Encoder
    from simdino.show.sheets import Row

SHEET = "sheet.png"
LONGEST_NAME = 60  # characters
COUNT = 12

Out = Annotated[Path, Option("Folder to write the pictures to.", result=False)]
Count = Annotated[int, Option("Pictures drawn, at most.", AT_LEAST_1)]
Size = Annotated[int | None, Option("Short side in pixels.", PIXELS, "twice the encoder's own")]


@dataclass(frozen=True, kw_only=True)
class Gallery(Result):
    """The files that were written."""

    out: str  # the folder
    sheet: str
    pages: tuple[str, ...]  # one for each image
    broken: dict[str, str]  # images left out, and why

    def __str__(self) -> str:
        pages = f"a page for each of {len(self.pages)} images" if len(self.pages) > 1 else "a page for the image"
        return f"wrote {self.sheet} and {pages}"


def encoder_and_images(
    encoder: str, images: str, *,
    out: Path, count: int, size: int | None = None, positions: PositionRule | None = None, device: str = "auto",
) -> tuple[Encoder, list[str], list[Tensor], dict[str, str]]:  # fmt: skip
    """Open an encoder and read images for pictures in the folder `out`, which is made.

    Return the encoder, and of at most `count` images the names and pixels [C, H, W], no smaller than `size` asks
    for, as well as the images that cannot be read, with their reasons.
    Raises InputError for a folder that cannot be written to, and where no image can be read."""
    from simdino.data.pictures import read_pictures
    from simdino.data.sources import open_dataset
    from simdino.features.attention import default_size
    from simdino.features.extract import check_size
    from simdino.models.weights import on_device

    check_folder(out, option="--out")
    model = on_device(encoder, device=device, positions=positions)
    check_size(model, size)
    source = open_dataset(images).with_values(model.preprocess.values)
    at_least = 2 * (size or default_size(model))
    return model, *read_pictures(source, channels=model.in_chans, count=count, at_least=at_least)


def write_tiles(
    out: Path, names: Sequence[str], pages: Sequence[Sequence[Row]], rows: Sequence[Row], broken: dict[str, str]
) -> Gallery:
    """Draw and write a page of tiles for each named image, and the contact sheet of the rows."""
    from simdino.show.sheets import contact_sheet, page

    return write_gallery(out, names, [page(lines) for lines in pages], contact_sheet(rows), broken)


def write_gallery(
    out: Path, names: Sequence[str], pages: Sequence[Image], sheet: Image, broken: dict[str, str]
) -> Gallery:
    """Write finished pages, named after the images, and the contact sheet. Raises InputError for a folder it cannot
    write to."""
    paths = [out / name for name in file_names(names)]
    for path, picture in [*zip(paths, pages, strict=True), (out / SHEET, sheet)]:
        with written(path, option="--out") as aside:
            picture.save(aside, "PNG", optimize=True)
    return Gallery(out=str(out), sheet=str(out / SHEET), pages=tuple(map(str, paths)), broken=broken)


def file_names(names: Sequence[str]) -> list[str]:
    """Return NAME.png for each image's name, which may be a path: letters, digits, dots and dashes on one level, no two
    alike even where case is ignored, and none that of the contact sheet."""
    taken = {SHEET}
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w.-]+", "-", name.rpartition(".")[0] or name).strip(".-")[-LONGEST_NAME:] or "picture"
        candidates = (f"{plain}{ending}.png" for ending in ("", *(f"-{i}" for i in range(2, len(names) + 3))))
        found.append(next(candidate for candidate in candidates if candidate.lower() not in taken))
        taken.add(found[-1].lower())
    return found
