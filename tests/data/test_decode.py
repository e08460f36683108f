"""Decoding one image, whatever its mode, size and damage, with real files made by Pillow."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simdino.data.decode import decode, sides
from simdino.data.opening import MAX_PIXELS, BrokenImage
from simdino.data.sources import open_dataset


def pixels(height: int = 6, width: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


ROTATIONS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x, 1),
}


@pytest.mark.parametrize("orientation", ROTATIONS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = pixels()
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(stored), kind, exif=exif, **options)
    upright = ROTATIONS[orientation](stored)
    assert np.array_equal(decode(data, "x").pixels.permute(1, 2, 0).numpy(), upright)


def test_exif_orientation_of_a_jpeg_and_damaged_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = Image.fromarray(pixels(16, 24))
    assert decode(encoded(plain, "JPEG", exif=exif), "x").pixels.shape == (3, 24, 16)
    assert decode(encoded(plain, "JPEG", exif=b"Exif\0\0XX*\0damaged"), "x").pixels.shape == (3, 16, 24)


def with_transparent_colour() -> bytes:
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0]]], dtype=np.uint8))
    return encoded(image, transparency=(255, 0, 0))


def palette(**options: object) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    return encoded(image, **options)


def rgba() -> Image.Image:
    return Image.fromarray(np.array([[[255, 0, 0, 0], [0, 255, 0, 255]]], dtype=np.uint8))


WHITE_GREEN = [[[255, 0]], [[255, 255]], [[255, 0]]]
RED_GREEN = [[[255, 0]], [[0, 255]], [[0, 0]]]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (palette(), RED_GREEN),
        (palette(transparency=0), WHITE_GREEN),
        (palette(transparency=b"\x00\xff"), WHITE_GREEN),
        (encoded(rgba()), WHITE_GREEN),
        (encoded(rgba(), "WEBP", lossless=True), WHITE_GREEN),
        (with_transparent_colour(), WHITE_GREEN),
        (encoded(Image.fromarray(np.array([[[9, 0], [9, 255]]], dtype=np.uint8))), [[[255, 9]]]),  # LA
        (encoded(Image.fromarray(np.array([[1, 200]], dtype=np.uint8))), [[[1, 200]]]),
        (encoded(Image.fromarray(np.array([[False, True]]))), [[[0, 255]]]),
        (encoded(Image.new("1", (1, 1))), [[[0]]]),
        (encoded(Image.new("CMYK", (1, 1), (0, 0, 0, 0)), "TIFF"), [[[255]], [[255]], [[255]]]),
        (encoded(Image.new("LAB", (1, 1), (255, 128, 128)), "TIFF"), [[[255]], [[255]], [[255]]]),
    ],
)
def test_modes(data: bytes, expected: list[list[list[int]]]) -> None:
    image = decode(data, "x").pixels
    assert image.dtype == torch.uint8
    assert (image.int() - torch.tensor(expected)).abs().max() <= 1  # LAB is converted through a colour profile
    assert image.shape == torch.tensor(expected).shape


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16))), [0, 256 / 65535, 1]),
        (encoded(Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16)), "TIFF"), [0, 256 / 65535, 1]),
        (encoded(Image.fromarray(np.array([[0, 256, 65535]], dtype=np.int32)), "TIFF"), [0, 256 / 65535, 1]),
        (encoded(Image.fromarray(np.array([[0, 7, 255]], dtype=np.int32)), "TIFF"), [0, 7 / 255, 1]),
        (encoded(Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16)), "PPM"), [0, 256 / 65535, 1]),
        (encoded(Image.fromarray(np.array([[0, 0.25, 1]], dtype=np.float32)), "TIFF"), [0, 0.25, 1]),
    ],
)
def test_modes_of_more_than_8_bits(data: bytes, expected: list[float]) -> None:
    torch.testing.assert_close(decode(data, "x").pixels, torch.tensor([[expected]]), atol=1e-7, rtol=0)


def big_endian_tiff() -> bytes:
    """Two 16-bit grey pixels, 256 and 65535, high byte first."""
    tags = [(256, 2), (257, 1), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 4)]
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    header = b"MM\0*" + struct.pack(">I", 12) + struct.pack(">HH", 256, 65535)
    return header + struct.pack(">H", len(tags)) + entries + b"\0\0\0\0"


def test_sixteen_bits_with_the_high_byte_first() -> None:
    torch.testing.assert_close(decode(big_endian_tiff(), "x").pixels, torch.tensor([[[256 / 65535, 1]]]))


def test_cmyk_jpeg_is_close_to_its_colours() -> None:
    image = Image.new("RGB", (16, 16), (200, 40, 90))
    found = decode(encoded(image.convert("CMYK"), "JPEG", quality=95), "x").pixels
    red, green, blue = found.float().mean(dim=(1, 2)).tolist()
    assert abs(red - 200) < 6 and abs(green - 40) < 6 and abs(blue - 90) < 6


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG", "ICO", "TGA"])
def test_formats(kind: str) -> None:
    image = decode(encoded(Image.fromarray(pixels(16, 24)), kind), "x", channels=3).pixels
    assert image.shape[0] == 3 and image.shape[1:] in {(16, 24), (11, 16)}  # an icon is made in fixed sizes


def test_the_first_frame_is_read() -> None:
    frames = [Image.new("L", (3, 2), value) for value in (10, 200)]
    for kind in ("GIF", "TIFF", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert abs(int(decode(data, "x", channels=1).pixels[0, 0, 0]) - 10) <= 2


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_on_request(channels: int) -> None:
    assert decode(encoded(Image.fromarray(pixels())), "x", channels=channels).pixels.shape == (channels, 6, 8)
    grey = decode(encoded(Image.fromarray(pixels(channels=1))), "x", channels=channels).pixels
    assert torch.equal(grey, torch.from_numpy(pixels(channels=1)).expand(channels, 6, 8))


def test_a_long_thin_image_is_fine() -> None:
    assert decode(encoded(Image.new("L", (20_000, 100))), "x").pixels.shape == (1, 100, 20_000)


def test_at_least_saves_work_on_a_photo() -> None:
    data = encoded(Image.fromarray(pixels(640, 960)), "JPEG")
    assert decode(data, "x", at_least=160).pixels.shape == (3, 160, 240)
    assert decode(data, "x", at_least=161).pixels.shape == (3, 320, 480)
    assert decode(data, "x", at_least=1000).pixels.shape == (3, 640, 960)


def claimed(width: int, height: int) -> bytes:
    """A small PNG that says it is huge."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    data = b"IDAT" + zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


LARGE_TEXT = b"This is no image at all, whatever its name says.\n" * 50


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (LARGE_TEXT, "not an image"),
        (encoded(Image.fromarray(pixels(64, 64)))[:2000], "truncated"),
        (encoded(Image.fromarray(pixels(64, 64)), "JPEG")[:1500], "truncated"),
        (claimed(50_000, 40_000), "50000 x 40000"),
        (claimed(MAX_PIXELS + 1, 1), f"limit of {MAX_PIXELS:,}"),
        (encoded(Image.new("RGB", (8, 8)), "EPS"), "not an image"),
    ],
)
def test_broken_images(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "bad.png").write_bytes(data)
    with pytest.raises(BrokenImage) as caught:
        open_dataset(tmp_path).read(0)
    assert caught.value.name == "bad.png" and words in caught.value.reason
    assert len(str(caught.value).splitlines()) == 1
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.name, again.reason) == (caught.value.name, caught.value.reason)


def test_broken_members_of_archives(tmp_path: Path) -> None:
    good = encoded(Image.fromarray(pixels()))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("good.png", good)
        archive.writestr("torn.png", good)
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[data.index(b"torn.png") + 40] ^= 0xFF
    (tmp_path / "x.zip").write_bytes(data)
    source = open_dataset(tmp_path / "x.zip")
    assert source.read(0).shape == (3, 6, 8)
    with pytest.raises(BrokenImage, match="CRC"):
        source.read(1)


def test_no_warnings_and_no_global_state() -> None:
    warnings_before, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BrokenImage):
            decode(claimed(12_000, 10_000), "x")  # above Pillow's limit for a warning
        decode(palette(transparency=b"\x00\xff"), "x")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: decode(palette(), "x").pixels, range(40)))
    assert list(warnings.filters) == warnings_before and limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [*range(1, 9), None])
def test_sides_from_the_header_are_those_of_the_upright_image(kind: str, orientation: int | None) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    data = encoded(Image.fromarray(pixels(40, 64)), kind, exif=exif)
    assert sides(data, "x") == tuple(decode(data, "x").pixels.shape[1:])


def test_sides_of_what_is_no_image_are_refused() -> None:
    with pytest.raises(BrokenImage, match="not an image"):
        sides(b"GIF89a", "x")
    with pytest.raises(BrokenImage, match="empty"):
        sides(b"", "x")
