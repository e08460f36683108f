"""Pictures of more than 8 bits in formats of which Pillow gives 8, and the sizes in their headers."""

import io
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image

import simdino.data.stored
from simdino.data import codecs
from simdino.data.codecs import codec_of, jpegxl_header
from simdino.data.decode import decode, deep_values, sides
from simdino.data.opening import BrokenImage

RANDOM = np.random.default_rng(0)
DEEP = RANDOM.integers(0, 2**16, (24, 40, 3), dtype=np.uint16)
TEN = RANDOM.integers(0, 1024, (24, 40, 3), dtype=np.uint16)
EIGHT = RANDOM.integers(0, 256, (24, 40, 3), dtype=np.uint8)


def ppm(values: np.ndarray, comment: bytes = b"") -> bytes:
    height, width, _ = values.shape
    return b"P6\n" + comment + b"%d %d\n65535\n" % (width, height) + values.astype(">u2").tobytes()


WRITERS: dict[str, tuple[Callable[..., bytes], np.ndarray]] = {
    "png": (imagecodecs.png_encode, DEEP),
    "jxl": (lambda x: imagecodecs.jpegxl_encode(x, lossless=True), DEEP),
    "bare jxl": (lambda x: imagecodecs.jpegxl_encode(x, lossless=True, usecontainer=False), DEEP),
    "jp2": (lambda x: imagecodecs.jpeg2k_encode(x, level=0, codecformat="jp2"), DEEP),
    "j2k": (lambda x: imagecodecs.jpeg2k_encode(x, level=0, codecformat="j2k"), DEEP),
    "avif": (lambda x: imagecodecs.avif_encode(x, level=100, bitspersample=10), TEN),
    "ppm": (ppm, DEEP),
    "ppm with a comment": (lambda x: ppm(x, b"# of a scanner\n"), DEEP),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_bit_of_a_deep_picture_arrives(kind: str) -> None:
    write, values = WRITERS[kind]
    data = write(values)
    highest = 1023 if values is TEN else 65535
    stored = deep_values(data)
    assert stored is not None and np.array_equal(stored.values, np.rint(values * (65535 / highest)))
    found = decode(data, kind, scale=lambda: (0.0, 65535.0)).pixels
    torch.testing.assert_close(
        found, torch.from_numpy(values / np.float32(highest)).permute(2, 0, 1), atol=1e-5, rtol=0
    )
    assert sides(data, kind) == (24, 40)


@pytest.mark.parametrize("kind", ["PNG", "JPEG2000", "AVIF", "PPM"])
def test_pictures_of_8_bits_are_pillows(kind: str) -> None:
    file = io.BytesIO()
    Image.fromarray(EIGHT).save(file, kind)
    assert codec_of(file.getvalue()) is None
    assert decode(file.getvalue(), "x").pixels.dtype == torch.uint8


def test_a_part_that_is_transparent_lies_on_white() -> None:
    opacity = np.full((24, 40, 1), 65535, np.uint16)
    opacity[:, :20] = 0
    data = imagecodecs.jpeg2k_encode(np.concatenate([DEEP, opacity], -1), level=0, codecformat="jp2")
    found = decode(data, "x", scale=lambda: (0.0, 65535.0))
    assert found.transparent and bool((found.pixels[:, :, :20] == 1).all())
    torch.testing.assert_close(found.pixels[:, :, 20:], torch.from_numpy(DEEP[:, 20:] / 65535).permute(2, 0, 1).float())


TWELVE = {
    "avif": lambda x: imagecodecs.avif_encode(x, level=100, bitspersample=12),
    "jp2": lambda x: imagecodecs.jpeg2k_encode(x, level=0, codecformat="jp2", bitspersample=12),
    "jxl": lambda x: imagecodecs.jpegxl_encode(x, lossless=True, bitspersample=12),
}


@pytest.mark.parametrize("kind", TWELVE)
def test_opacity_of_12_bits_is_full_at_4095(kind: str) -> None:
    values = RANDOM.integers(0, 4096, (16, 24, 4), dtype=np.uint16)
    values[..., 3] = 4095
    found = decode(TWELVE[kind](values), "x", scale=lambda: (0.0, 65535.0))
    assert not found.transparent
    expected = torch.from_numpy(values[..., :3] / np.float32(4095)).permute(2, 0, 1)
    torch.testing.assert_close(found.pixels, expected, atol=1e-5, rtol=0)


def test_a_ppm_is_as_bright_as_its_highest_value_says() -> None:
    data = b"P6 2 1 4095\n" + np.array([0, 1000, 4095, 1, 2, 3], ">u2").tobytes()
    stored = deep_values(data)
    assert stored is not None and stored.values.ravel().tolist() == [0, 16004, 65535, 16, 32, 48]


def test_a_header_that_never_ends_is_no_endless_search() -> None:
    assert codec_of(b"P6" + b" \n" * 100_000 + b"x") is None


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_jpeg_xl_made_of_a_jpeg_is_upright(turn: int) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[codecs.ORIENTATION] = turn
    Image.fromarray(EIGHT).save(file, "JPEG", exif=exif)
    data = imagecodecs.jpegxl_encode_jpeg(file.getvalue())
    assert sides(data, "x") == tuple(decode(data, "x").pixels.shape[1:]) == ((40, 24) if turn > 4 else (24, 40))


def test_what_stands_before_a_codestream_does_not_tell_its_bits() -> None:
    data = imagecodecs.jpeg2k_encode(EIGHT, level=0, codecformat="jp2")
    box = b"\xff\x51" + bytes([0x7F]) * 60
    head = int.from_bytes(data[:4], "big")
    inserted = data[:head] + (8 + len(box)).to_bytes(4, "big") + b"xml " + box + data[head:]
    assert codecs.deepest_component(inserted) == codecs.deepest_component(data) == 8


@pytest.mark.parametrize(
    "shape", [(8, 8), (24, 40), (256, 256), (30, 40), (90, 160), (7, 513), (513, 9000), (300, 200)]
)
@pytest.mark.parametrize("container", [False, True])
def test_the_size_in_a_header_of_jpeg_xl(shape: tuple[int, int], container: bool) -> None:
    data = imagecodecs.jpegxl_encode(np.zeros(shape, np.uint8), usecontainer=container, effort=1)
    header = jpegxl_header(data)
    assert (header.height, header.width, header.bits) == (*shape, 8)


@pytest.mark.parametrize("kind", WRITERS)
def test_too_many_pixels_are_refused_before_they_are_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write, values = WRITERS[kind]
    data = write(values)

    def decoded(*_: Any, **__: Any) -> None:
        raise AssertionError("it was decoded")

    for name in ("png_decode", "jpegxl_decode", "jpeg2k_decode", "avif_decode"):
        monkeypatch.setattr(imagecodecs, name, decoded)
    monkeypatch.setattr(np, "frombuffer", decoded)
    for module in (simdino.data.stored, simdino.data.opening):
        monkeypatch.setattr(module, "MAX_PIXELS", 900)
    with pytest.raises(BrokenImage, match="40 x 24 pixels are more than the limit of 900 pixels"):
        decode(data, kind)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("left", [16, 60, 400])
def test_truncated_files_are_broken(kind: str, left: int) -> None:
    write, values = WRITERS[kind]
    with pytest.raises(BrokenImage):
        decode(write(values)[:left], kind)


@pytest.mark.extra("pillow_heif")
def test_ten_bits_of_a_heic_arrive() -> None:
    import pillow_heif

    ramp = np.broadcast_to(np.linspace(20000, 40000, 64)[None, :, None], (48, 64, 3)).astype(np.uint16)
    file = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", (64, 48), np.ascontiguousarray(ramp).tobytes()).save(file, quality=-1)
    stored = deep_values(file.getvalue())
    assert stored is not None and stored.values.shape == (48, 64, 3)
    assert len(np.unique(stored.values[0, :, 0])) > 40  # in 8 bits they were at most 79 of 256, steps of 256
    assert len(np.unique(stored.values % 256)) > 2
    assert np.abs(stored.values.astype(int) - ramp).max() < 1500
    assert sides(file.getvalue(), "x") == (48, 64)
