"""What all sets of annotated pictures share: which file belongs to which, and how a picture lies that was drawn on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Literal, get_args

from torch import Tensor

from simdino.data.decode import decode, stored_sides, upright_sides
from simdino.errors import InputError

Exif = Literal["turn", "ignore"]
"""What masks and boxes were drawn on: the picture turned as its EXIF data say, as viewers show it, or the pixels as
they are stored, as tools without a look at EXIF have them. The encoder sees what was drawn on."""


def check_exif(exif: str) -> None:
    """Raise InputError for a word that is none."""
    if exif not in get_args(Exif):
        raise InputError(f"--exif {exif} is not one of {', '.join(get_args(Exif))}")


def read_picture(data: bytes, name: str, *, channels: int, exif: Exif) -> Tensor:
    """uint8 [C, H, W], as it was drawn on. Raises BrokenImage."""
    return decode(data, name, channels=channels, upright=exif == "turn")


def sides_of(data: bytes, name: str, *, exif: Exif) -> tuple[int, int]:
    """Height and width of what `read_picture` gives, from the header. Raises BrokenImage."""
    return upright_sides(data, name) if exif == "turn" else stored_sides(data, name)


def turned_line(turned: int, *, of: int, exif: Exif) -> str | None:
    """What a person should know where EXIF turns pictures that masks or boxes belong to."""
    if not turned:
        return None
    taken, other = ("turned pictures", "ignore") if exif == "turn" else ("pixels as they are stored", "turn")
    return (
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
