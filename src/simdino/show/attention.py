"""What the class token of an encoder attends to, in pictures."""

from typing import Annotated

from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import Device, Option, Positions
from simdino.settings import Range
from simdino.show.gallery import COUNT, Count, Gallery, Out, Size, encoder_and_images, write_tiles

MASS = 0.6  # of the attention that a mask keeps: the value of DINO's paper


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
    from simdino.show.tiles import head_tiles, mean_tiles

    model, names, pictures, broken = encoder_and_images(
        encoder, images, out=out, count=count, size=size, positions=positions, device=device
    )
    model.last_attention()  # names what has none
    maps = [attention_maps(model, picture, size=size) for picture in progress(pictures, "attention", len(pictures))]
    rows = [mean_tiles(one, mass) for one in maps]
    pages = [[row, *head_tiles(one, mass)] for row, one in zip(rows, maps, strict=True)]
    return write_tiles(out, names, pages, rows, broken)
