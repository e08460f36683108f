"""Files that Pillow does not read, or not in full: TIFF of many bands or of more than 8 bits, arrays of numpy, DICOM;
`codecs` has pictures of more than 8 bits.

Each reader takes a file's bytes and returns its values as they are stored, of the first image where there are several.
A kind is known by its first bytes, so that a wrong extension does not matter."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from PIL.TiffImagePlugin import COMPRESSION_INFO

from simdino.data.codecs import ORIENTATION, codec_of, sides_of
from simdino.data.stored import Refused, Stored, check_sides, with_opacity
from simdino.errors import InputError
from simdino.extras import optional
from simdino.settings import Values

ALPHA = (1, 2)  # TIFF's ExtraSamples: opacity, premultiplied or not; 0 says nothing of the band
PLANE_BEFORE = ("S", "C")  # axes of tifffile that hold samples or channels
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how a TIFF and a BigTIFF begin
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
"""Bands of TIFF's kinds of pixels without opacity: grey (white or black is zero), RGB, palette, CMYK, YCbCr, Lab."""

RESCALE = (("RescaleSlope", 1), ("RescaleIntercept", 0))  # DICOM's, and what they are where a file has none


def read_npy(data: bytes) -> Stored:
    """An array [H, W], [H, W, C] or [C, H, W]. Of three axes the first is that of channels where it is shorter than
    the last."""
    version = np.lib.format.read_magic(stream := io.BytesIO(data))
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(stream)
    check_kind(dtype)
    check_sides(shape[1:] if len(shape) == 3 and shape[0] < shape[2] else shape[:2])
    values = np.load(io.BytesIO(data), allow_pickle=False)
    if values.ndim == 2:
        return Stored(values=values[..., None])
    if values.ndim != 3:
        raise ValueError(f"an array of shape {list(values.shape)} is no image: it must be [H, W] or [H, W, C]")
    return Stored(values=values.transpose(1, 2, 0) if values.shape[0] < values.shape[2] else values)


def read_tiff(data: bytes) -> Stored:
    """The first image of a TIFF: tiled, planar, BigTIFF and OME-TIFF, compressed in any way that imagecodecs knows.

    The pages of an OME-TIFF or ImageJ file that are channels are its bands; of other axes (time, depth) the first
    is taken. What tifffile does not read, rasterio does, where it is installed."""
    try:
        return read_by_tifffile(data)
    except Exception as error:
        if isinstance(error, Refused):
            raise
        try:
            rasterio = optional("rasterio")
        except InputError as missing:
            raise ValueError(f"{error}; GDAL may read it: {missing}") from error
        with rasterio.MemoryFile(data) as memory, memory.open() as file:
            check_sides(file.shape)
            return Stored(values=file.read().transpose(1, 2, 0))


def read_by_tifffile(data: bytes) -> Stored:
    """The first image of a TIFF by tifffile and imagecodecs."""
    with opened_tiff(data) as file:
        series, page = file.series[0], file.pages.first
        sizes = dict(zip(series.axes, series.shape, strict=True))
        check_sides((sizes.get("Y", 1), sizes.get("X", 1)))
        check_kind(series.dtype)
        values = bands_last(*(of_channels(series) if "C" in series.axes else (page.asarray(), page.axes)))
        opacity = tuple(int(one) for one in getattr(page, "extrasamples", ()))
        inverted = int(getattr(page, "photometric", 1)) == 0  # white is zero
        turned = page.tags.get(ORIENTATION)
        orientation = 1 if turned is None else int(turned.value)
    if inverted and values.dtype.kind == "u":
        values = np.iinfo(values.dtype).max - values
    if opacity and opacity[-1] in ALPHA:
        return with_opacity(values, orientation=orientation)
    return Stored(values=values, orientation=orientation)


def of_channels(series: Any) -> tuple[np.ndarray, str]:
    """Return the values of a series of pages that has channels, and their axes: of other axes the first alone, so that
    a film is not read for its first moment."""
    inner = series.pages[0].axes
    outer, shape = series.axes.removesuffix(inner), series.shape[: len(series.axes) - len(inner)]
    if not series.axes.endswith(inner) or len(series.pages) != math.prod(shape):
        return series.asarray(), series.axes
    first = tuple(slice(None) if axis == "C" else 0 for axis in outer)
    numbers = np.arange(len(series.pages)).reshape(shape)[first].ravel()
    pages = np.stack([series.pages[int(number)].asarray() for number in numbers])
    return (pages, f"C{inner}") if "C" in outer else (pages[0], inner)


def bands_last(values: np.ndarray, axes: str) -> np.ndarray:
    """Return values with the axes of tifffile as [H, W, C]: samples and channels are bands, of others the first."""
    bands = [axis for axis in axes if axis in PLANE_BEFORE]
    for axis in [one for one in axes if one not in ("Y", "X", *bands)]:
        values, axes = values.take(0, axes.index(axis)), axes.replace(axis, "", 1)
    order = [axes.index(axis) for axis in ("Y", "X", *bands)]
    values = values.transpose(order)
    return values.reshape(*values.shape[:2], -1)


def read_dicom(data: bytes) -> Stored:
    """The first frame of a DICOM image, as numbers of the modality (rescaled), MONOCHROME1 turned, palettes as
    colours; with its window, where it states one."""
    pydicom: Any = optional("pydicom")
    pixels: Any = optional("pydicom.pixels")
    dataset = pydicom.dcmread(io.BytesIO(data))
    check_sides((int(dataset.Rows), int(dataset.Columns)))
    values = pixels.pixel_array(dataset, index=0)
    kind = str(dataset.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        return Stored(values=pixels.apply_color_lut(values, dataset))
    if values.ndim == 3:
        return Stored(values=values)
    window = stated_window(dataset)
    if kind == "MONOCHROME1":  # white is the lowest: turned as stored, so that the modality's units stay the same
        ends = int(2 ** int(dataset.BitsStored) - 1) if values.dtype.kind == "u" else -1
        values = (ends - values.astype(np.int64)).astype(values.dtype)
        slope, intercept = (float(dataset.get(name, default)) for name, default in RESCALE)
        turned = slope * ends + 2 * intercept
        window = None if window is None else (turned - window[1], turned - window[0])
    values = pixels.apply_modality_lut(values, dataset)
    if values.dtype.kind == "f" and np.array_equal(values, np.rint(values)):
        values = np.rint(values).astype(np.int64)  # a rescale of whole numbers by whole numbers
    return Stored(values=values[..., None], window=window)


def stated_window(dataset: Any) -> Values | None:
    """Return the first window of a DICOM image as the values shown black and white."""
    stated = [dataset.get(name) for name in ("WindowCenter", "WindowWidth")]
    centres, widths = ([] if one is None else np.ravel(one).tolist() for one in stated)
    if not centres or not widths or not float(widths[0]) > 0:
        return None
    return float(centres[0]) - float(widths[0]) / 2, float(centres[0]) + float(widths[0]) / 2


def reader_of(data: bytes) -> Callable[[bytes], Stored] | None:
    """Return the reader of a file that Pillow does not read in full; None for any other."""
    if data[:6] == b"\x93NUMPY":
        return read_npy
    if data[128:132] == b"DICM":
        return read_dicom
    if data[:4] in TIFF:
        return None if is_plain_tiff(data) else read_tiff
    return codec_of(data)


def is_plain_tiff(data: bytes) -> bool:
    """Return whether Pillow reads all bands and bits of a TIFF."""
    with suppress(Exception), opened_tiff(data) as file:  # what is damaged is for a reader to say
        page: Any = file.pages.first
        extra, colours = page.extrasamples, page.samplesperpixel - len(page.extrasamples)
        plain = COLOURS.get(int(page.photometric)) == colours and all(int(one) in ALPHA for one in extra)
        known = plain and page.bitspersample <= 8 and int(page.compression) in COMPRESSION_INFO
        return known and not ((file.is_ome or file.is_imagej) and "C" in file.series[0].axes)
    return False


def opened_tiff(data: bytes) -> Any:
    """Return a TIFF opened by tifffile, which then says what is wrong with it once, as an error."""
    import tifffile  # noqa: PLC0415 (where it is used: it takes a tenth of a second)

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return tifffile.TiffFile(io.BytesIO(data))


def sides_in(data: bytes) -> tuple[int, int, int] | None:
    """Return height and width as they are stored, and the orientation, of a file with a reader, from its header where
    it has one; None for a file of Pillow's."""
    reader = reader_of(data)
    if reader is None:
        return None
    if reader is read_tiff:
        with opened_tiff(data) as file:
            series, turned = file.series[0], file.pages.first.tags.get(ORIENTATION)
            sizes = dict(zip(series.axes, series.shape, strict=True))
            return sizes.get("Y", 1), sizes.get("X", 1), 1 if turned is None else int(turned.value)
    if codec_of(data) is not None:
        return sides_of(data)
    stored = reader(data)
    return *stored.values.shape[:2], stored.orientation


def check_kind(dtype: np.dtype[Any]) -> None:
    """Raise Refused for what are no numbers of pixels."""
    if dtype.kind not in "buif":
        raise Refused(f"values of type {dtype} are no pixels: save whole or floating-point numbers")
