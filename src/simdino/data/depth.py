"""The bit depth of a set of images: all images of more than 8 bits are scaled to 8 bits alike.

A file of 16 bits may hold values of 10 or 12 bits, and one of 32 bits any; the header does not tell. So the range is
the largest value in a sample of the set, rounded up to a power of two: 1,023 in 10 bits and 4,095 in 12 bits are
white."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np

from simdino.data.decode import largest_value
from simdino.data.deep_pixels import bits_for
from simdino.text import readable

LOOKED_AT = 256  # images of a set, evenly spaced
UNKNOWN = 16  # bits, where no image of the sample is deep but another one is


class Depth:
    """The bit depth of a set's deep images, measured when the first of them is read, or given.

    A call returns it. All parts of a set share one."""

    def __init__(self, get: Callable[[str], bytes], names: Sequence[str], *, bits: int | None = None) -> None:
        """get: returns a file's bytes by its name. names: those of the whole set. bits: the depth of an encoder's
        training."""
        self.get, self.bits = get, bits
        spaced = np.linspace(0, len(names) - 1, min(len(names), LOOKED_AT)).round().astype(np.int64)
        self.sample = [names[int(i)] for i in spaced]
        self.told = False

    def __call__(self) -> int:
        """Return the bit depth, 8 to 31."""
        if self.bits is None:
            found = [value for value in map(self._largest, self.sample) if value is not None]
            self.bits = bits_for(max(found)) if found else UNKNOWN
        return self.bits

    def tell(self, name: str) -> None:
        """Print a warning that an image is clipped, for the first one only."""
        if not self.told:
            self.told = True
            print(
                f"warning: {readable(name)} has values above {2 ** self() - 1:,}, the white of this set or of the "
                f"encoder's training images; they are clipped, and so are those of any further image",
                file=sys.stderr,
            )

    def _largest(self, name: str) -> int | None:
        try:
            return largest_value(self.get(name), name)
        except Exception:  # a broken image, a vanished file, a damaged member: each archive raises its own error
            return None
