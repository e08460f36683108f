"""Decode one file's bytes to uint8 [C, H, W], for every kind of image that people really have.

All images of a set that have more than 8 bits are scaled to 8 bits alike. A file of 16 bits may hold values of 10 or 12
bits, and one of 32 bits any; the header does not tell. So the range is the largest value in a sample of the set,
rounded up to a power of two: 1,023 in 10 bits and 4,095 in 12 bits are white."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from simdino.data.opening import breaking, loaded, opened, raw_mode
from simdino.text import readable

Bits = Callable[[], int]
"""Returns the bit depth of a set of images, 8 to 31; it is called for an image of more than 8 bits."""

LOOKED_AT = 256  # images of a set, evenly spaced, that tell its bit depth
UNKNOWN = 16  # bits, where no image of the sample is deep but another one is

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = {6: 8, 8: 6}  # the orientation whose turn undoes that of another; all others undo their own
_LYING = frozenset({5, 6, 7, 8})  # orientations that swap height and width
_GREY = frozenset({"1", "L", "LA"})

_OTHER = "B" if sys.byteorder == "little" else "L"  # the byte order that is not this machine's
_LOW_BYTES = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (("L", "B"), ("B", "L"), ("N", _OTHER))
}
"""Raw modes that make Pillow take the other byte of each 16-bit colour, of which it otherwise gives the high byte
alone."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An image, and what had to be done to decode it."""

    pixels: Tensor  # uint8 [C, H, W]
    transparent: bool = False  # whether a part was transparent and now lies on white
    bits: int | None = None  # bit depth of its values, where they had more than 8 bits
    clipped: bool = False  # whether some of those were above the range


def decode(
    data: bytes,
    name: str,
    *,
    channels: int | None = None,
    at_least: int | None = None,
    bits: Bits | None = None,
    upright: bool = True,
) -> Decoded:
    """Return the first frame of an image file as uint8 [C, H, W], with what had to be done to decode it.

    Args:
        data: the whole file.
        name: what to call the image when it is broken.
        channels: 1 for grey, 3 for RGB, None for what the file has.
        at_least: the short side in pixels that is needed. A larger JPEG may come back at 1/2, 1/4 or 1/8 of its size,
            never below this, which saves most of the time of decoding a photo.
        bits: gives the bit depth of the image's set (see `Depth`), for deep images; None scales it by its own values.
        upright: whether it is turned as its EXIF data say; otherwise it stays as stored.

    Raises:
        BrokenImage: the file is empty, truncated, not an image, or has more than `MAX_PIXELS` pixels.

    Transparent pixels are composited on white: they hold arbitrary colours, often black, and drawings with transparency
    are made for white pages."""
    with breaking(data, name):
        image, raw = loaded(data, at_least)
        turn = _UPRIGHT.get(_orientation(image)) if upright else _turn_back(image, data)
        return _finished(image, raw, lambda: opened(data), turn=turn, channels=channels, bits=bits)


def from_pillow(image: Image.Image, name: str, *, channels: int | None = None, bits: Bits | None = None) -> Tensor:
    """Return a Pillow image as `decode` returns its file. Of 16-bit colours Pillow holds the high bytes. Raises
    BrokenImage where its pixels cannot be read."""
    with breaking(None, name):
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        return _finished(image, image.mode, lambda: image, turn=turn, channels=channels, bits=bits).pixels


def as_stored(data: bytes, name: str, *, formats: Sequence[str]) -> tuple[Image.Image, str]:
    """Return an image with its pixels as they lie in the file, in Pillow's mode, and its raw mode (how they lie there).

    formats: those that it may have. Raises BrokenImage."""
    with breaking(data, name):
        image, raw = loaded(data)
        if image.format not in formats:
            raise ValueError(f"the file is {image.format}, expected {' or '.join(formats)}")
        return image, raw


def sides(data: bytes, name: str, *, upright: bool = True) -> tuple[int, int]:
    """Return height and width in pixels of what `decode` gives at full size, from the header. Raises BrokenImage."""
    with breaking(data, name):
        image = opened(data)
        is_upright = image.format == "TIFF"  # Pillow gives the sides of a TIFF upright, all others' as stored
        swapped = upright != is_upright and _orientation(image) in _LYING
    return (image.width, image.height) if swapped else (image.height, image.width)


def orientation(data: bytes, name: str) -> int:
    """Return the EXIF orientation, 1 where the pixels are stored upright. Raises BrokenImage."""
    with breaking(data, name):
        return _orientation(opened(data))


def to_chw(pixels: np.ndarray) -> Tensor:
    """Return uint8 [H, W] or [H, W, C] as [C, H, W] in the same memory: interleaved colours resize twice as fast."""
    tensor = torch.from_numpy(pixels)
    return tensor.unsqueeze(0) if tensor.ndim == 2 else tensor.permute(2, 0, 1)


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

    def decode(
        self, data: bytes, name: str, *, channels: int | None = None, at_least: int | None = None, upright: bool = True
    ) -> Decoded:
        """Return what `decode` returns for an image of the set. A warning is printed for the first one that is
        clipped."""
        found = decode(data, name, channels=channels, at_least=at_least, bits=self, upright=upright)
        if found.clipped and not self.told:
            self.told = True
            print(
                f"warning: {readable(name)} has values above {2 ** self() - 1:,}, the white of this set or of the "
                f"encoder's training images; they are clipped, and so are those of any further image",
                file=sys.stderr,
            )
        return found

    def _largest(self, name: str) -> int | None:
        with suppress(Exception):  # a broken image, a vanished file, a damaged member: each archive has its own error
            return largest_value(self.get(name), name)
        return None


def largest_value(data: bytes, name: str) -> int | None:
    """Return the largest value of an image of more than 8 bits, or None for any other. Raises BrokenImage."""
    with breaking(data, name):
        image = opened(data)
        if not _is_deep(image.mode, raw_mode(image)):
            return None
        image, raw = loaded(data)
        return _largest_colour(_deep_values(image, raw, lambda: opened(data)))


def bits_for(largest: int) -> int:
    """Return the bits that the largest value needs, 8 or more."""
    return max(8, largest.bit_length())


def _finished(
    image: Image.Image,
    raw: str,
    again: Callable[[], Any],
    *,
    turn: Image.Transpose | None,
    channels: int | None,
    bits: Bits | None,
) -> Decoded:
    """Return a loaded image in 8 bits, turned, on white, and with so many channels. again: opens it once more."""
    depth, clipped = None, False
    if _is_deep(image.mode, raw):
        image, depth, clipped = _shallow(image, raw, again, bits)
    image = image if turn is None else image.transpose(turn)
    image, transparent = _plain(image)
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    return Decoded(pixels=to_chw(np.array(image)), transparent=transparent, bits=depth, clipped=clipped)


def _turn_back(image: Image.Image, data: bytes) -> Image.Transpose | None:
    """Return the turn that undoes Pillow's own turn of an image, which it gives TIFF alone."""
    if image.format != "TIFF":
        return None
    found = _orientation(opened(data))
    return _UPRIGHT.get(_BACK.get(found, found))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 is upright."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the pixels are fine even where the metadata is damaged
        return 1
    return orientation if isinstance(orientation, int) else 1


def _is_deep(mode: str, raw: str) -> bool:
    """Return whether pixels of this mode and raw mode have values of more than 8 bits."""
    return mode.startswith("I") or raw in _LOW_BYTES


def _deep_values(image: Image.Image, raw: str, again: Callable[[], Any]) -> np.ndarray:
    """Return the integers [H, W] or [H, W, C] of a loaded deep image. Raises ValueError for values below 0."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.dtype.kind == "i" and values.min() < 0:
            raise ValueError(
                f"pixels from {values.min()} to {values.max()} have no known range: save them without a sign"
            )
        return values
    low, mode = again(), _LOW_BYTES[raw]
    low.tile = [
        tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode) for tile in low.tile
    ]
    low.load()
    return np.asarray(image).astype(np.uint16) << 8 | np.asarray(low)


def _largest_colour(values: np.ndarray) -> int:
    """Return the largest value of the colours. Opacity is left out: it may use all 16 bits where colours use 12."""
    return int((values[..., :3] if values.ndim == 3 else values).max())


def _shallow(
    image: Image.Image, raw: str, again: Callable[[], Any], bits: Bits | None
) -> tuple[Image.Image, int, bool]:
    """Return the highest 8 bits of a deep image, the bit depth of its set, and whether it has values above that, which
    become 255."""
    if bits is not None and not image.mode.startswith("I") and bits() >= 16:
        return image, bits(), False  # Pillow gives the high bytes of 16 bits
    values = _deep_values(image, raw, again)
    largest = _largest_colour(values)
    depth = bits_for(largest) if bits is None else bits()
    return Image.fromarray(np.minimum(values >> (depth - 8), 255).astype(np.uint8)), depth, largest >> depth > 0


def _plain(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return an image of any mode as "L" or "RGB", and whether a part was transparent. Raises ValueError where pixel
    values have no known range."""
    if image.mode == "F":
        raise ValueError("floating-point pixels (mode F) have no known range; save as 8 or 16 bits")
    kind, transparent = "L" if image.mode in _GREY else "RGB", False
    if image.has_transparency_data:
        image = image.convert("RGBA")
        transparent = image.getchannel("A").getextrema()[0] != 255
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    return image.convert(kind), transparent
