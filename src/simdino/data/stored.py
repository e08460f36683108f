"""Values of an image as they are stored, which every reader returns."""

from dataclasses import dataclass

import numpy as np

from simdino.data.opening import MAX_PIXELS
from simdino.settings import Values


class Refused(ValueError):
    """An image that no reader could make a good one of."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The values of an image as they are stored, [H, W, C] of any numbers.

    alpha: opacity [H, W], where the file says that a band is that. window: the values that the file says to show.
    orientation: as EXIF counts; 1 is upright."""

    values: np.ndarray
    alpha: np.ndarray | None = None
    window: Values | None = None
    orientation: int = 1


def with_opacity(values: np.ndarray, *, orientation: int = 1) -> Stored:
    """Return values [H, W] or [H, W, C] whose last band is the opacity where there are 2 or 4."""
    values = values[..., None] if values.ndim == 2 else values
    if values.shape[-1] in (2, 4):
        return Stored(values=values[..., :-1], alpha=values[..., -1], orientation=orientation)
    return Stored(values=values, orientation=orientation)


def check_sides(sides: tuple[int, ...]) -> None:
    """Raise Refused for an image without pixels, or with too many."""
    height, width = int(sides[0]), int(sides[1]) if len(sides) > 1 else 1
    if height * width > MAX_PIXELS:
        raise Refused(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS:,} pixels")
    if height * width < 1:
        raise Refused("it has no pixels")
