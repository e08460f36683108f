"""Pictures of more than 8 bits in formats of which Pillow gives 8: PNG, JPEG 2000, AVIF, HEIC, PPM; and JPEG XL, which
it does not read.

How many bits a picture has, and how many pixels, is read in its header, before anything is decoded. Orientations are
those that Pillow finds."""

import io
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from simdino.data.opening import opened
from simdino.data.stored import Stored, check_sides, with_opacity
from simdino.extras import optional

ORIENTATION = 274  # EXIF's tag
JXL_BITS = (9, 13, 18, 30)  # of a side in JPEG XL, by its first two bits
JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height, by three bits
PPM = re.compile(rb"P6(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)\s")


def codec_of(data: bytes) -> Callable[[bytes], Stored] | None:
    """Return what reads a file of these; None for any other, also for those of 8 bits that Pillow reads in full."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return read_png if data[24:25] == b"\x10" else None
    if data[:2] == b"\xff\x0a" or data[4:12] == b"JXL \r\n\x87\n":
        return read_jpegxl
    if data[:2] == b"P6" and (header := PPM.match(data)) and int(header[3]) > 255:
        return read_ppm
    if data[:4] == b"\xff\x4f\xff\x51" or data[4:12] == b"jP  \r\n\x87\n":
        return read_jpeg2000 if deepest_component(data) > 8 else None
    if data[4:8] == b"ftyp":
        return read_heic if heic_bits(data) > 8 else read_avif if is_deep_avif(data) else None
    return None


def read_png(data: bytes) -> Stored:
    """A PNG of 16 bits."""
    import imagecodecs  # noqa: PLC0415

    check_sides(png_sides(data))
    return with_opacity(imagecodecs.png_decode(data), orientation=turned_by_exif(data))


def read_jpegxl(data: bytes) -> Stored:
    """The first frame of a picture in JPEG XL, of any depth."""
    import imagecodecs  # noqa: PLC0415

    check_sides(jpegxl_sides(data))
    return with_opacity(imagecodecs.jpegxl_decode(data, index=0))


def read_jpeg2000(data: bytes) -> Stored:
    """A JPEG 2000 of more than 8 bits."""
    import imagecodecs  # noqa: PLC0415

    opened(data)  # refuses too many pixels
    return with_opacity(imagecodecs.jpeg2k_decode(data))


def read_avif(data: bytes) -> Stored:
    """An AVIF of 10 or 12 bits, the first frame."""
    import imagecodecs  # noqa: PLC0415

    opened(data)
    return with_opacity(imagecodecs.avif_decode(data, index=0), orientation=turned_by_exif(data))


def read_heic(data: bytes) -> Stored:
    """A HEIC of 10 or 12 bits, which come as the high ones of 16; turned as it says."""
    opened(data)
    heif: Any = optional("pillow_heif")
    return with_opacity(np.asarray(heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)))


def read_ppm(data: bytes) -> Stored:
    """Colours of 9 to 16 bits in a binary PPM."""
    header = PPM.match(data)
    assert header is not None
    width, height = int(header[1]), int(header[2])
    check_sides((height, width))
    values = np.frombuffer(data, ">u2", offset=header.end(), count=height * width * 3)
    return Stored(values=values.astype(np.uint16).reshape(height, width, 3))


def png_sides(data: bytes) -> tuple[int, int]:
    """Return height and width in the header of a PNG."""
    width, height = struct.unpack(">II", data[16:24])
    return height, width


def jpegxl_sides(data: bytes) -> tuple[int, int]:
    """Return height and width in the header of a JPEG XL (ISO/IEC 18181-1, SizeHeader: bits from the lowest on)."""
    start = 2 if data[:2] == b"\xff\x0a" else data.find(b"\xff\x0a", 12) + 2
    if start < 2 or len(data) < start + 10:
        raise ValueError("the file ends before the size of the picture")
    bits, at = int.from_bytes(data[start : start + 10], "little"), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return bits >> (at - count) & ((1 << count) - 1)

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take(JXL_BITS[take(2)]) + 1

    height, ratio = side(), take(3)
    if not ratio:
        return height, side()
    wide, high = JXL_RATIOS[ratio - 1]
    return height, height * wide // high


def deepest_component(data: bytes) -> int:
    """Return the bits of the deepest component of a JPEG 2000, by its SIZ segment."""
    at = data.find(b"\xff\x51")
    count = int.from_bytes(data[at + 38 : at + 40], "big")
    return max(((depth & 127) + 1 for depth in data[at + 40 : at + 40 + 3 * count : 3]), default=0)


def heic_bits(data: bytes) -> int:
    """Return the bits of a HEIC by the configuration of its decoder (ISO/IEC 14496-15, hvcC); 0 for what is none."""
    at = data.find(b"hvcC")
    return 8 + (data[at + 21] & 7) if 0 < at < len(data) - 21 else 0


def is_deep_avif(data: bytes) -> bool:
    """Return whether an AVIF has more than 8 bits, by the configuration of its decoder (AV1-ISOBMFF, av1C)."""
    at = data.find(b"av1C")
    return 0 < at < len(data) - 6 and bool(data[at + 6] & 0x40)


def turned_by_exif(data: bytes) -> int:
    """Return the EXIF orientation of a file that Pillow opens."""
    with suppress(Exception):  # the pixels are fine even where the metadata is damaged
        found = opened(data).getexif().get(ORIENTATION)
        return found if isinstance(found, int) else 1
    return 1


def sides_of(data: bytes) -> tuple[int, int, int]:
    """Return height and width as they are stored, and the orientation, of a file of these by its header."""
    reader = codec_of(data)
    if reader is read_jpegxl:
        return *jpegxl_sides(data), 1
    if reader is read_png:
        return *png_sides(data), turned_by_exif(data)
    image = opened(data)
    return image.height, image.width, turned_by_exif(data) if reader is read_avif else 1
