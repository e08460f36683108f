"""The objects that an encoder parts, in pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from simdino.evaluate.discovery import COUNT as OBJECTS
from simdino.evaluate.discovery import TAU
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import AT_LEAST_1, COSINE, PIXELS, Device, Option, Positions
from simdino.show.words import COUNT, Count, Out

if TYPE_CHECKING:
    from simdino.show.gallery import Gallery


def show_masks(
    encoder: str, images: str, *,
    out: Out,
    masks: Annotated[int, Option("Objects in a picture, at most.", AT_LEAST_1)] = OBJECTS,
    tau: Annotated[float, Option("Cosine above which patches belong together.", COSINE)] = TAU["maskcut"],
    size: Annotated[int | None, Option("Side in pixels.", PIXELS, "480, or 60 patches where that is less")] = None,
    count: Count = COUNT, positions: Positions = None, device: Device = "auto",
    log: Log = to_stderr, progress: Progress = no_bar,
) -> Gallery:  # fmt: skip
    """Objects found without labels, by MaskCut.

    Raises InputError for an encoder whose keys cannot be read, and where there is no picture."""
    from simdino.features.extract import check_size
    from simdino.files import check_folder
    from simdino.models.weights import on_device
    from simdino.show.gallery import write_gallery
    from simdino.show.inside import mask_tiles, read

    check_folder(out, option="--out")
    model = on_device(encoder, device=device, positions=positions)
    model.last_attention()
    check_size(model, size, pairs=True)
    names, pictures, broken = read(images, model, count=count, size=size)
    watched = progress(pictures, "masks", len(pictures))
    rows = [mask_tiles(model, one, masks=masks, tau=tau, size=size) for one in watched]
    return write_gallery(out, names, [[row] for row in rows], rows, broken)
