"""Pictures of more than 8 bits: one scale for a set, whatever the files that hold them."""

from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simdino.data.decode import decode
from simdino.data.scale import LOOKED_AT, Scale, extent_of
from simdino.data.sources import open_dataset
from simdino.data.survey import measure_dataset

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (7, 9), dtype=np.uint16)


def png(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits with any number of channels, which Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, channels = pixels.shape
    kind = {1: 0, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(pixels: np.ndarray, order: str) -> bytes:
    """A plain TIFF of 16 bits with three or four channels, in either order of bytes; the fourth is marked as alpha."""
    height, width, channels = pixels.shape
    data = pixels.astype(f"{order}u2").tobytes()
    after = 8 + len(data)
    short = [(259, 1), (262, 2), (277, channels), (284, 1), *([(338, 2)] if channels == 4 else [])]
    long = [(256, width), (257, height), (273, 8), (278, height), (279, len(data))]
    entries = {tag: struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in short}
    entries |= {tag: struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in long}
    entries[258] = struct.pack(f"{order}HHII", 258, 3, channels, after)
    body = struct.pack(f"{order}H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", after + 2 * channels)
    return start + data + struct.pack(f"{order}{channels}H", *[16] * channels) + body


def write_greys(folder: Path, top: int, count: int = 6, kind: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        values = (GREY.astype(np.int64) * top // 255).astype(np.uint16 if kind == "png" else np.int32)
        values[0, 0] = top if i == count // 2 else 0  # one picture alone reaches the top
        Image.fromarray(values).save(folder / f"{i}.{kind}")


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize(("top", "bits"), [(255, 8), (1023, 10), (4095, 12), (3000, 12), (16383, 14), (65535, 16)])
def test_a_set_keeps_its_grey_levels(tmp_path: Path, top: int, bits: int, kind: str) -> None:
    write_greys(tmp_path, top, kind=kind)
    source = open_dataset(tmp_path)
    for i in range(len(source)):
        stored = np.asarray(Image.open(tmp_path / source.names[i])).astype(np.int64)
        expected = torch.from_numpy(stored / (2**bits - 1)).float()
        torch.testing.assert_close(source.read(i)[0], expected, atol=1e-7, rtol=0)
    assert measure_dataset(source).values == (0, 2**bits - 1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("top", [255, 4095, 65535])
def test_colours_of_16_bits_are_scaled_like_greys(tmp_path: Path, top: int, channels: int, order: str) -> None:
    pixels = RANDOM.integers(0, top + 1, (5, 6, channels))
    pixels[0, 0], pixels[..., 3:] = top, 65535  # opaque
    expected = torch.from_numpy(pixels[..., :3] / top).permute(2, 0, 1).float()
    for name, data in (("a.png", png(pixels)), ("b.tif", tiff(pixels, order))):
        (tmp_path / name).write_bytes(data)
        torch.testing.assert_close(decode(data, name).pixels, expected, atol=1e-7, rtol=0)
        found = extent_of(data, name)
        assert found is not None and (found.least, found.most) == (pixels[..., :3].min(), top)
    source = open_dataset(tmp_path)
    for i in range(2):
        torch.testing.assert_close(source.read(i), expected, atol=1e-7, rtol=0)


def test_pictures_of_a_series_keep_their_order(tmp_path: Path) -> None:
    for value in (255, 256, 300):
        Image.fromarray(np.full((4, 4), value, np.int32)).save(tmp_path / f"{value}.tif")
    source = open_dataset(tmp_path)
    values = [float(source.read(i).max()) for i in range(3)]  # they use less than an eighth of 9 bits: that part is all
    assert values == pytest.approx([0, 1 / 45, 1])


def test_values_beyond_16_bits_have_a_range_too(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 500_000, 1_048_575]], np.int32)).save(tmp_path / "x.tif")
    found = open_dataset(tmp_path).read(0)
    torch.testing.assert_close(found, torch.tensor([[[0, 500_000 / 1_048_575, 1]]]), atol=1e-7, rtol=0)


def test_both_splits_and_every_part_have_the_scale_of_the_whole(tmp_path: Path) -> None:
    write_greys(tmp_path / "train" / "a", 1000)
    write_greys(tmp_path / "val" / "a", 4000)
    sources = [open_dataset(tmp_path, split) for split in ("train", "val", "all")]
    sources += [sources[0].select([0]), pickle.loads(pickle.dumps(sources[0]))]
    assert [measure_dataset(source).values for source in sources] == [(0, 4095)] * 5


def test_pictures_of_8_bits_beside_deep_ones_stay_as_they_are(tmp_path: Path) -> None:
    write_greys(tmp_path, 4095)
    plain = RANDOM.integers(0, 256, (7, 9), dtype=np.uint8)
    Image.fromarray(plain).save(tmp_path / "plain.png")
    source = open_dataset(tmp_path).with_values((0, 65535))
    assert np.array_equal(source.read(source.names.index("plain.png"))[0].numpy(), plain)


def test_files_of_8_bits_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        Image.fromarray(GREY.astype(np.uint8)).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(Scale, "__call__", lambda _: pytest.fail("a set of 8 bits was looked through"))
    found = measure_dataset(open_dataset(tmp_path))
    assert found.values is None


def test_an_encoders_scale_wins_and_what_lies_above_is_clipped_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_greys(tmp_path, 4095)
    source = open_dataset(tmp_path)
    assert source.with_values(None) is source
    trained = source.with_values((0, 1023))
    stored = np.asarray(Image.open(tmp_path / "3.png")).astype(np.float32)
    assert np.array_equal(trained.read(3)[0].numpy(), np.minimum(stored / 1023, 1))
    found = measure_dataset(trained)
    assert (found.values, found.clipped.images, found.clipped.first) == ((0, 1023), 6, "0.png")
    assert any("6 of the 6 images looked at have values outside of 0 to 1,023" in line for line in found.warnings())
    assert capsys.readouterr().err.count("values outside of 0 to 1,023") == 1
    assert measure_dataset(source.with_values((0, 65535))).clipped.images == 0


def test_a_large_set_is_known_by_an_even_sample() -> None:
    asked = []

    def get(name: str) -> bytes:
        asked.append(name)
        if name == "999":
            raise OSError("gone")
        return png(np.full((1, 1, 1), 5 * int(name)))

    scale = Scale(get, [str(i) for i in range(1000)])
    assert scale() == scale() == (0, 2**13 - 1)  # 5 * 995 and what lies around it
    assert len(asked) == len(set(asked)) == LOOKED_AT and {asked[0], asked[-1]} == {"0", "999"}


def test_a_deep_picture_that_the_sample_missed_has_16_bits() -> None:
    assert Scale(lambda _: b"", ["a", "b"])() == (0, 65535)
