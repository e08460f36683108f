"""The patch features of an encoder as colours."""

from typing import Annotated

from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import Device, Option, Positions
from simdino.show.gallery import COUNT, Count, Gallery, Out, Size, encoder_and_images, write_tiles


def show_pca(
    encoder: str, images: str, *,
    out: Out, foreground: Annotated[bool, Option("Colour what is in front; or everything.")] = True,
    size: Size = None, count: Count = COUNT, positions: Positions = None, device: Device = "auto",
    log: Log = to_stderr, progress: Progress = no_bar,
) -> Gallery:  # fmt: skip
    """Patch features as colours: like parts of all pictures have like colours.

    Raises InputError for an encoder without patch tokens, and where there is no picture."""
    from simdino.features.pca import principal_pictures
    from simdino.show.tiles import principal_tiles

    model, names, pictures, broken = encoder_and_images(
        encoder, images, out=out, count=count, size=size, positions=positions, device=device
    )
    found = principal_pictures(model, pictures, size=size, foreground=foreground)
    rows = [principal_tiles(one, foreground=foreground) for one in found]
    return write_tiles(out, names, [[row] for row in rows], rows, broken)
