"""What all sets of annotated pictures share: which file belongs to which, and how a picture lies that was drawn on."""

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
"""What masks and boxes were drawn on: the picture turned as its EXIF data say, as viewers show it, or the pixels as
they are stored, as tools without a look at EXIF have them. The encoder sees what was drawn on."""


def depth_of(root: Path, names: Sequence[str], bits: int | None) -> Depth:
    """The bit depth of a set of pictures below `root`. bits: of an encoder's training images, where they were deep."""
    return Depth(partial(file_bytes, root), names, bits=bits)


def file_bytes(root: Path, name: str) -> bytes:
    """A file below a folder. Raises BrokenImage."""
    try:
        return (root / name).read_bytes()
    except OSError as error:
        raise BrokenImage(name, reason(error)) from error


def read_picture(data: bytes, name: str, *, channels: int, exif: Exif, depth: Depth) -> Tensor:
    """uint8 [C, H, W], as it was drawn on. depth: of its set. Raises BrokenImage."""
    found = examine(data, name, channels=channels, bits=depth, upright=exif == "turn")
    if found.clipped:
        depth.tell(name)
    return found.pixels


def sides_of(data: bytes, name: str, *, exif: Exif) -> tuple[int, int]:
    """Height and width of what `read_picture` gives, from the header. Raises BrokenImage."""
    return upright_sides(data, name) if exif == "turn" else stored_sides(data, name)


def tell_turned(turned: int, *, of: int, exif: Exif, log: Log) -> None:
    """Print a line where EXIF turns pictures that masks or boxes belong to."""
    if not turned:
        return
    taken, other = ("turned pictures", "ignore") if exif == "turn" else ("pixels as they are stored", "turn")
    log(
        f"{turned} of {of} pictures are turned by their EXIF data; masks and boxes are taken as drawn on the {taken}: "
        f"--exif {other} where that is wrong"
    )


def by_stem(names: Iterable[str], where: object) -> dict[str, str]:
    """Paths by what they are without their ending. Raises InputError where two are alike: a mask or box could be of
    either."""
    found: dict[str, str] = {}
    for name in names:
        stem = str(PurePosixPath(name).with_suffix(""))
        if stem in found:
            raise InputError(f"data: '{where}' has both {found[stem]} and {name}, which one annotation would be of")
        found[stem] = name
    return found
