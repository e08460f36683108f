"""Images that Pillow does not read: many bands, more than 8 bits, arrays, DICOM; and the scale of a set of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor

from dicom_files import dicom
from simdino.config import EncoderConfig, ViewsConfig
from simdino.contracts import Preprocess
from simdino.data.base import pixels_of
from simdino.data.decode import decode, orientation, sides
from simdino.data.extents import extent, values_of
from simdino.data.loader import Batches
from simdino.data.opening import BrokenImage
from simdino.data.sources import open_dataset
from simdino.data.stored import Stored
from simdino.data.survey import BINS, measure_dataset
from simdino.errors import InputError
from simdino.evaluate.classification.training import Length, batches
from simdino.evaluate.diagnostics.monitors import random_views
from simdino.features.extract import prepared
from simdino.models.catalogue import make_encoder

RANDOM = np.random.default_rng(0)
BANDS = RANDOM.integers(0, 65536, (40, 24, 5), dtype=np.uint16)
COLOURS = BANDS[..., :3].copy()
FULL = 65535.0
COMPRESSION = b"\3\1\3\0\1\0\0\0"  # how the tag begins


def tiff(values: np.ndarray, **how: Any) -> bytes:
    file = io.BytesIO()
    several = values.ndim == 3 and values.shape[-1] > 1
    tifffile.imwrite(
        file, values, **{"photometric": "minisblack", "planarconfig": "contig" if several else None, **how}
    )
    return file.getvalue()


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def unit(values: np.ndarray) -> Tensor:
    """Values [H, W, C] of 16 bits as they should be read."""
    return torch.from_numpy(values.astype(np.float64) / FULL).float().permute(2, 0, 1)


@pytest.mark.parametrize(
    "how",
    [
        {}, {"tile": (16, 16)}, {"compression": "zlib"}, {"compression": "lzw", "predictor": True},
        {"compression": "zstd"}, {"bigtiff": True}, {"byteorder": ">"}, {"rowsperstrip": 3},
        {"planarconfig": "separate"},
    ],
)  # fmt: skip
def test_a_tiff_of_many_bands_is_read_to_the_last_bit(how: dict[str, Any]) -> None:
    stored = BANDS.transpose(2, 0, 1) if "planarconfig" in how else BANDS
    data = tiff(stored, **how)
    found = decode(data, "x.tif")
    torch.testing.assert_close(found.pixels, unit(BANDS), atol=1e-7, rtol=0)
    assert found.values == (0, FULL) and sides(data, "x.tif") == (40, 24)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_any_number_of_channels_in_any_numbers(channels: int, dtype: type) -> None:
    values = RANDOM.integers(0, 256, (20, 18, channels)).astype(dtype)
    values[0, 0] = 255
    expected = torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)
    for data in (tiff(values), npy(values)):
        found = decode(data, "x").pixels
        assert found.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
        low = 0.0 if dtype != np.float32 else float(values.min())
        scaled = found.float() if dtype == np.uint8 else low + found * (255 - low)
        torch.testing.assert_close(scaled, expected, atol=1.5 if dtype == np.float32 else 1e-4, rtol=0)


def test_two_values_that_differ_in_the_low_byte_stay_different_everywhere(tmp_path: Path) -> None:
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.full((8, 8, 5), 300 + 40_000 * (i == 3) + i % 2, np.uint16))
    source = open_dataset(tmp_path)
    one, other = source.read(0), source.read(1)
    assert float((other - one).mean()) == pytest.approx(1 / FULL, rel=1e-2)
    assert source.read(0, 5).shape == (5, 8, 8) and source.read(0, 5, at_least=4).dtype == torch.float32


def test_the_channels_of_microscopes_are_bands_and_of_times_the_first_is_taken() -> None:
    values = RANDOM.integers(0, 4096, (3, 4, 16, 12), dtype=np.uint16)
    data = tiff(values, ome=True, metadata={"axes": "TCYX"}, planarconfig=None)
    found = decode(data, "x.ome.tif")
    assert found.values == (0, 4095)
    torch.testing.assert_close(found.pixels, torch.from_numpy(values[0] / 4095).float(), atol=1e-6, rtol=0)
    assert sides(data, "x.ome.tif") == (16, 12)
    stack = tiff(values[:, 0], metadata={"axes": "ZYX"}, planarconfig=None)
    assert decode(stack, "x.tif").pixels.shape == (1, 16, 12)


@pytest.mark.parametrize("axes", ["TCYX", "CTYX", "CZYX", "TZCYX"])
def test_the_first_of_other_axes_is_taken_wherever_they_stand(axes: str) -> None:
    sizes = {"T": 2, "Z": 3, "C": 4, "Y": 16, "X": 12}
    values = RANDOM.integers(0, 65536, [sizes[axis] for axis in axes], dtype=np.uint16)
    first = values[tuple(slice(None) if axis in "CYX" else 0 for axis in axes)]
    found = decode(tiff(values, ome=True, metadata={"axes": axes}, planarconfig=None), "x.ome.tif").pixels
    torch.testing.assert_close(found, unit(first.transpose(1, 2, 0)), atol=1e-7, rtol=0)


def test_an_image_that_is_not_finite_does_not_spoil_the_scale_of_its_set(tmp_path: Path) -> None:
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", with_nan(np.nan) if i == 2 else np.full((4, 4), i / 4, np.float32))
    found = measure_dataset(open_dataset(tmp_path, "all"))
    assert found.values == (0, 1) and list(found.broken) == ["2.npy"]


def test_channels_of_8_bits_are_bands_too_and_plain_pictures_stay_pillows() -> None:
    values = RANDOM.integers(0, 256, (4, 16, 12), dtype=np.uint8)
    found = decode(tiff(values, ome=True, metadata={"axes": "CYX"}, planarconfig=None), "x.ome.tif").pixels
    assert torch.equal(found, torch.from_numpy(values))
    colours = RANDOM.integers(0, 256, (16, 12, 3), dtype=np.uint8)
    for compression in (None, "zlib", "lerc", "jpeg2000"):
        made = tiff(colours, photometric="rgb", compression=compression)
        assert torch.equal(decode(made, "x.tif").pixels, torch.from_numpy(colours).permute(2, 0, 1)), compression


def test_bytes_with_a_sign_are_deep_values(tmp_path: Path) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", RANDOM.integers(-128, 128, (9, 9), dtype=np.int8))
    found = measure_dataset(open_dataset(tmp_path, "all"))
    assert found.values is not None and found.values[0] < -120 and 0.4 < found.mean[0] < 0.6


def test_orientation_and_sides_of_every_kind_are_known_without_pillow() -> None:
    for data in (tiff(BANDS), npy(BANDS), imagecodecs.png_encode(COLOURS), imagecodecs.jpegxl_encode(COLOURS)):
        assert orientation(data, "x") == 1 and sides(data, "x") == (40, 24)


def test_images_of_8_bits_and_of_more_go_through_one_encoder_alike(tmp_path: Path) -> None:
    grey = RANDOM.integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "b.png")
    about = Preprocess(resize=16, crop=16, channels=1, mean=(0.5,), std=(0.25,))
    for one in (about, replace(about, values=(0, FULL))):
        ((_, images, _),) = prepared(open_dataset(tmp_path, "all"), one)
        assert images.dtype == torch.float32 and float(images.max()) <= 1
        torch.testing.assert_close(images[0], images[1], atol=1e-6, rtol=0)


def test_a_run_of_8_bits_takes_a_deep_image_that_the_survey_missed(tmp_path: Path) -> None:
    grey = RANDOM.integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "b.png")
    config = ViewsConfig(global_size=16, local_views=0, global_scale=(1.0, 1.0), flip=0.0)
    views, _ = Batches(open_dataset(tmp_path, "all"), config, batch=2, channels=1, seed=0)[0]
    assert views.global_views.dtype == torch.uint8
    assert torch.equal(views.global_views[0, 0], views.global_views[0, 1]) and int(views.global_views.max()) > 200


def test_a_fourth_band_that_is_no_opacity_is_a_band() -> None:
    values = RANDOM.integers(0, 256, (6, 5, 4), dtype=np.uint8)
    near_infrared = tiff(values, photometric="rgb", extrasamples=["unspecified"])
    assert torch.equal(decode(near_infrared, "x").pixels, torch.from_numpy(values).permute(2, 0, 1))
    alpha = tiff(np.concatenate([values[..., :3], np.full_like(values[..., :1], 255)], -1), photometric="rgb",
                 extrasamples=["unassalpha"])  # fmt: skip
    assert torch.equal(decode(alpha, "x").pixels, torch.from_numpy(values[..., :3]).permute(2, 0, 1))


@pytest.mark.parametrize("channels", [2, 4])
def test_transparent_parts_of_16_bits_lie_on_white(channels: int) -> None:
    values = RANDOM.integers(0, 65536, (4, 3, channels), dtype=np.uint16)
    values[0, 0, :-1], values[0, 0, -1], values[1:, :, -1] = 0, 0, 65535
    values[2, 0, 0] = 65535
    data = imagecodecs.png_encode(values)
    found = decode(data, "x.png")
    assert found.transparent and found.pixels[:, 0, 0].tolist() == [1.0] * (channels - 1)
    torch.testing.assert_close(found.pixels[:, 1:], unit(values[..., :-1])[:, 1:], atol=1e-7, rtol=0)


def test_jpeg_xl_needs_nothing_else() -> None:
    values = RANDOM.integers(0, 65536, (12, 9, 3), dtype=np.uint16)
    found = decode(imagecodecs.jpegxl_encode(values, lossless=True), "x.jxl").pixels
    torch.testing.assert_close(found, unit(values), atol=1e-7, rtol=0)
    eight = (values >> 8).astype(np.uint8)
    assert torch.equal(decode(imagecodecs.jpegxl_encode(eight, lossless=True), "x.jxl").pixels,
                       torch.from_numpy(eight).permute(2, 0, 1))  # fmt: skip


@pytest.mark.parametrize("shape", [(5, 40, 24), (40, 24, 5), (40, 24)])
def test_arrays_have_their_channels_first_or_last(shape: tuple[int, ...]) -> None:
    found = decode(npy(np.zeros(shape, np.uint8)), "x.npy").pixels
    assert found.shape == ((1 if len(shape) == 2 else 5), 40, 24)
    assert sides(npy(np.zeros(shape, np.uint8)), "x.npy") == (40, 24)


def with_nan(values: float) -> np.ndarray:
    array = RANDOM.normal(size=(4, 4)).astype(np.float32)
    array[0, 0] = values
    return array


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (npy(with_nan(np.nan)), "not finite"), (npy(with_nan(np.inf)), "not finite"),
        (tiff(with_nan(-np.inf)), "not finite"),
        (npy(np.zeros((4, 4), np.complex64)), "complex64 are no pixels"),
        (npy(np.zeros((4, 4), "U3")), "are no pixels"),
        (npy(np.zeros(4)), "is no image"), (npy(np.zeros((1, 2, 3, 4))), "is no image"),
        (npy(np.zeros((0, 4))), "no pixels"),
        (tiff(BANDS)[:400], ""), (npy(BANDS)[:400], ""), (b"\x93NUMPY", ""), (b"II*\0", ""),
        (tiff(BANDS).replace(COMPRESSION + b"\1\0", COMPRESSION + b"\x99\x99"), ""),
        (imagecodecs.png_encode(COLOURS)[:300], ""), (imagecodecs.jpegxl_encode(COLOURS)[:60], ""),
    ],
)  # fmt: skip
def test_what_is_no_image_is_named_in_one_line(data: bytes, told: str) -> None:
    with pytest.raises(BrokenImage, match=told) as caught:
        decode(data, "x")
    assert "\n" not in str(caught.value)


def test_one_pixel_is_an_image() -> None:
    assert decode(npy(np.array([[7]], np.uint16)), "x").pixels.shape == (1, 1, 1)
    assert decode(tiff(np.full((1, 1, 5), 7, np.uint16)), "x").pixels.shape == (5, 1, 1)


def test_a_size_that_is_claimed_is_not_made() -> None:
    header = npy(np.zeros((4, 4), np.uint8)).replace(b"(4, 4)", b"(99999, 99999)")
    with pytest.raises(BrokenImage, match="more than the limit"):
        decode(header, "x.npy")


def extents(*arrays: np.ndarray, window: tuple[float, float] | None = None) -> tuple[float, float]:
    return values_of([extent(Stored(values=one[..., None], window=window)) for one in arrays])


def test_the_rules_of_a_sets_scale() -> None:
    assert extents(np.arange(4096, dtype=np.uint16)[None]) == (0, 4095)
    assert extents(np.array([[0.1, 0.9]])) == (0, 1)
    around_zero = RANDOM.normal(size=(100, 100))
    low, high = extents(around_zero)
    assert (low, high) == pytest.approx(tuple(np.percentile(around_zero, (0.1, 99.9))), rel=1e-6)
    hounsfield = RANDOM.integers(-1000, 2000, (50, 50))
    assert extents(hounsfield) == pytest.approx(tuple(np.percentile(hounsfield, (0.1, 99.9))))
    assert extents(hounsfield, window=(-150.0, 250.0)) == (-150, 250)
    spot = RANDOM.integers(0, 2000, (200, 200), dtype=np.uint16)
    spot[0, 0] = 65535  # one hot pixel
    assert extents(spot)[1] < 2001
    low_bytes = RANDOM.integers(0x8000, 0x80FF, (64, 64), dtype=np.uint16)
    assert extents(low_bytes)[0] >= 0x8000 and extents(low_bytes)[1] <= 0x80FF
    assert extents(np.full((4, 4), 7, np.uint16)) == (0, 255)
    constant = extents(np.full((4, 4), -7.5))
    assert constant[0] == -7.5 and constant[1] > constant[0]


def test_statistics_are_numpys(tmp_path: Path) -> None:
    every = RANDOM.integers(0, 4096, (12, 30, 20, 5), dtype=np.uint16) // np.arange(1, 6, dtype=np.uint16)
    every[0, 0, 0] = 4095
    for i, values in enumerate(every):
        (tmp_path / f"{i}.tif").write_bytes(tiff(values, tile=(16, 16), compression="zlib"))
    found = measure_dataset(open_dataset(tmp_path, "all"))
    expected = every.astype(np.float64) / 4095
    assert found.channels == 5 and found.values == (0, 4095) and not found.broken
    assert found.mean == pytest.approx(expected.mean((0, 1, 2)), abs=1e-6)
    assert found.std == pytest.approx(expected.std((0, 1, 2)), abs=1e-6)
    for c, shares in enumerate(found.histograms):
        counts, _ = np.histogram(expected[..., c], BINS, (0, 1))
        assert shares == pytest.approx(counts / counts.sum(), abs=1e-3)
    lines = found.channel_lines()
    assert (
        len(lines) == 5 and lines[0].startswith("channel 1  mean ") and lines[4].split("|")[1][:-1].endswith(" " * 20)
    )


def test_different_numbers_of_channels_are_told_in_one_line(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.tif").write_bytes(tiff(BANDS[..., : 5 if i else 4]))
    source = open_dataset(tmp_path, "all")
    with pytest.raises(InputError, match=r"4 \(0.tif\) and 5 \(1.tif\): give --channels"):
        measure_dataset(source)
    found = measure_dataset(source, channels=5)
    assert list(found.broken) == ["0.tif"] and "it has 4 channels, and 5 are wanted" in found.broken["0.tif"]
    Image.fromarray(RANDOM.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    assert set(measure_dataset(open_dataset(tmp_path, "all"), channels=5).broken) == {"0.tif", "x.png"}


@pytest.mark.parametrize("make", [lambda x: x, torch.from_numpy])
def test_values_in_memory_are_images_too(make: Callable[[np.ndarray], Any]) -> None:
    values = BANDS if make is not torch.from_numpy else BANDS.transpose(2, 0, 1).astype(np.float32)
    found = pixels_of(make(values), "x", values=(0, FULL))
    torch.testing.assert_close(found, unit(BANDS), atol=1e-7, rtol=0)
    with pytest.raises(InputError, match="int64"):
        pixels_of(BANDS.astype(np.int64), "x")


@pytest.mark.extra("pydicom")
def test_dicom_is_rescaled_turned_and_shown_by_its_window() -> None:
    values = RANDOM.integers(0, 4096, (12, 10), dtype=np.uint16)
    values[0, :2] = 0, 4095
    expected = torch.from_numpy(values / 4095).float()[None]
    torch.testing.assert_close(decode(dicom(values), "x.dcm").pixels, expected, atol=1e-6, rtol=0)
    inverted = decode(dicom(values, PhotometricInterpretation="MONOCHROME1"), "x.dcm").pixels
    torch.testing.assert_close(inverted, 1 - expected, atol=1e-6, rtol=0)
    rescaled = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    upright = decode(dicom(values, **rescaled, WindowCenter=0, WindowWidth=1000), "x.dcm")
    turned = dicom(
        4095 - values, **rescaled, PhotometricInterpretation="MONOCHROME1", WindowCenter=4095 - 2048, WindowWidth=1000
    )
    found = decode(turned, "x.dcm")
    assert found.values == upright.values == (-500, 500)
    torch.testing.assert_close(found.pixels, upright.pixels, atol=1e-6, rtol=0)
    assert decode(dicom(values, WindowCenter=None, WindowWidth=None), "x.dcm").values == (0, 4095)
    frames = decode(dicom(np.stack([values, values[::-1]])), "x.dcm").pixels
    torch.testing.assert_close(frames, expected, atol=1e-6, rtol=0)
    hounsfield = dicom(values, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    found = decode(hounsfield, "x.dcm")
    assert found.values == (-160, 240)
    shown = ((values.astype(int) - 1024 + 160) / 400).clip(0, 1)
    torch.testing.assert_close(found.pixels[0], torch.from_numpy(shown).float(), atol=1e-6, rtol=0)
    assert sides(hounsfield, "x.dcm") == (12, 10)
    with pytest.raises(BrokenImage):
        decode(dicom(values)[:600], "x.dcm")


def test_without_pydicom_the_line_says_what_to_install(hide: Callable[[str], None]) -> None:
    hide("pydicom")
    with pytest.raises(BrokenImage, match=r"DICOM images need pydicom: pip install 'simdino\[dicom\]'"):
        decode(b"\0" * 128 + b"DICM" + b"\0" * 99, "x.dcm")


def test_without_rasterio_an_unknown_compression_says_what_to_install(hide: Callable[[str], None]) -> None:
    hide("rasterio")
    with pytest.raises(
        BrokenImage, match=r"GDAL may read it: some GeoTIFFs need rasterio: pip install 'simdino\[geo\]'"
    ):
        decode(tiff(BANDS)[:400], "x.tif")


@pytest.mark.extra("rasterio")
def test_a_geotiff_of_gdal_is_read(tmp_path: Path) -> None:
    import rasterio

    with rasterio.open(
        tmp_path / "x.tif", "w", driver="GTiff", width=24, height=40, count=5, dtype="uint16", compress="lerc",
    ) as file:  # fmt: skip
        file.write(BANDS.transpose(2, 0, 1))
    found = decode((tmp_path / "x.tif").read_bytes(), "x.tif").pixels
    torch.testing.assert_close(found, unit(BANDS), atol=1e-7, rtol=0)


@pytest.mark.extra("pillow_heif")
def test_heic_is_read_where_its_plugin_is_installed(tmp_path: Path) -> None:
    import pillow_heif

    picture = Image.fromarray(np.full((16, 24, 3), (200, 90, 30), np.uint8))
    pillow_heif.from_pillow(picture).save(tmp_path / "x.heic")
    found = open_dataset(tmp_path, "all").read(0)
    assert found.shape == (3, 16, 24)
    assert (found.float().mean((1, 2)) - torch.tensor([200.0, 90.0, 30.0])).abs().max() < 4


def test_heads_and_health_see_deep_images_as_they_are(tmp_path: Path) -> None:
    for i in range(8):
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        np.save(tmp_path / str(i % 2) / f"{i}.npy", np.full((16, 16, 5), 1000 * (i + 1), np.uint16))
    about = Preprocess(resize=16, crop=16, channels=5, mean=(0.0,) * 5, std=(1.0,) * 5, values=(0, 8000))
    encoder = make_encoder(EncoderConfig(name="vit_toy", image_size=16, patch_size=8), about)
    source = open_dataset(tmp_path, "all").with_values(about.values)
    length = Length(batch=8, steps=1, steps_per_epoch=1)
    crops, *_ = next(batches(source, encoder, length, seed=0, workers=0, broken={}))
    assert sorted(crops.mean((1, 2, 3)).tolist()) == pytest.approx([i / 8 for i in range(1, 9)], abs=1e-6)
    views = next(random_views(source, about, views=2, seed=0))
    assert 0 < float(views.mean()) < 1


def test_built_in_images_of_other_channels_are_broken_and_not_misshapen() -> None:
    with pytest.raises(BrokenImage, match="1 channels, and 5 are wanted"):
        open_dataset("digits").read(0, 5)
