"""Image -> crops: the geometric half of multi-crop views (the photometric half is `photometric.py`).

Boxes are drawn as in torchvision's RandomResizedCrop (10 tries of area and log-ratio, then a centred fallback), from
the image's rng key; crops are resized with antialiasing, on uint8 or floating-point numbers as images have them."""

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

TRIES = 10
RATIO = (3 / 4, 4 / 3)
BICUBIC = 2  # pixels that the filter reads on either side where it enlarges
TOGETHER = 3  # channels of uint8 that torch resizes by its fast way, for at most 4; 3 divide a crop of 6 evenly
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
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return boxes (top, left, height, width) int64 [B, V, 4] of the V views of B images, and which way up each lies,
    int64 [B, V]: 1 where it is mirrored, and 2 for each quarter turn."""
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
    ways = (draws[..., -1] < config.flip).astype(np.int64)
    if config.turns:
        ways += 2 * np.floor(4 * counters.uniform(keys, counters.TURNS, views)).astype(np.int64)
    return boxes.astype(np.int64), ways


def centred_boxes(heights: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the box of the whole image, its long side cut evenly to a permitted aspect ratio: float64 [B, 4]."""
    width = np.minimum(widths, np.maximum(1, np.rint(heights * RATIO[1])))
    height = np.minimum(heights, np.maximum(1, np.rint(widths / RATIO[0])))
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=-1).astype(np.float64)


def resize(image: Tensor, size: int | tuple[int, int], *, interpolation: Interpolation = "bicubic") -> Tensor:
    """Resize [C, H, W] to [C, h, w] with antialiasing, within one level of Pillow's resize. Values in [0, 1] stay
    there, as uint8 stays uint8."""
    size = (size, size) if isinstance(size, int) else size
    if tuple(image.shape[1:]) == size:
        return image
    if image.dtype == torch.uint8 and len(image) > TOGETHER:
        return torch.cat([resize(part, size, interpolation=interpolation) for part in image.split(TOGETHER)])
    resized = F.interpolate(image[None], size, mode=interpolation, antialias=True)[0]
    return resized.clamp_(0, 1) if image.is_floating_point() else resized


def resized_crop(image: Tensor, sides: tuple[int, int], box: tuple[int, int, int, int]) -> Tensor:
    """Return the box (top, left, height, width) of `resize(image, sides)`: [C, height, width].

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
    planes = [Image.fromarray(plane.contiguous().numpy()) for plane in image]  # 8 bits, or Pillow's float32
    where, sides = (left, top, right, bottom), (box[3], box[2])
    parts = np.stack([np.array(plane.resize(sides, Image.Resampling.BICUBIC, box=where)) for plane in planes])
    return torch.from_numpy(parts if image.dtype == torch.uint8 else parts.clip(0, 1))


def crops(
    image: Tensor,
    boxes: NDArray[np.int64],
    ways: NDArray[np.int64],
    size: int,
    *,
    interpolation: Interpolation = "bicubic",
) -> Tensor:
    """Return crops [v, C, size, size] of one image at the boxes [v, 4], each the way up of `crop_boxes`."""
    views = torch.empty(len(boxes), image.shape[0], size, size, dtype=image.dtype)
    for view, (top, left, height, width), way in zip(views, boxes, ways, strict=True):
        crop = resize(image[:, top : top + height, left : left + width], size, interpolation=interpolation)
        crop = crop.flip(-1) if way % 2 else crop
        view.copy_(torch.rot90(crop, int(way) // 2, (-2, -1)) if way > 1 else crop)
    return views


def centre(image: Tensor, preprocess: Preprocess, *, sides: tuple[int, int] | None = None) -> Tensor:
    """Resize the short side of [C, H, W] to `resize` and crop the centre: [C, crop, crop].

    sides: height and width of the whole image, where it was decoded at a fraction of them: halves of odd sides are
    rounded, and the long side would differ by a pixel."""
    height, width = image.shape[1:] if sides is None else sides
    short = min(height, width)
    height, width = (max(preprocess.crop, preprocess.resize * side // short) for side in (height, width))
    top, left = (round((side - preprocess.crop) / 2) for side in (height, width))
    return resized_crop(image, (height, width), (top, left, preprocess.crop, preprocess.crop))
