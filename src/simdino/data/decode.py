"""Decode one file's bytes to uint8 [C, H, W], for every kind of image that people really have."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from simdino.data.deep_pixels import Bits, bits_for, deep_values, is_deep, largest_colour, raw_mode, to_eight_bits
from simdino.data.salvage import mended

MAX_PIXELS = 178_956_970
"""The largest size that is decoded, since a file of a few bytes can claim any. It is Pillow's own limit for an
error."""

NOT_OPENED = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
"""Formats that Pillow registers but that are not opened: EPS is a program that Ghostscript would run, the others are
recognised but have no decoder."""

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = {
    Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
    Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
}  # the others are their own inverse
_LYING = frozenset({5, 6, 7, 8})  # orientations that swap height and width
_GREY = frozenset({"1", "L", "LA"})


class BrokenImage(ValueError):
    """An image that cannot be decoded: `name` says which one, `reason` says why in one line."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class _QuietPillow:
    """Silences Pillow's warnings while any thread is decoding.

    `warnings.catch_warnings` alone restores the wrong filters when threads overlap, so the first thread in installs
    the filter and the last one out removes it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)


_quiet_pillow = _QuietPillow()


@cache
def formats() -> tuple[str, ...]:
    """Return the names of the formats that may be opened."""
    Image.init()
    return tuple(name for name in Image.ID if name not in NOT_OPENED)


@cache
def extensions() -> frozenset[str]:
    """Return the lower-case file extensions, with their dot, of the formats that may be opened."""
    # Multi-picture files (.mpo) are opened by the JPEG reader and have no opener of their own.
    opened = {*formats(), "MPO"}
    return frozenset(ext.lower() for ext, name in Image.registered_extensions().items() if name in opened)


def is_image_name(name: str) -> bool:
    """Return whether the name ends like an image file; the content is not looked at."""
    stem, dot, extension = name.rpartition(".")
    return bool(stem) and dot + extension.lower() in extensions()


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
) -> Tensor:
    """Return the first frame of an image file as uint8 [C, H, W].

    Args:
        data: the whole file.
        name: what to call the image when it is broken.
        channels: 1 for grey, 3 for RGB, None for what the file has.
        at_least: the short side in pixels that is needed. A larger JPEG may come back at 1/2, 1/4 or 1/8 of its size,
            never below this, which saves most of the time of decoding a photo.
        bits: gives the bit depth of the image's set (see `depth`), for deep images; None scales it by its own values.
        upright: whether it is turned as its EXIF data say; otherwise it stays as stored.

    Raises:
        BrokenImage: the file is empty, truncated, not an image, or has more than `MAX_PIXELS` pixels.

    Transparent pixels are composited on white: they hold arbitrary colours, often black, and drawings with transparency
    are made for white pages."""
    return examine(data, name, channels=channels, at_least=at_least, bits=bits, upright=upright).pixels


def examine(
    data: bytes,
    name: str,
    *,
    channels: int | None = None,
    at_least: int | None = None,
    bits: Bits | None = None,
    upright: bool = True,
) -> Decoded:
    """Return what `decode` returns, with what had to be done to decode it."""
    with _breaking(data, name):
        image, raw = _loaded(data, at_least)
        turn = _UPRIGHT.get(_orientation(image)) if upright else _turn_back(image, data)
        return _finished(image, raw, lambda: _opened(data), turn=turn, channels=channels, bits=bits)


def from_pillow(image: Image.Image, name: str, *, channels: int | None = None, bits: Bits | None = None) -> Tensor:
    """Return a Pillow image as `decode` returns its file. Of 16-bit colours Pillow holds the high bytes. Raises
    BrokenImage where its pixels cannot be read."""
    with _breaking(None, name):
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        return _finished(image, image.mode, lambda: image, turn=turn, channels=channels, bits=bits).pixels


def _finished(
    image: Image.Image,
    raw: str,
    again: Callable[[], Image.Image],
    *,
    turn: Image.Transpose | None,
    channels: int | None,
    bits: Bits | None,
) -> Decoded:
    """Return a loaded image in 8 bits, turned, on white, and with so many channels."""
    depth, clipped = None, False
    if is_deep(image.mode, raw):
        image, depth, clipped = _shallow(image, raw, again, bits)
    image = image if turn is None else image.transpose(turn)
    image, transparent = _plain(image)
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    return Decoded(pixels=to_chw(np.array(image)), transparent=transparent, bits=depth, clipped=clipped)


def as_stored(data: bytes, name: str, *, formats: Sequence[str]) -> tuple[Image.Image, str]:
    """Return an image with its pixels as they lie in the file, in Pillow's mode, and its raw mode (how they lie there).

    formats: those that it may have. Raises BrokenImage."""
    with _breaking(data, name):
        image, raw = _loaded(data, None)
        if image.format not in formats:
            raise ValueError(f"the file is {image.format}, expected {' or '.join(formats)}")
        return image, raw


def largest_value(data: bytes, name: str) -> int | None:
    """Return the largest value of an image of more than 8 bits, or None for any other. Raises BrokenImage."""
    with _breaking(data, name):
        image = _opened(data)
        if not is_deep(image.mode, raw_mode(image)):
            return None
        image, raw = _loaded(data, None)
        return largest_colour(deep_values(image, raw, lambda: _opened(data)))


def upright_sides(data: bytes, name: str) -> tuple[int, int]:
    """Return height and width in pixels of what `decode` gives at full size, from the header. Raises BrokenImage."""
    with _breaking(data, name):
        image = _opened(data)
        lying = _orientation(image) in _LYING and image.format != "TIFF"  # Pillow gives a TIFF's sides upright
    return (image.width, image.height) if lying else (image.height, image.width)


def stored_sides(data: bytes, name: str) -> tuple[int, int]:
    """Return height and width in pixels of what `decode` gives with `upright=False`. Raises BrokenImage."""
    height, width = upright_sides(data, name)
    return (width, height) if orientation(data, name) in _LYING else (height, width)


def orientation(data: bytes, name: str) -> int:
    """Return the EXIF orientation, 1 where the pixels are stored upright. Raises BrokenImage."""
    with _breaking(data, name):
        return _orientation(_opened(data))


@contextmanager
def _breaking(data: bytes | None, name: str) -> Iterator[None]:
    """Raise BrokenImage for whatever is raised inside, and keep Pillow quiet: decoders raise almost every type of
    exception on damaged input, and one bad file must not end a run."""
    if data == b"":
        raise BrokenImage(name, "the file is empty (0 bytes)")
    with _quiet_pillow:
        try:
            yield
        except Exception as error:
            raise BrokenImage(name, reason(error)) from error


def to_chw(pixels: np.ndarray) -> Tensor:
    """Return uint8 [H, W] or [H, W, C] as [C, H, W] in the same memory: interleaved colours resize twice as fast."""
    tensor = torch.from_numpy(pixels)
    return tensor.unsqueeze(0) if tensor.ndim == 2 else tensor.permute(2, 0, 1)


def reason(error: Exception) -> str:
    """Return what went wrong, in one line and without Pillow's internals."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in any format that Pillow can open"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _loaded(data: bytes, at_least: int | None) -> tuple[Image.Image, str]:
    """Return a decoded file and its raw mode, also where Pillow refuses it for more than its pixels (see `salvage`)."""
    try:
        return _load(data, at_least)
    except Exception as refusal:
        try:
            first, *others = [_load(copy, None) for copy in mended(data)]
            if all(first[0].tobytes() == other[0].tobytes() for other in others):
                return first
        except Exception:  # the copies are no better
            pass
        raise refusal


def _load(data: bytes, at_least: int | None) -> tuple[Image.Image, str]:
    image = _open(data)
    raw = raw_mode(image)
    if at_least is not None:
        image.draft(None, (at_least, at_least))
    image.load()
    return image, raw


def _opened(data: bytes) -> ImageFile.ImageFile:
    """Return a file opened by its header, also where Pillow refuses it for its metadata."""
    try:
        return _open(data)
    except Exception as refusal:
        for copy in mended(data):
            with suppress(Exception):
                return _open(copy)
        raise refusal


def _open(data: bytes) -> ImageFile.ImageFile:
    """Read the header only. Raises ValueError for too many pixels."""
    try:
        image = Image.open(io.BytesIO(data), formats=formats())
    except Image.DecompressionBombError as error:
        size = _claimed_size(data)
        raise ValueError(_too_large(*size) if size else str(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(_too_large(image.width, image.height))
    return image


def _claimed_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height in the header of a file that `Image.open` refuses without telling them."""
    for name in formats():
        opener, accepts = Image.OPEN[name]
        try:
            if accepts is None or accepts(data[:16]) is True:
                return opener(io.BytesIO(data), "").size
        except Exception:  # not this format
            continue
    return None


def _too_large(width: int, height: int) -> str:
    return f"{width} x {height} pixels are more than the limit of {MAX_PIXELS:,} pixels"


def _turn_back(image: Image.Image, data: bytes) -> Image.Transpose | None:
    """Return the turn that undoes Pillow's own turn of an image, which it gives TIFF alone."""
    turn = _UPRIGHT.get(_orientation(_opened(data))) if image.format == "TIFF" else None
    return None if turn is None else _BACK.get(turn, turn)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 is upright."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # the pixels are fine even where the metadata is damaged
        return 1
    return orientation if isinstance(orientation, int) else 1


def _shallow(
    image: Image.Image, raw: str, again: Callable[[], Image.Image], bits: Bits | None
) -> tuple[Image.Image, int, bool]:
    """Return a deep image in 8 bits, the bit depth of its set, and whether it has values above that."""
    if bits is not None and not image.mode.startswith("I") and bits() >= 16:
        return image, bits(), False  # Pillow gives the high bytes of 16 bits
    values = deep_values(image, raw, again)
    largest = largest_colour(values)
    depth = bits_for(largest) if bits is None else bits()
    return Image.fromarray(to_eight_bits(values, depth)), depth, largest >> depth > 0


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
