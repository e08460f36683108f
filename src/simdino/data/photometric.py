"""Crops -> views: colour jitter, greyscale, blur, solarisation and normalisation, batched on the training device.

The recipe is DINO's (facebookresearch/dino, main_dino.py at 7c446df): jitter in a random order with probability 0.8,
grey 0.2, Gaussian blur and solarisation with one probability each for the first global, the second global and the local
crops. Every number comes from the image's rng key. Images of one channel get only what makes sense for them:
brightness, contrast, blur and solarisation. Of other numbers of channels than 1 and 3 each is a measurement of its own:
each gets a brightness and a contrast of its own, and all the same blur; hue, grey and solarisation have no meaning. On
CPUs `photometric_cpu` does the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
    """Turn crops [v, B, C, h, w], uint8 or float32 in [0, 1], into normalised float32 views of the same shape, on the
    same device.

    keys: int64 [B] on the CPU. first: the index of the first of these views among the views of an image."""
    views = torch.empty(crops.shape, dtype=torch.float32, device=crops.device)
    for i, crop in enumerate(crops):
        chosen = chosen_for(keys, first + i, channels=crop.shape[1], config=config)
        if crop.device.type == "cpu":
            on_cpu(crop, views[i], chosen, mean=mean, std=std)
        else:
            views[i] = normalise(distort(to_unit_range(crop), chosen), mean=mean, std=std)
        if config.noise:
            views[i] += noise(keys, first + i, crop.shape[1:], config=config, device=views.device)
        if chosen.lost is not None:
            views[i].masked_fill_(torch.from_numpy(chosen.lost).to(views.device)[..., None, None], 0)
    return views


def on_cpu(crop: Tensor, view: Tensor, chosen: Distortions, *, mean: Sequence[float], std: Sequence[float]) -> None:
    """Fill one view of all images [B, C, h, w] with the compiled operations."""
    from simdino.data import photometric_cpu  # noqa: PLC0415 (numba, where it is used)

    photometric_cpu.distort(
        np.ascontiguousarray(crop.numpy()), view.numpy(), chosen.order, chosen.factors, chosen.bands, chosen.grey,
        chosen.sigma, chosen.solarized, np.array(mean, np.float32), np.array(std, np.float32), chosen.radius,
        chosen.reflect, np.float32(1 if crop.is_floating_point() else 255),
    )  # fmt: skip


def noise(keys: Tensor, view: int, shape: torch.Size, *, config: ViewsConfig, device: torch.device) -> Tensor:
    """Return normal noise [B, C, h, w] for one view of each image, whose std is uniform up to `config.noise`.

    Each number is a function of its image's key, the view and its place: two hashes of them (the finaliser of
    MurmurHash3, public domain) by the method of Box and Muller. So it is the same on every device but for rounding."""
    draws = torch.from_numpy(counters.uniform(keys.numpy(), counters.NOISE + view, 3))
    stds, seeds = config.noise * draws[:, 0].float(), (draws[:, 1:] * 2**32).long()
    places = torch.arange(shape.numel(), device=device) * 0x9E3779B9
    first, second = (hashed(seed.to(device)[:, None] + places) for seed in seeds.T)
    normal = (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()
    return stds.to(device)[:, None, None, None] * normal.unflatten(1, shape)


def hashed(x: Tensor) -> Tensor:
    """Return the low 32 bits of int64 numbers as well mixed numbers in (0, 1), float32."""
    low = 0xFFFFFFFF
    x = x & low
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & low
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & low
    x = x ^ (x >> 16)
    return ((x >> 8).float() + 0.5) / 2**24


def to_unit_range(images: Tensor) -> Tensor:
    """Return images as float32 in [0, 1]; those that are stay as they are."""
    return images if images.is_floating_point() else images.float().div_(255)


def as_kind(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an image, uint8 or float32 in [0, 1], as one of these two."""
    if image.dtype == dtype:
        return image
    return to_unit_range(image) if dtype.is_floating_point else (255 * image).round().to(dtype)


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
    bands: NDArray[np.float32]  # [B, 2, C] brightness and contrast of each channel; C = 0 where all have the same
    lost: NDArray[np.bool_] | None  # [B, C], the channels that are taken away, if any
    grey: NDArray[np.bool_]  # [B]
    sigma: NDArray[np.float32]  # [B], of the blur in pixels; 0: no blur
    solarized: NDArray[np.bool_]  # [B]
    radius: int  # of the blur in pixels, from the configuration: one from the batch's sigmas would mix images
    reflect: bool  # whether the blur reflects edges; otherwise it repeats them


def chosen_for(keys: Tensor, view: int, *, channels: int, config: ViewsConfig) -> Distortions:
    """Return what happens to the view of this index of images with so many channels."""
    chosen = distortions(view_draws(keys, view), config=config, view=view, colour=channels == 3)
    if config.channel_dropout and channels > 1:
        draws = counters.uniform(keys.numpy(), counters.LOST + view, 2)
        one = np.floor(channels * draws[:, 1])[:, None] == np.arange(channels)
        chosen = replace(chosen, lost=one & (draws[:, :1] < config.channel_dropout))
    if channels in (1, 3):
        return chosen
    draws = counters.uniform(keys.numpy(), counters.BANDS + view, 2 * channels).reshape(-1, 2, channels)
    factors = [
        jitter_factor(draws[:, i], strength, i) for i, strength in enumerate((config.brightness, config.contrast))
    ]
    bands = np.stack(factors, axis=1).astype(np.float32)
    return replace(chosen, bands=bands, solarized=np.zeros_like(chosen.solarized))


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
        bands=np.zeros((len(draws), 2, 0), np.float32),
        lost=None,
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
            rows = chosen.order[:, slot] == number
            if not chosen.bands.size:
                apply(images, rows, operation, chosen.factors[:, number])
            elif number < 2:
                apply(images, rows, (brightness, contrast_of_each)[number], chosen.bands[:, number])
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
        factor = torch.from_numpy(factors[chosen]).to(images.device)
        factor = factor.view(len(chosen), -1, 1, 1)
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


def contrast_of_each(x: Tensor, factor: Tensor) -> Tensor:
    """Scale each channel around its own mean."""
    return torch.lerp(x.mean((2, 3), keepdim=True).expand_as(x), x, factor).clamp_(0, 1)


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
