"""The objects that an encoder parts, in pictures."""

from typing import Annotated

from simdino.evaluate.discovery import COUNT as OBJECTS
from simdino.evaluate.discovery import TAU
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import AT_LEAST_1, COSINE, PIXELS, Device, Option, Positions
from simdino.show.gallery import COUNT, Count, Gallery, Out, encoder_and_images, write_tiles


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
    from simdino.evaluate.discovery.maskcut import maskcut
    from simdino.features.extract import check_size
    from simdino.show.tiles import mask_tiles

    model, names, pictures, broken = encoder_and_images(
        encoder, images, out=out, count=count, size=size, positions=positions, device=device
    )
    model.last_attention()  # names what has none
    check_size(model, size, pairs=True)
    watched = progress(pictures, "masks", len(pictures))
    rows = [mask_tiles(one, maskcut(model, one, count=masks, tau=tau, size=size)) for one in watched]
    return write_tiles(out, names, [[row] for row in rows], rows, broken)
