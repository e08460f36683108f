"""Crops -> views: colour jitter, greyscale, blur, solarisation and normalisation, batched on the training device.

The recipe is DINO's (facebookresearch/dino, main_dino.py at 7c446df): jitter in a random order with probability 0.8,
grey 0.2, Gaussian blur and solarisation with one probability each for the first global, the second global and the local
crops. Every number comes from the image's rng key. Images of one channel get only what makes sense for them:
brightness, contrast, blur and solarisation. On CPUs `photometric_cpu` does the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simdino import rng as counters
from simdino.config import ViewsConfig

GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as in Pillow
DRAWS = 14


def photometric(
    crops: Tensor, keys: Tensor, *, config: ViewsConfig, first: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Turn uint8 crops [v, B, C, h, w] into normalised float32 views of the same shape, on the same device.

    keys: int64 [B] on the CPU. first: the index of the first of these views among the views of an image."""
    views = torch.empty(crops.shape, dtype=torch.float32, device=crops.device)
    for i, crop in enumerate(crops):
        chosen = distortions(view_draws(keys, first + i), config=config, view=first + i, colour=crop.shape[1] == 3)
        if crop.device.type == "cpu":
            on_cpu(crop, views[i], chosen, mean=mean, std=std)
        else:
            views[i] = normalise(distort(to_unit_range(crop), chosen), mean=mean, std=std)
    return views


def on_cpu(crop: Tensor, view: Tensor, chosen: Distortions, *, mean: Sequence[float], std: Sequence[float]) -> None:
    """Fill one view of all images [B, C, h, w] with the compiled operations."""
    from simdino.data import photometric_cpu  # noqa: PLC0415 (numba, where it is used)

    photometric_cpu.distort(
        np.ascontiguousarray(crop.numpy()), view.numpy(), chosen.order, chosen.factors, chosen.grey, chosen.sigma,
        chosen.solarized, np.array(mean, np.float32), np.array(std, np.float32), chosen.radius, chosen.reflect,
    )  # fmt: skip


def to_unit_range(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1]."""
    return images.float().div_(255)


def normalise(images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract the mean and divide by the std of each channel, [..., C, H, W]."""
    shape = (-1, 1, 1)
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)


def view_draws(keys: Tensor, view: int) -> NDArray[np.float64]:
    """Return the random numbers for one view of each image: float64 [B, DRAWS]."""
    return counters.uniform(keys.numpy(), counters.PHOTOMETRY + view, DRAWS)


@dataclass(frozen=True, kw_only=True)
class Distortions:
    """What happens to one view of each of B images."""

    order: NDArray[np.int64]  # [B, 4]: brightness 0, contrast 1, saturation 2, hue 3, in their order; -1: nothing
    factors: NDArray[np.float32]  # [B, 4], indexed by the operation's number
    grey: NDArray[np.bool_]  # [B]
    sigma: NDArray[np.float32]  # [B], of the blur in pixels; 0: no blur
    solarized: NDArray[np.bool_]  # [B]
    radius: int  # of the blur in pixels, from the configuration: one from the batch's sigmas would mix images
    reflect: bool  # whether the blur reflects edges; otherwise it repeats them


def distortions(draws: NDArray[np.float64], *, config: ViewsConfig, view: int, colour: bool) -> Distortions:
    """Return what the numbers [B, DRAWS] choose for the view of this index among the views of an image."""
    group = 2 if view >= config.global_views else min(view, 1)  # local, second or first global
    order = np.where((draws[:, 0] < config.jitter)[:, None], draws[:, 1:5].argsort(axis=1), -1)
    if not colour:
        order[order > 1] = -1
    strengths = (config.brightness, config.contrast, config.saturation, config.hue)
    factors = [jitter_factor(draws[:, 5 + number], strength, number) for number, strength in enumerate(strengths)]
    low, high = config.blur_sigma
    return Distortions(
        order=order,
        factors=np.stack(factors, axis=1).astype(np.float32),
        grey=(draws[:, 9] < config.grey) & colour,
        sigma=np.where(draws[:, 10] < config.blur[group], low + (high - low) * draws[:, 11], 0).astype(np.float32),
        solarized=draws[:, 12] < config.solarize[group],
        radius=max(1, ceil(3 * high)) if config.blur_radius is None else config.blur_radius,
        reflect=config.blur_edges == "reflect",
    )


def distort(images: Tensor, chosen: Distortions) -> Tensor:
    """Distort images [B, C, h, w] in [0, 1] in place, each as chosen; they stay in [0, 1]."""
    for slot in range(4):
        for number, operation in enumerate((brightness, contrast, saturation, hue)):
            apply(images, chosen.order[:, slot] == number, operation, chosen.factors[:, number])
    apply(images, chosen.grey, lambda x, _: grey(x).expand_as(x), chosen.sigma)
    kernel: dict[str, Any] = {"radius": chosen.radius, "reflect": chosen.reflect}
    apply(images, chosen.sigma > 0, lambda x, sigma: gaussian_blur(x, sigma, **kernel), chosen.sigma)
    apply(images, chosen.solarized, lambda x, _: solarize(x), chosen.sigma)
    return images


def jitter_factor(draws: NDArray[np.float64], strength: float, number: int) -> NDArray[np.float64]:
    """Return factors uniform in [max(0, 1 - s), 1 + s]; for hue (number 3), shifts uniform in [-s, s] turns."""
    if number == 3:
        return strength * (2 * draws - 1)
    low = max(0.0, 1 - strength)
    return low + (1 + strength - low) * draws


def apply(
    images: Tensor, rows: NDArray[np.bool_], operation: Callable[[Tensor, Tensor], Tensor], factors: NDArray[np.float32]
) -> None:
    """Apply the operation, in place, to the given rows of `images` [B, C, h, w] with their factors."""
    chosen = np.flatnonzero(rows)
    if len(chosen):
        index = torch.from_numpy(chosen).to(images.device)
        factor = torch.from_numpy(factors[chosen]).to(images.device).view(-1, 1, 1, 1)
        images[index] = operation(images[index], factor)


def grey(x: Tensor) -> Tensor:
    """Return the luminance [N, 1, h, w]."""
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
    """Invert values at or above the threshold of 128 of 255."""
    return torch.where(x >= 128 / 255, 1 - x, x)


def gaussian_blur(x: Tensor, sigma: Tensor, *, radius: int = 6, reflect: bool = False) -> Tensor:
    """Blur each image with its own sigma (pixels), edges repeated or reflected.

    A blur is two small matrix products per channel, rows and columns times a band matrix: any mix of sigmas takes one
    call and no depthwise convolution."""
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (offsets / sigma.view(-1, 1)) ** 2)
    weights = weights / weights.sum(1, keepdim=True)  # [N, 2 radius + 1]
    height, width = x.shape[-2:]
    rows = (weights @ shifts(height, radius, reflect).to(x)).view(-1, 1, height, height)
    columns = rows if width == height else (weights @ shifts(width, radius, reflect).to(x)).view(-1, 1, width, width)
    return rows @ x @ columns.mT


@lru_cache(maxsize=16)
def shifts(size: int, radius: int, reflect: bool = False) -> Tensor:
    """Return the matrices that shift a line of `size` pixels by -radius ... radius, float32 [2 radius + 1, size *
    size]: a blur is their weighted sum. Edges are repeated, or with `reflect` mirrored at the outermost pixels."""
    source = torch.arange(size) + torch.arange(-radius, radius + 1)[:, None]
    if reflect:
        last = max(1, size - 1)
        source = last - (source % (2 * last) - last).abs()
    source = source.clamp(0, size - 1)
    return torch.nn.functional.one_hot(source, size).float().flatten(1)
