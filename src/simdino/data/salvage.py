"""Copies of files that Pillow refuses although all of their pixels are there, in a form that it reads.

A PNG may have more metadata than Pillow's limits allow, or damaged metadata; a JPEG may lack its end marker. Pillow's
own switches for these are global, and this package changes no global state."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

LARGEST_METADATA = 1_000_000
"""The most bytes of a PNG's text or colour profile, unpacked, that are kept: Pillow refuses 1,048,576."""

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_FRAMES, _SCAN = (0xC0, 0xC1, 0xC2), 0xDA
_NO_SEGMENT = (0x00, 0x01, *range(0xD0, 0xDA), 0xFF)  # markers without a length, and bytes that are none
_PACKED = (b"zTXt", b"iCCP")
_METADATA = (b"tEXt", b"iTXt", *_PACKED)


def mended(data: bytes) -> list[bytes]:
    """Return readable copies of a refused file, if any. All pixels are there if every copy gives the same ones."""
    if data.startswith(_PNG):
        lean = _PNG + b"".join(_needed_chunks(data))
        return [lean] if len(lean) < len(data) else []
    if data.startswith(_JPEG) and _has_every_scan(data):
        # A decoder that still needs data reads the filling as such, and each filling gives other pixels.
        whole = data.rstrip(b"\xff")
        return [whole + filling * 64 + _JPEG_END for filling in (b"\x00", b"\x55", b"\xaa")]
    return []


def _has_every_scan(data: bytes) -> bool:
    """Return whether a JPEG has begun the scans that give all coefficients of all components to their last bit. Where a
    progressive JPEG ends between two scans, no decoder notices that the rest is missing."""
    missing: set[tuple[int, int]] = set()
    at = len(_JPEG)
    while 0 <= (at := data.find(b"\xff", at)) <= len(data) - 4:
        marker = data[at + 1]
        if marker in _NO_SEGMENT:
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker in _FRAMES:  # precision height width count (component sampling table) ...
            missing |= {(component, k) for component in body[6::3] for k in range(64)}
        elif marker == _SCAN and len(body) >= 4:  # count (component tables) ... first last bits
            first, last, bits = body[-3:]
            if bits % 16 == 0:
                missing -= {(component, k) for component in body[1:-3:2] for k in range(first, last + 1)}
        at += 2 + length
    return not missing


def _needed_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the chunks of a PNG without large or damaged metadata and without what follows its end."""
    at, kind = len(_PNG), b""
    while at + 12 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        at += len(chunk)
        if kind not in _METADATA or _is_small_and_whole(kind, chunk):
            yield chunk
    if kind != b"IEND":
        yield data[at:]


def _is_small_and_whole(kind: bytes, chunk: bytes) -> bool:
    """Return whether Pillow reads this metadata chunk, which may hold the EXIF orientation."""
    body, (checksum,) = chunk[8:-4], struct.unpack(">I", chunk[-4:])
    if checksum != zlib.crc32(kind + body):
        return False
    try:
        return len(_unpacked(kind, body)) <= LARGEST_METADATA
    except (IndexError, ValueError, zlib.error):
        return False


def _unpacked(kind: bytes, body: bytes) -> bytes:
    """Return a chunk's text or profile, unpacked to at most one byte more than is kept."""
    packed = b""
    if kind in _PACKED:  # keyword 0 method data
        packed = body.split(b"\0", 1)[1][1:]
    elif kind == b"iTXt":  # keyword 0 flag method language 0 keyword 0 text
        flag, _, *rest = body.split(b"\0", 1)[1]
        packed = bytes(rest).split(b"\0", 2)[2] if flag else b""
    return zlib.decompressobj().decompress(packed, LARGEST_METADATA + 1) if packed else body
