"""Decode one file's bytes to [C, H, W]: uint8 where it has 8 bits, float32 in [0, 1] where it has more, for every kind
of image that people really have.

All images of a set that have more than 8 bits are scaled alike (`scale`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from simdino.data.extents import extent, values_of
from simdino.data.opening import breaking, loaded, opened
from simdino.data.readers import reader_of, sides_in
from simdino.data.stored import Stored
from simdino.settings import Values

ScaleOf = Callable[[], Values]
"""Returns the values of a set's deep images that become 0 and 1; it is called for an image of more than 8 bits."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNS: dict[Image.Transpose, Callable[[np.ndarray], np.ndarray]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: lambda x: x[:, ::-1],
    Image.Transpose.ROTATE_180: lambda x: x[::-1, ::-1],
    Image.Transpose.FLIP_TOP_BOTTOM: lambda x: x[::-1],
    Image.Transpose.TRANSPOSE: lambda x: x.swapaxes(0, 1),
    Image.Transpose.ROTATE_270: lambda x: np.rot90(x, 3),
    Image.Transpose.TRANSVERSE: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    Image.Transpose.ROTATE_90: np.rot90,
}
_BACK = {6: 8, 8: 6}  # the orientation whose turn undoes that of another; all others undo their own
_LYING = frozenset({5, 6, 7, 8})  # orientations that swap height and width
_GREY = frozenset({"1", "L", "LA"})
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as in Pillow
PLAIN = tuple(map(np.dtype, (np.uint8, bool)))  # of values that are no deep ones
CLIPPED = 0.01  # share of an image's values outside of its set's scale from which it counts as clipped


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An image, and what had to be done to decode it."""

    pixels: Tensor  # uint8, or float32 in [0, 1], [C, H, W]
    transparent: bool = False  # whether a part was transparent and now lies on white
    values: Values | None = None  # what became 0 and 1, where it has more than 8 bits
    clipped: bool = False  # whether a good part of it lay outside of those


def decode(
    data: bytes,
    name: str,
    *,
    channels: int | None = None,
    at_least: int | None = None,
    scale: ScaleOf | None = None,
    upright: bool = True,
) -> Decoded:
    """Return the first frame of an image file as [C, H, W], with what had to be done to decode it.

    Args:
        data: the whole file.
        name: what to call the image when it is broken.
        channels: how many the result has: of 3 colours 1 grey can be made, and of 1 three equal ones; None for what
            the file has.
        at_least: the short side in pixels that is needed. A larger JPEG may come back at 1/2, 1/4 or 1/8 of its size,
            never below this, which saves most of the time of decoding a photo.
        scale: gives the values of the image's set that become 0 and 1 (see `scale.Scale`), for deep images; None scales
            it by its own values.
        upright: whether it is turned as its EXIF data say; otherwise it stays as stored.

    Raises:
        BrokenImage: the file is empty, truncated, not an image, has more than `MAX_PIXELS` pixels, other channels than
            are wanted, or values that are not finite.

    Transparent pixels are composited on white: they hold arbitrary colours, often black, and drawings with transparency
    are made for white pages."""
    with breaking(data, name):
        reader = reader_of(data)
        if reader is not None:
            return _scaled(reader(data), scale, channels=channels, upright=upright)
        image, _ = loaded(data, at_least)
        turn = _UPRIGHT.get(_orientation(image)) if upright else _turn_back(image, data)
        return _finished(image, turn=turn, channels=channels, scale=scale)


def deep_pillow(image: Image.Image) -> Stored | None:
    """Return the values of a loaded image of Pillow's that has more than 8 bits; None for any other."""
    if not _is_deep(image.mode):
        return None
    return Stored(values=np.asarray(image)[..., None], orientation=_orientation(image))


def deep_values(data: bytes) -> Stored | None:
    """Return the values of a file that has more than 8 bits; None for any other. Only the headers of most others are
    read."""
    reader = reader_of(data)
    if reader is not None:
        stored = reader(data)
        return stored if stored.values.dtype not in PLAIN else None
    return deep_pillow(loaded(data)[0]) if _is_deep(opened(data).mode) else None


def _is_deep(mode: str) -> bool:
    """Return whether an image of this mode of Pillow's has more than 8 bits."""
    return mode.startswith("I") or mode == "F"


def from_pillow(image: Image.Image, name: str, *, channels: int | None = None, scale: ScaleOf | None = None) -> Decoded:
    """Return a Pillow image as `decode` returns its file. Of 16-bit colours Pillow holds the high bytes. Raises
    BrokenImage where its pixels cannot be read."""
    with breaking(None, name):
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        return _finished(image, turn=turn, channels=channels, scale=scale)


def from_array(values: np.ndarray, *, channels: int | None = None, scale: ScaleOf | None = None) -> Decoded:
    """Return values [H, W, C] as `decode` returns those of a file. Raises ValueError where they are no pixels."""
    return _scaled(Stored(values=values), scale, channels=channels, upright=False)


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
        known = sides_in(data)
        if known is not None:
            height, width, turned = known
            return (width, height) if upright and turned in _LYING else (height, width)
        image = opened(data)
        is_upright = image.format == "TIFF"  # Pillow gives the sides of a TIFF upright, all others' as stored
        swapped = upright != is_upright and _orientation(image) in _LYING
    return (image.width, image.height) if swapped else (image.height, image.width)


def orientation(data: bytes, name: str) -> int:
    """Return the EXIF orientation, 1 where the pixels are stored upright. Raises BrokenImage."""
    with breaking(data, name):
        known = sides_in(data)
        return _orientation(opened(data)) if known is None else known[2]


def to_chw(pixels: np.ndarray) -> Tensor:
    """Return [H, W] or [H, W, C] as [C, H, W] in the same memory: interleaved colours resize twice as fast."""
    tensor = torch.from_numpy(pixels)
    return tensor.unsqueeze(0) if tensor.ndim == 2 else tensor.permute(2, 0, 1)


def _scaled(stored: Stored, scale: ScaleOf | None, *, channels: int | None, upright: bool) -> Decoded:
    """Return values as they are stored, scaled, on white, turned, with so many channels."""
    values, alpha = stored.values, stored.alpha
    known, clipped = None, False
    if values.dtype == bool:
        values = values.astype(np.uint8) * np.uint8(255)
    if values.dtype != np.uint8:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError("it has values that are not finite (NaN or infinite): replace or mask them")
        known = values_of([extent(stored)]) if scale is None else scale()
        values, clipped = in_unit_range(values, known)
    transparent = alpha is not None and bool((alpha != opaque(alpha)).any())
    if alpha is not None and transparent:
        share = alpha[..., None].astype(np.float32) / opaque(alpha)
        white = 255 if values.dtype == np.uint8 else 1
        values = (values * share + white * (1 - share)).astype(values.dtype)
    turn = _UPRIGHT.get(stored.orientation) if upright else None
    values = values if turn is None else _TURNS[turn](values)
    values = with_channels(values, channels)
    pixels = to_chw(np.ascontiguousarray(values))
    return Decoded(pixels=pixels, transparent=transparent, values=known, clipped=clipped)


def in_unit_range(values: np.ndarray, known: Values) -> tuple[np.ndarray, bool]:
    """Return values as float32 in [0, 1], and whether more than CLIPPED of them were outside of the known ones."""
    low, high = known
    unit = (values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32) - low) / (high - low)
    outside = float(((unit < 0) | (unit > 1)).mean())
    return np.clip(unit, 0, 1).astype(np.float32), outside > CLIPPED


def opaque(alpha: np.ndarray) -> float:
    """Return the value of full opacity."""
    return float(np.iinfo(alpha.dtype).max) if alpha.dtype.kind in "ui" else 1.0


def with_channels(values: np.ndarray, channels: int | None) -> np.ndarray:
    """Return values [H, W, C] with so many channels. Raises ValueError where they cannot be made of its own."""
    own = values.shape[-1]
    if channels in (None, own):
        return values
    if channels == 1 and own == 3:
        grey = values @ _LUMA
        return (np.rint(grey).astype(np.uint8) if values.dtype == np.uint8 else grey.astype(np.float32))[..., None]
    if channels == 3 and own == 1:
        return values.repeat(3, axis=-1)
    raise ValueError(f"it has {own} channels, and {channels} are wanted (--channels)")


def _finished(
    image: Image.Image, *, turn: Image.Transpose | None, channels: int | None, scale: ScaleOf | None
) -> Decoded:
    """Return a loaded image of 8 bits, turned, on white, and with so many channels; one of more as `_scaled` does."""
    stored = deep_pillow(image)
    if stored is not None:
        return _scaled(stored, scale, channels=channels, upright=turn is not None)
    image = image if turn is None else image.transpose(turn)
    image, transparent = _plain(image)
    if channels in (1, 3):
        image = image.convert("L" if channels == 1 else "RGB")
    pixels = np.array(image)
    if channels is not None:
        pixels = with_channels(pixels[..., None] if pixels.ndim == 2 else pixels, channels)
    return Decoded(pixels=to_chw(pixels), transparent=transparent)


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


def _plain(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return an image of any mode of 8 bits as "L" or "RGB", and whether a part was transparent."""
    kind, transparent = "L" if image.mode in _GREY else "RGB", False
    if image.has_transparency_data:
        image = image.convert("RGBA")
        transparent = image.getchannel("A").getextrema()[0] != 255
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    return image.convert(kind), transparent
