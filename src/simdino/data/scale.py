"""One scale for the images of a set that have more than 8 bits: which values become 0 and 1.

A sample of the set tells them, see `extents`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from simdino.data.decode import Decoded, decode, deep_values
from simdino.data.extents import Extent, extent, values_of
from simdino.data.opening import breaking
from simdino.settings import Values
from simdino.text import readable

LOOKED_AT = 256  # images of a set, evenly spaced, that tell its scale
UNKNOWN: Values = (0.0, 65535.0)
"""Where no image of the sample is deep but another one is."""


class Scale:
    """The values of a set's deep images that become 0 and 1, measured when the first of them is read, or given.

    A call returns them. All parts of a set share one."""

    def __init__(self, get: Callable[[str], bytes], names: Sequence[str], *, values: Values | None = None) -> None:
        """get: returns a file's bytes by its name. names: those of the whole set. values: of an encoder's training."""
        self.get, self.values = get, values
        spaced = np.linspace(0, len(names) - 1, min(len(names), LOOKED_AT)).round().astype(np.int64)
        self.sample = [names[int(i)] for i in spaced]
        self.told = False

    def __call__(self) -> Values:
        """Return the values that become 0 and 1."""
        if self.values is None:
            found = [one for one in map(self._extent, self.sample) if one is not None]
            self.values = values_of(found) if found else UNKNOWN
        return self.values

    def decode(
        self, data: bytes, name: str, *, channels: int | None = None, at_least: int | None = None, upright: bool = True
    ) -> Decoded:
        """Return what `decode` returns for an image of the set. A warning is printed for the first one that is
        clipped."""
        found = decode(data, name, channels=channels, at_least=at_least, scale=self, upright=upright)
        if found.clipped and not self.told:
            self.told = True
            low, high = self()
            print(
                f"warning: {readable(name)} has values outside of {low:,.6g} to {high:,.6g}, the black and white of "
                f"this set or of the encoder's training images; they are clipped, and those of further images too",
                file=sys.stderr,
            )
        return found

    def _extent(self, name: str) -> Extent | None:
        with suppress(Exception):  # a broken image, a vanished file, a damaged member: each archive has its own error
            return extent_of(self.get(name), name)
        return None


def extent_of(data: bytes, name: str) -> Extent | None:
    """Return the extent of an image of more than 8 bits; None for any other. Raises BrokenImage."""
    with breaking(data, name):
        stored = deep_values(data)
        return None if stored is None else extent(stored)
