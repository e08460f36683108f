"""Rules of all annotated data sets: which annotation belongs to which image, and how the image was turned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

from torch import Tensor

from simdino.data.decode import BrokenImage, examine, reason, stored_sides, upright_sides
from simdino.data.depth import Depth
from simdino.errors import InputError
from simdino.feedback import Log

Exif = Literal["turn", "ignore"]
"""What masks and boxes were drawn on: "turn" is the image turned as its EXIF data say, as viewers show it; "ignore" is
the image as it is stored, as tools that ignore EXIF show it. The encoder sees what was drawn on."""


def depth_of(root: Path, names: Sequence[str], bits: int | None) -> Depth:
    """Return the bit depth of a set of images below `root`. bits: that of an encoder's training images, if they were
    deep."""
    return Depth(partial(file_bytes, root), names, bits=bits)


def file_bytes(root: Path, name: str) -> bytes:
    """Return the bytes of a file below a folder. Raises BrokenImage."""
    try:
        return (root / name).read_bytes()
    except OSError as error:
        raise BrokenImage(name, reason(error)) from error


def read_picture(data: bytes, name: str, *, channels: int, exif: Exif, depth: Depth) -> Tensor:
    """Return the image as it was drawn on, uint8 [C, H, W]. depth: the one of its set. Raises BrokenImage."""
    found = examine(data, name, channels=channels, bits=depth, upright=exif == "turn")
    if found.clipped:
        depth.tell(name)
    return found.pixels


def sides_of(data: bytes, name: str, *, exif: Exif) -> tuple[int, int]:
    """Return height and width of what `read_picture` gives, from the header. Raises BrokenImage."""
    return upright_sides(data, name) if exif == "turn" else stored_sides(data, name)


def tell_turned(turned: int, *, of: int, exif: Exif, log: Log) -> None:
    """Print a line where EXIF turns images that masks or boxes belong to."""
    if not turned:
        return
    taken, other = ("turned images", "ignore") if exif == "turn" else ("images as they are stored", "turn")
    log(
        f"{turned} of {of} images are turned by their EXIF data; masks and boxes are taken as drawn on the {taken}: "
        f"--exif {other} where that is wrong"
    )


def by_stem(names: Iterable[str], where: object) -> dict[str, str]:
    """Return paths by their names without extension. Raises InputError where two share one: which is annotated is
    unclear."""
    found: dict[str, str] = {}
    for name in names:
        stem = str(PurePosixPath(name).with_suffix(""))
        if stem in found:
            raise InputError(f"data: '{where}' has both {found[stem]} and {name}, which one annotation would be of")
        found[stem] = name
    return found
