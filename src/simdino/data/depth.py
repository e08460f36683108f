"""The bit depth of a set of pictures: all of them that have more than 8 bits are brought to 8 by one scale.

A file of 16 bits may hold values of 10 or 12 bits, and one of 32 bits any: the header does not tell. The largest value
in a sample of the set does, rounded up to a power of two, so that 1,023 of 10 bits and 4,095 of 12 bits are white.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np

from simdino.data.decode import largest_value
from simdino.data.deep_pixels import bits_for
from simdino.text import readable

LOOKED_AT = 256  # pictures of a set, evenly spaced
UNKNOWN = 16  # bits, where none of those is deep but another is


class Depth:
    """The bits of the values of a set's deep pictures, looked up when the first of them is read, or given.

    Called, it gives them. A set has one, whatever part of it is read."""

    def __init__(self, get: Callable[[str], bytes], names: Sequence[str], *, bits: int | None = None) -> None:
        """get: the bytes of a file by its name. names: of the whole set. bits: what an encoder was trained with."""
        self.get, self.bits = get, bits
        spaced = np.linspace(0, len(names) - 1, min(len(names), LOOKED_AT)).round().astype(np.int64)
        self.sample = [names[int(i)] for i in spaced]
        self.told = False

    def __call__(self) -> int:
        """The bits, 8 to 31."""
        if self.bits is None:
            found = [value for value in map(self._largest, self.sample) if value is not None]
            self.bits = bits_for(max(found)) if found else UNKNOWN
        return self.bits

    def tell(self, name: str) -> None:
        """Say on standard error that a picture is clipped: of the first one alone."""
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
        except Exception:  # a broken image, a vanished file, a damaged member: each archive has its own
            return None
