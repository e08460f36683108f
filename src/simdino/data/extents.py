"""Which values of deep images (more than 8 bits) become 0 and 1.

A file of 16 bits may hold values of 10 or 12, and one of floating-point numbers any; the header does not tell. So a
sample of the set does, by the first of these rules that fits:

- window: most of its files say which values to show, as DICOM does; the medians of these;
- unit: floating-point numbers that all lie in [0, 1] are taken as they are;
- bits: whole numbers from 0 on, which use a good part of their bits; the largest, rounded up to a power of two, is 1;
- percentiles: of anything else, the values above the lowest and below the highest thousandth, of the channel where they
  reach furthest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simdino.data.stored import Stored
from simdino.settings import Values

SHOWN = 20_000  # values of an image that count, evenly spaced
TAIL = 0.1  # percent of the values on either side that may be clipped
PART = 1 / 8  # of the range of the bits, which values must use to be taken as a part of it


@dataclass(frozen=True, kw_only=True)
class Extent:
    """What one deep image tells of its set's scale. Of each channel: the lowest and the highest value without TAIL."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    least: float
    most: float
    whole: bool  # whether the values are whole numbers
    window: Values | None


def extent(stored: Stored) -> Extent:
    """Return the extent of deep values. Raises ValueError where some are not finite."""
    flat = stored.values.reshape(-1, stored.values.shape[-1])
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        raise ValueError("values that are not finite tell no scale")
    spaced = flat[:: max(1, len(flat) // SHOWN) | 1].astype(np.float64)
    low, high = np.percentile(spaced, (TAIL, 100 - TAIL), axis=0)
    whole = flat.dtype.kind in "ui"
    least, most = float(flat.min()), float(flat.max())
    return Extent(low=low, high=high, least=least, most=most, whole=whole, window=stored.window)


def values_of(found: Sequence[Extent]) -> Values:
    """Return the values that become 0 and 1, by the rules above."""
    windows = [one.window for one in found if one.window is not None]
    if 2 * len(windows) > len(found):
        low, high = np.median(np.array(windows), axis=0)
        return float(low), float(high)
    least, most = min(one.least for one in found), max(one.most for one in found)
    whole = all(one.whole for one in found)
    if not whole and least >= 0 and most <= 1:
        return 0.0, 1.0
    low, high = min(float(one.low.min()) for one in found), max(float(one.high.max()) for one in found)
    full = float(2 ** bits_for(most) - 1) if whole and least >= 0 else 0.0
    if high - low >= PART * full > 0 or high <= low:
        return (0.0, full) if full else (least, max(most, least + 1.0))
    return low, high


def bits_for(largest: float) -> int:
    """Return the bits that the largest value needs, 8 or more."""
    return max(8, int(largest).bit_length())
