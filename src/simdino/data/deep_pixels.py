"""Pixels of more than 8 bits: their values, and how they are scaled to 8 bits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageFile

Bits = Callable[[], int]
"""Returns the bit depth of a set of images, 8 to 31; it is called for an image of more than 8 bits."""

_NATIVE, _OTHER = ("L", "B") if sys.byteorder == "little" else ("B", "L")
_LOW_BYTES = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (("L", "B"), ("B", "L"), ("N", _OTHER))
}
"""Raw modes that make Pillow take the other byte of each 16-bit colour, of which it otherwise gives the high byte
alone."""


def raw_mode(image: ImageFile.ImageFile) -> str:
    """Return how the pixels of an image that is not loaded yet lie in its file, as Pillow's raw mode."""
    arguments = image.tile[0].args if image.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def is_deep(mode: str, raw: str) -> bool:
    """Return whether pixels of this mode and raw mode have values of more than 8 bits."""
    return mode.startswith("I") or raw in _LOW_BYTES


def deep_values(image: Image.Image, raw: str, again: Callable[[], Any]) -> np.ndarray:
    """Return the integers [H, W] or [H, W, C] of a loaded deep image. again: opens the same file once more.

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
    """Return the bits that the largest value needs, 8 or more."""
    return max(8, int(largest).bit_length())


def to_eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Return the highest 8 bits of values of so many bits, as uint8. Values above the range become 255."""
    return np.minimum(values >> (bits - 8), 255).astype(np.uint8)


def largest_colour(values: np.ndarray) -> int:
    """Return the largest value of the colours. Opacity is left out: it may use all 16 bits where colours use 12."""
    return int((values[..., :3] if values.ndim == 3 else values).max())


def _of_mode(arguments: Any, raw: str) -> Any:
    """Return a decoder's arguments with another raw mode, which is the first or the only one of them."""
    return (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw
