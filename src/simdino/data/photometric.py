"""Crops -> views: colour jitter, greyscale, blur, solarisation and normalisation, batched on the training device.

DINO's recipe (facebookresearch/dino, main_dino.py at 7c446df): jitter in a random order with probability 0.8, grey 0.2,
Gaussian blur and solarisation with a probability of their own for the first global, the second global and the local
views. Every number comes from the image's key. Images of one channel get what has a meaning for them: brightness,
contrast, blur and solarisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simdino.config import ViewsConfig
from simdino.data import counters

GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as in Pillow
DRAWS = 14


def photometric(
    crops: Tensor, keys: Tensor, *, config: ViewsConfig, first: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """uint8 crops [v, B, C, h, w] -> normalised float32 views of the same shape.

    keys: int64 [B] on the CPU. `first` is the number of the first of these views among the views of an image.
    """
    views = [
        augment(to_unit_range(crop), view_draws(keys, first + i), config=config, view=first + i)
        for i, crop in enumerate(crops)
    ]
    return normalise(torch.stack(views), mean=mean, std=std)


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]."""
    return images.float().div_(255)


def normalise(images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract the mean and divide by the deviation of each channel, [..., C, H, W]."""
    shape = (-1, 1, 1)
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)


def view_draws(keys: Tensor, view: int) -> NDArray[np.float64]:
    """The random numbers of one view of each image: float64 [B, DRAWS]."""
    return counters.uniform(keys.numpy(), counters.PHOTOMETRY + view, DRAWS)


def augment(images: Tensor, draws: NDArray[np.float64], *, config: ViewsConfig, view: int) -> Tensor:
    """Distort images [B, C, h, w] in [0, 1] by the numbers [B, DRAWS]; the range stays [0, 1]."""
    group = 2 if view >= config.global_views else min(view, 1)  # local, second or first global
    colour = images.shape[1] == 3
    jittered = draws[:, 0] < config.jitter
    strengths = (config.brightness, config.contrast, config.saturation, config.hue)
    operations = (brightness, contrast, saturation, hue) if colour else (brightness, contrast)
    order = draws[:, 1:5].argsort(axis=1)
    for slot in range(4):
        for number, operation in enumerate(operations):
            rows = jittered & (order[:, slot] == number)
            images = apply(images, rows, operation, jitter_factor(draws[:, 5 + number], strengths[number], number))
    if colour:
        images = apply(images, draws[:, 9] < config.grey, lambda x, _: grey(x).expand_as(x), draws[:, 9])
    sigma = config.blur_sigma[0] + (config.blur_sigma[1] - config.blur_sigma[0]) * draws[:, 11]
    radius = max(1, ceil(3 * config.blur_sigma[1]))  # of the configuration: a batch's own would leak between images
    images = apply(images, draws[:, 10] < config.blur[group], lambda x, s: gaussian_blur(x, s, radius=radius), sigma)
    return apply(images, draws[:, 12] < config.solarize[group], lambda x, _: solarize(x), draws[:, 12])


def jitter_factor(draws: NDArray[np.float64], strength: float, number: int) -> NDArray[np.float64]:
    """Factors uniform in [max(0, 1 - s), 1 + s]; for hue (number 3), shifts uniform in [-s, s] turns."""
    if number == 3:
        return strength * (2 * draws - 1)
    low = max(0.0, 1 - strength)
    return low + (1 + strength - low) * draws


def apply(
    images: Tensor,
    rows: NDArray[np.bool_],
    operation: Callable[[Tensor, Tensor], Tensor],
    factors: NDArray[np.float64],
) -> Tensor:
    """`images` [B, C, h, w] with the operation applied, in place, to the given rows with their factors."""
    chosen = np.flatnonzero(rows)
    if len(chosen):
        index = torch.from_numpy(chosen).to(images.device)
        factor = torch.from_numpy(factors[chosen]).to(images.device, images.dtype).view(-1, 1, 1, 1)
        images[index] = operation(images[index], factor)
    return images


def grey(x: Tensor) -> Tensor:
    """Luminance [N, 1, h, w]."""
    return x if x.shape[1] == 1 else (x * x.new_tensor(GREY).view(-1, 1, 1)).sum(1, keepdim=True)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Scale towards or away from black."""
    return (x * factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scale around the mean luminance of the image."""
    mean = grey(x).mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean.expand_as(x), x, factor).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Scale around the luminance of each pixel."""
    return torch.lerp(grey(x).expand_as(x), x, factor).clamp_(0, 1)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of HSV by `shift` turns, keeping saturation and value."""
    value, _ = x.max(1, keepdim=True)
    chroma = value - x.min(1, keepdim=True).values
    red, green, blue = x.split(1, dim=1)
    safe = torch.where(chroma == 0, 1, chroma)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = sector + 6 * shift
    offsets = x.new_tensor([5, 3, 1]).view(-1, 1, 1)
    k = (offsets + turned) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)


def solarize(x: Tensor) -> Tensor:
    """Invert what is at or above the threshold of 128 of 255."""
    return torch.where(x >= 128 / 255, 1 - x, x)


def gaussian_blur(x: Tensor, sigma: Tensor, *, radius: int = 6) -> Tensor:
    """Blur each image by its own sigma (pixels), edges repeated: rows and columns times a band matrix.

    Two small matrix products per channel: any mix of sigmas in one call, and no depthwise convolution.
    """
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (offsets / sigma.view(-1, 1)) ** 2)
    weights = weights / weights.sum(1, keepdim=True)  # [N, 2 radius + 1]
    height, width = x.shape[-2:]
    rows = (weights @ shifts(height, radius).to(x)).view(-1, 1, height, height)
    columns = rows if width == height else (weights @ shifts(width, radius).to(x)).view(-1, 1, width, width)
    return rows @ x @ columns.mT


@lru_cache(maxsize=16)
def shifts(size: int, radius: int) -> Tensor:
    """The matrices that shift a line of `size` pixels by -radius ... radius with edges repeated, float32
    [2 radius + 1, size * size]: a blur is their weighted sum."""
    source = (torch.arange(size) + torch.arange(-radius, radius + 1)[:, None]).clamp(0, size - 1)
    return torch.nn.functional.one_hot(source, size).float().flatten(1)
