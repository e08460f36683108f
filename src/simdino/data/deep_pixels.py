"""Pixels of more than 8 bits: their values, and the scale that brings them to 8 bits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageFile

Bits = Callable[[], int]
"""Gives the bits of the values of a set of pictures, 8 to 31; asked where a picture has more than 8."""

_NATIVE, _OTHER = ("L", "B") if sys.byteorder == "little" else ("B", "L")
_LOW_BYTES = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (("L", "B"), ("B", "L"), ("N", _OTHER))
}
"""How Pillow is told to take the other byte of each colour of 16 bits: of these it gives the high bytes alone."""


def raw_mode(image: ImageFile.ImageFile) -> str:
    """How the pixels of an image that is not loaded yet lie in its file, in Pillow's words."""
    arguments = image.tile[0].args if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def is_deep(mode: str, raw: str) -> bool:
    """Whether pixels of this mode, which lie in their file like this, have values of more than 8 bits."""
    return mode.startswith("I") or raw in _LOW_BYTES


def deep_values(image: Image.Image, raw: str, again: Callable[[], ImageFile.ImageFile]) -> np.ndarray:
    """Integers [H, W] or [H, W, C] of a loaded image that is deep. again: opens the same file once more.

    Raises ValueError for values below 0."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.dtype.kind == "i" and values.min() < 0:
            raise ValueError(
                f"pixels from {values.min()} to {values.max()} have no known range: save them without a sign"
            )
        return values
    low = again()
    low.tile = [tile._replace(args=_of_mode(tile.args, _LOW_BYTES[raw])) for tile in low.tile]
    low.load()
    return np.asarray(image).astype(np.uint16) << 8 | np.asarray(low)


def bits_for(largest: int) -> int:
    """The bits of values up to the largest, 8 or more."""
    return max(8, int(largest).bit_length())


def to_eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Values of so many bits as uint8: the highest 8 of them. What is above the range is white."""
    return np.minimum(values >> (bits - 8), 255).astype(np.uint8)


def largest_colour(values: np.ndarray) -> int:
    """The largest value that is no opacity: that may have all 16 bits where colours have 12."""
    return int((values[..., :3] if values.ndim == 3 else values).max())


def _of_mode(arguments: Any, raw: str) -> Any:
    """A decoder's arguments with another raw mode, which is the first or the only one."""
    return (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw
