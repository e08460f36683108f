"""The patch features of an encoder as colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import Device, Option, Positions
from simdino.show.words import COUNT, Count, Out, Size

if TYPE_CHECKING:
    from simdino.show.gallery import Gallery


def show_pca(
    encoder: str, images: str, *,
    out: Out, foreground: Annotated[bool, Option("Colour what is in front; or everything.")] = True,
    size: Size = None, count: Count = COUNT, positions: Positions = None, device: Device = "auto",
    log: Log = to_stderr, progress: Progress = no_bar,
) -> Gallery:  # fmt: skip
    """Patch features as colours: like parts of all pictures have like colours.

    Raises InputError for an encoder without patch tokens, and where there is no picture."""
    from simdino.features.pca import principal_pictures
    from simdino.files import check_folder
    from simdino.models.weights import on_device
    from simdino.show.gallery import write_gallery
    from simdino.show.inside import principal_tiles, read

    check_folder(out, option="--out")
    model = on_device(encoder, device=device, positions=positions)
    names, pictures, broken = read(images, model, count=count, size=size)
    found = principal_pictures(model, pictures, size=size, foreground=foreground)
    rows = [principal_tiles(one, foreground=foreground) for one in found]
    return write_gallery(out, names, [[row] for row in rows], rows, broken)
