"""Pictures of more than 8 bits in formats of which Pillow gives 8: PNG, JPEG 2000, AVIF, HEIC, PPM; and JPEG XL, which
it does not read.

How many bits a picture has, and how many pixels, is read in its header, before anything is decoded. Values of 9 to 15
bits are brought to the range of 16, as Pillow has those of grey pictures, so that pictures of different formats go
together and opacity is what it says. Orientations are those that Pillow finds."""

import io
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from simdino.data.opening import opened
from simdino.data.stored import Stored, check_sides, with_opacity
from simdino.extras import optional

ORIENTATION = 274  # EXIF's tag
JXL_BITS = (9, 13, 18, 30)  # of a side in JPEG XL, by its first two bits
JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height, by three bits
JXL_DEPTHS = (8, 10, 12)  # bits of a sample, by two bits; else one more than the six bits that follow
PPM = re.compile(rb"P6(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s")
FULL = 65_535


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
        return read_heic if heic_bits(data) > 8 else read_avif if avif_bits(data) > 8 else None
    return None


def read_png(data: bytes) -> Stored:
    """A PNG of 16 bits."""
    import imagecodecs  # noqa: PLC0415

    check_sides(png_sides(data))
    return with_opacity(imagecodecs.png_decode(data), orientation=turned_by_exif(data))


def read_jpegxl(data: bytes) -> Stored:
    """The first frame of a picture in JPEG XL, of any depth."""
    import imagecodecs  # noqa: PLC0415

    header = jpegxl_header(data)
    check_sides((header.height, header.width))
    return with_opacity(to_16_bits(imagecodecs.jpegxl_decode(data, index=0), header.bits))


def read_jpeg2000(data: bytes) -> Stored:
    """A JPEG 2000 of more than 8 bits."""
    import imagecodecs  # noqa: PLC0415

    opened(data)  # refuses too many pixels
    return with_opacity(to_16_bits(imagecodecs.jpeg2k_decode(data), deepest_component(data)))


def read_avif(data: bytes) -> Stored:
    """An AVIF of 10 or 12 bits, the first frame."""
    import imagecodecs  # noqa: PLC0415

    opened(data)
    values = to_16_bits(imagecodecs.avif_decode(data, index=0), avif_bits(data))
    return with_opacity(values, orientation=turned_by_exif(data))


def read_heic(data: bytes) -> Stored:
    """A HEIC of 10 or 12 bits, which come as the high ones of 16; turned as it says."""
    opened(data)
    heif: Any = optional("pillow_heif")
    found = heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    bits = int(found.info["bit_depth"])
    return with_opacity(to_16_bits(np.asarray(found) >> (16 - bits), bits))


def read_ppm(data: bytes) -> Stored:
    """Colours of 9 to 16 bits in a binary PPM."""
    header = PPM.match(data)
    assert header is not None
    width, height = int(header[1]), int(header[2])
    check_sides((height, width))
    values = np.frombuffer(data, ">u2", offset=header.end(), count=height * width * 3)
    return Stored(values=in_full_range(values.astype(np.uint16), int(header[3])).reshape(height, width, 3))


def to_16_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Return uint16 values of so many bits in the range of 16; others as they are."""
    return in_full_range(values, 2**bits - 1) if values.dtype == np.uint16 else values


def in_full_range(values: np.ndarray, highest: int) -> np.ndarray:
    """Return uint16 values in [0, highest] in [0, 65535], to the nearest."""
    if highest >= FULL:
        return values
    return ((values.astype(np.uint32) * FULL + highest // 2) // highest).clip(max=FULL).astype(np.uint16)


def png_sides(data: bytes) -> tuple[int, int]:
    """Return height and width in the header of a PNG."""
    width, height = struct.unpack(">II", data[16:24])
    return height, width


@dataclass(frozen=True, kw_only=True)
class JpegXL:
    """What the header of a JPEG XL says of the picture as it is decoded, which is upright."""

    height: int
    width: int
    bits: int


def jpegxl_header(data: bytes) -> JpegXL:
    """Return what is in the header of a JPEG XL (ISO/IEC 18181-1, SizeHeader and ImageMetadata: bits from the lowest
    on)."""
    start = 2 if data[:2] == b"\xff\x0a" else codestream(data)
    if len(data) < start + 16:
        raise ValueError("the file ends before the size of the picture")
    bits, at = int.from_bytes(data[start : start + 16], "little"), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return bits >> (at - count) & ((1 << count) - 1)

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take(JXL_BITS[take(2)]) + 1

    height, ratio = side(), take(3)
    wide, high = JXL_RATIOS[ratio - 1]
    width = height * wide // high if ratio else side()
    if take(1):  # everything else is as usual
        return JpegXL(height=height, width=width, bits=8)
    turned, depth = False, 16
    more = take(1)
    if more:
        turned = take(3) >= 4  # orientations 5 to 8
    if not more or not take(3):  # no other size, preview or animation, which stand before the depth
        floating, kind = take(1), take(2)
        depth = 16 if floating else JXL_DEPTHS[kind] if kind < 3 else take(6) + 1
    height, width = (width, height) if turned else (height, width)
    return JpegXL(height=height, width=width, bits=depth)


def codestream(data: bytes) -> int:
    """Return where the codestream of a JPEG XL begins in its container, after its two bytes. Raises ValueError where
    there is none."""
    at = 0
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        head = 16 if size == 1 else 8
        if kind in (b"jxlc", b"jxlp"):
            return at + head + (4 if kind == b"jxlp" else 0) + 2
        at += int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else max(size, 8)
        if size == 0:
            break
    raise ValueError("the container has no picture")


def deepest_component(data: bytes) -> int:
    """Return the bits of the deepest component of a JPEG 2000, by its SIZ segment, which begins the codestream."""
    at = data.find(b"\xff\x4f\xff\x51") + 2
    count = int.from_bytes(data[at + 38 : at + 40], "big")
    return max(((depth & 127) + 1 for depth in data[at + 40 : at + 40 + 3 * count : 3]), default=0)


def boxes(data: bytes, kind: bytes, length: int) -> Iterator[bytes]:
    """Yield the first bytes of every box of a kind: of pictures, thumbnails and opacity."""
    at = data.find(kind)
    while 0 < at < len(data) - 4 - length:
        yield data[at + 4 : at + 4 + length]
        at = data.find(kind, at + 4)


def heic_bits(data: bytes) -> int:
    """Return the bits of a HEIC by the configuration of its decoder (ISO/IEC 14496-15, hvcC); 0 for what is none."""
    return max((8 + (box[17] & 7) for box in boxes(data, b"hvcC", 18)), default=0)


def avif_bits(data: bytes) -> int:
    """Return the bits of an AVIF by the configuration of its decoder (AV1-ISOBMFF, av1C); 0 for what is none."""
    return max((8 + 2 * (box[2] >> 6 & 1) + 2 * (box[2] >> 5 & 1) for box in boxes(data, b"av1C", 3)), default=0)


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
        header = jpegxl_header(data)
        return header.height, header.width, 1
    if reader is read_png:
        return *png_sides(data), turned_by_exif(data)
    image = opened(data)
    return image.height, image.width, turned_by_exif(data) if reader is read_avif else 1
