"""What the class token of an encoder attends to, in pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import Device, Option, Positions
from simdino.settings import Range
from simdino.show.words import COUNT, MASS, Count, Out, Size

if TYPE_CHECKING:
    from simdino.show.gallery import Gallery


def show_attention(
    encoder: str, images: str, *,
    out: Out,
    mass: Annotated[float, Option("Share of the attention that a mask keeps.", Range(above=0, at_most=1))] = MASS,
    size: Size = None, count: Count = COUNT, positions: Positions = None, device: Device = "auto",
    log: Log = to_stderr, progress: Progress = no_bar,
) -> Gallery:  # fmt: skip
    """What the class token attends to in the last block, by head and in the mean.

    Each picture gets a page of its own with every head, and sheet.png shows the means of all and the patches that hold
    `mass` of it. images: a picture, or whatever `open_dataset` takes.
    Raises InputError for an encoder whose attention cannot be read, and where there is no picture."""
    from simdino.features.attention import attention_maps
    from simdino.files import check_folder
    from simdino.models.weights import on_device
    from simdino.show.gallery import write_gallery
    from simdino.show.inside import head_tiles, mean_tiles, read

    check_folder(out, option="--out")
    model = on_device(encoder, device=device, positions=positions)
    model.last_attention()  # refuses at once what has none
    names, pictures, broken = read(images, model, count=count, size=size)
    maps = [attention_maps(model, picture, size=size) for picture in progress(pictures, "attention", len(pictures))]
    rows = [mean_tiles(one, mass) for one in maps]
    pages = [[row, *head_tiles(one, mass)] for row, one in zip(rows, maps, strict=True)]
    return write_gallery(out, names, pages, rows, broken)
