"""Files that Pillow refuses for what is no pixel: too much metadata, an end marker that is not there."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from PIL import ImageFile, PngImagePlugin
from PIL.PngImagePlugin import PngInfo

from simdino.data.decode import decode, sides
from simdino.data.opening import BrokenImage

LARGE = 2_000_000  # bytes; Pillow allows 1,048,576
PICTURE = Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((80, 64))


def encoded(kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, kind, **options)
    return file.getvalue()


def with_text(add: Callable[[PngInfo], object], **options: Any) -> bytes:
    text = PngInfo()
    add(text)
    return encoded(pnginfo=text, **options)


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def with_chunk(added: bytes, *, last: bool = False) -> bytes:
    data = encoded()
    at = len(data) - 12 if last else 33  # before the end, or after the header
    return data[:at] + added + data[at:]


METADATA = {
    "packed XMP": with_text(lambda text: text.add_itxt("XML:com.adobe.xmp", "x" * LARGE, zip=True)),
    "packed text": with_text(lambda text: text.add_text("Comment", "x" * LARGE, zip=True)),
    "plain text of 70 MB": with_text(lambda text: text.add_text("Comment", "x" * 70_000_000)),
    "many texts": with_text(lambda text: [text.add_text(str(i), "x" * LARGE, zip=True) for i in range(3)]),
    "profile": encoded(icc_profile=bytes(LARGE)),
    "text after the pixels": with_chunk(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(LARGE))), last=True),
    "wrong checksum": with_chunk(chunk(b"tEXt", b"a\0b", checksum=0)),
    "no text": with_chunk(chunk(b"zTXt", b"a")),
}


@pytest.mark.slow
@pytest.mark.parametrize("data", METADATA.values(), ids=METADATA)
def test_metadata_does_not_break_a_png(data: bytes) -> None:
    assert torch.equal(decode(data, "x").pixels, decode(encoded(), "x").pixels)
    assert sides(data, "x") == (64, 80)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_a_large_profile_does_not_break_other_formats(kind: str) -> None:
    assert torch.equal(decode(encoded(kind, icc_profile=bytes(LARGE)), "x").pixels, decode(encoded(kind), "x").pixels)


def test_a_picture_is_turned_though_its_profile_is_too_large() -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    by_exif = encoded(icc_profile=bytes(LARGE), exif=exif)
    xmp = '<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"></x:xmpmeta>'
    by_xmp = with_text(lambda text: text.add_itxt("XML:com.adobe.xmp", xmp), icc_profile=bytes(LARGE))
    for data in (by_exif, by_xmp):
        assert torch.equal(decode(data, "x").pixels, decode(encoded(), "x").pixels.rot90(-1, (1, 2)))
        assert sides(data, "x") == (80, 64)


def test_a_png_without_its_pixels_stays_broken() -> None:
    packed = with_text(lambda text: text.add_text("Comment", "x" * LARGE, zip=True))
    with pytest.raises(BrokenImage):
        decode(packed[:-2000], "x")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_needs_all_of_its_pixels_and_no_end_marker(progressive: bool, mode: str) -> None:
    file = io.BytesIO()
    PICTURE.convert(mode).save(file, "JPEG", progressive=progressive, quality=90)
    data, pixels = file.getvalue(), decode(file.getvalue(), "x").pixels
    for ending in (b"", b"\xff", bytes(500)):  # cut off, half of it cut off, a download's block filled up
        assert torch.equal(decode(data[:-2] + ending, "x").pixels, pixels)
        assert decode(data[:-2] + ending, "x", at_least=8).pixels.shape[0] == pixels.shape[0]
    for missing in (*range(3, 20), 100, len(data) // 2):
        with pytest.raises(BrokenImage, match="truncated"):
            decode(data[:-missing], "x")
        with pytest.raises(BrokenImage, match="truncated"):
            decode(data[:-missing], "x", at_least=8)


def test_a_progressive_jpeg_that_ends_between_two_scans_is_broken() -> None:
    data = encoded("JPEG", progressive=True)
    ends = [i for i in range(len(data)) if data[i : i + 2] == b"\xff\xc4" and i > data.index(b"\xff\xda")]
    assert len(ends) > 4
    for end in ends:
        with pytest.raises(BrokenImage, match="truncated"):
            decode(data[:end], "x")


def test_threads_read_them_and_pillows_switches_stay() -> None:
    switches = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, ImageFile.LOAD_TRUNCATED_IMAGES
    files = [METADATA["profile"], encoded("JPEG")[:-2], encoded("JPEG")[:-90]]

    def readable(data: bytes) -> bool:
        try:
            return decode(data, "x").pixels.shape == (3, 64, 80)
        except BrokenImage:
            return False

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(readable, 10 * files)) == 10 * [True, True, False]
    assert switches == (
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, ImageFile.LOAD_TRUNCATED_IMAGES,
    )  # fmt: skip
