"""Image -> crops: the geometric half of multi-crop views (the photometric half is `photometric.py`).

Boxes are drawn as in torchvision's RandomResizedCrop (10 tries of area and log-ratio, then a centred fallback), from
the image's rng key; crops are resized on uint8 with antialiasing."""

import math
from math import ceil, floor, log, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from simdino import rng as counters
from simdino.config import Interpolation, ViewsConfig
from simdino.contracts import Preprocess
from simdino.data.decode import to_chw

TRIES = 10
RATIO = (3 / 4, 4 / 3)
BICUBIC = 2  # pixels that the filter reads on either side where it enlarges
MANY = 8  # times the pixels of a crop above which the whole image is not enlarged for it
PER_VIEW = 4 * TRIES + 1  # area, ratio, top, left of each try; flip


def decoded_side(config: ViewsConfig) -> int:
    """Return the short side in pixels that an image needs so that none of its crops is enlarged: photos may be decoded
    at a fraction of their size down to this."""
    kinds = [(config.global_size, config.global_scale[0]), (config.local_size, config.local_scale[0])]
    used = kinds if config.local_views else kinds[:1]
    return max(ceil(size / sqrt(RATIO[0] * smallest)) for size, smallest in used)


def crop_boxes(
    keys: NDArray[np.int64], heights: NDArray[np.int64], widths: NDArray[np.int64], config: ViewsConfig
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return boxes (top, left, height, width) int64 [B, V, 4] and flips [B, V] of the V views of B images."""
    views = config.global_views + config.local_views
    draws = counters.uniform(keys, counters.GEOMETRY, views * PER_VIEW).reshape(-1, views, PER_VIEW)
    tries = draws[..., :-1].reshape(-1, views, TRIES, 4)
    scales = np.array([config.global_scale] * config.global_views + [config.local_scale] * config.local_views)
    low, high = scales.T[:, None, :, None]  # [1, V, 1] each
    rows, columns = heights[:, None, None], widths[:, None, None]
    area = rows * columns * (low + (high - low) * tries[..., 0])
    ratio = np.exp(log(RATIO[0]) + (log(RATIO[1]) - log(RATIO[0])) * tries[..., 1])
    width, height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (width >= 1) & (width <= columns) & (height >= 1) & (height <= rows)
    top = np.floor(tries[..., 2] * (rows - height + 1))
    left = np.floor(tries[..., 3] * (columns - width + 1))
    boxes = np.stack([top, left, height, width], axis=-1)  # [B, V, TRIES, 4]
    chosen = np.take_along_axis(boxes, fits.argmax(-1)[..., None, None], axis=2)[:, :, 0]
    boxes = np.where(fits.any(-1)[..., None], chosen, centred_boxes(heights, widths)[:, None])
    return boxes.astype(np.int64), draws[..., -1] < config.flip


def centred_boxes(heights: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the box of the whole image, its long side cut evenly to a permitted aspect ratio: float64 [B, 4]."""
    width = np.minimum(widths, np.maximum(1, np.rint(heights * RATIO[1])))
    height = np.minimum(heights, np.maximum(1, np.rint(widths / RATIO[0])))
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=-1).astype(np.float64)


def resize(image: Tensor, size: int | tuple[int, int], *, interpolation: Interpolation = "bicubic") -> Tensor:
    """Resize uint8 [C, H, W] to uint8 [C, h, w] with antialiasing, within one level of Pillow's resize."""
    size = (size, size) if isinstance(size, int) else size
    if tuple(image.shape[1:]) == size:
        return image
    return F.interpolate(image[None], size, mode=interpolation, antialias=True)[0]


def resized_crop(image: Tensor, sides: tuple[int, int], box: tuple[int, int, int, int]) -> Tensor:
    """Return the box (top, left, height, width) of `resize(image, sides)`: uint8 [C, height, width].

    Where the whole would be many times the image and the box, as of a strip of 1 x 10,000 pixels, only the part under
    the box is enlarged, by Pillow, whose filter reads beyond the box as in the whole: the same within two levels."""
    top, left, height, width = box
    if math.prod(sides) > max(image[0].numel(), MANY * height * width):
        return _enlarged_part(image, sides, box)
    return resize(image, sides)[:, top : top + height, left : left + width]


def _enlarged_part(image: Tensor, sides: tuple[int, int], box: tuple[int, int, int, int]) -> Tensor:
    """Return `resized_crop` from the pixels under the box and those around them that the filter reads."""
    spans = []  # of the part, and of the box within it, on either axis
    for axis in (0, 1):
        whole = image.shape[1 + axis]
        scale = whole / sides[axis]
        first, last = box[axis] * scale, (box[axis] + box[2 + axis]) * scale
        reach = ceil(BICUBIC * max(1, scale)) + 1
        start, stop = max(0, floor(first) - reach), min(whole, ceil(last) + reach)
        image = image.narrow(1 + axis, start, stop - start)
        spans.append((first - start, min(last - start, stop - start)))
    (top, bottom), (left, right) = spans
    pixels = Image.fromarray(image.permute(1, 2, 0).squeeze(-1).contiguous().numpy())
    part = pixels.resize((box[3], box[2]), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    return to_chw(np.array(part))


def crops(
    image: Tensor,
    boxes: NDArray[np.int64],
    flips: NDArray[np.bool_],
    size: int,
    *,
    interpolation: Interpolation = "bicubic",
) -> Tensor:
    """Return crops uint8 [v, C, size, size] of one image at the boxes [v, 4]."""
    views = torch.empty(len(boxes), image.shape[0], size, size, dtype=torch.uint8)
    for view, (top, left, height, width), flip in zip(views, boxes, flips, strict=True):
        crop = resize(image[:, top : top + height, left : left + width], size, interpolation=interpolation)
        view.copy_(crop.flip(-1) if flip else crop)
    return views


def centre(image: Tensor, preprocess: Preprocess, *, sides: tuple[int, int] | None = None) -> Tensor:
    """Resize the short side of uint8 [C, H, W] to `resize` and crop the centre: uint8 [C, crop, crop].

    sides: height and width of the whole image, where it was decoded at a fraction of them: halves of odd sides are
    rounded, and the long side would differ by a pixel."""
    height, width = image.shape[1:] if sides is None else sides
    short = min(height, width)
    height, width = (max(preprocess.crop, preprocess.resize * side // short) for side in (height, width))
    top, left = (round((side - preprocess.crop) / 2) for side in (height, width))
    return resized_crop(image, (height, width), (top, left, preprocess.crop, preprocess.crop))
