"""Tiles: an image, and over it what an encoder attends to, its patch features as colours, and the objects it parts."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor
from torch import Tensor
from torch.nn import functional as F

from simdino.data.pictures import as_rgb
from simdino.data.views import resize
from simdino.features.attention import AttentionMaps, mass_mask
from simdino.features.pca import Principal
from simdino.show.page import PALETTE
from simdino.show.sheets import PAGE_TILE, Tile, to_picture

Pixels = NDArray[np.floating]
HEAT = ((14, 11, 46), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""Colours from the least to the greatest value: dark to bright in even steps, readable in grey and without red and
green."""

FOCUS = 0.995  # quantile of a map that is brightest: a single extreme patch would leave the rest dark
DIM = 0.3  # brightness of the background
TINT = 0.55  # share of a mask's colour in the pixels it covers
MASKS = [ImageColor.getrgb(colour) for colour in PALETTE]


def mean_tiles(maps: AttentionMaps, mass: float) -> list[Tile]:
    """The picture, the mean over heads, and where most of that lies."""
    return [
        ("image", to_picture(maps.image)),
        ("mean of the heads", with_heat(maps.image, maps.mean)),
        (f"{100 * mass:.0f} % of it", kept(maps.image, mass_mask(maps.mean, mass))),
    ]


def head_tiles(maps: AttentionMaps, mass: float) -> list[list[Tile]]:
    """The heads by themselves, and below each where most of it lies."""
    numbered = list(enumerate(maps.heads, start=1))
    return [
        [(f"head {i}", to_image(heat(head, size=sides(maps.image)))) for i, head in numbered],
        [(f"{100 * mass:.0f} % of head {i}", kept(maps.image, mass_mask(head, mass))) for i, head in numbered],
    ]


def principal_tiles(principal: Principal, *, foreground: bool) -> list[Tile]:
    """The picture, its patches in colours, and where asked for what was taken for foreground."""
    image, front = principal.image, principal.foreground
    tiles = [("image", to_picture(image)), ("features", coloured(image, principal.colours, front))]
    return [*tiles, ("foreground", kept(image, front))] if foreground else tiles


def mask_tiles(picture: Tensor, masks: Tensor) -> list[Tile]:
    """The picture, and its objects bool [n, H, W] in colours."""
    return [("image", to_picture(picture)), ("objects", tinted(picture, masks, longest=2 * PAGE_TILE))]


def to_image(pixels: Pixels) -> Image.Image:
    """Return RGB [H, W, 3] in [0, 255] as an image."""
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def sides(image: Tensor) -> tuple[int, int]:
    """Return height and width of [C, H, W]."""
    height, width = image.shape[1:]
    return height, width


def as_floats(image: Tensor) -> Pixels:
    """Return uint8 [C, H, W] as RGB float32 [H, W, 3] in [0, 255]."""
    return as_rgb(image).permute(1, 2, 0).float().cpu().numpy()


def grey(image: Pixels) -> Pixels:
    """Return the image without its colours: [H, W, 3]."""
    return (image @ np.array([0.299, 0.587, 0.114], np.float32))[..., None].repeat(3, axis=-1)


def heat(values: Tensor, *, size: tuple[int, int], smooth: bool = False) -> Pixels:
    """Return the colours [H, W, 3] of a map [h, w], scaled to its own range, enlarged patch by patch or smoothly."""
    large = enlarged(scaled(values), size, smooth=smooth).numpy()
    places = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(large, places, channel) for channel in zip(*HEAT, strict=True)], axis=-1)


def scaled(values: Tensor) -> Tensor:
    """Return a map scaled to [0, 1]; a constant one becomes 0."""
    low, high = values.min(), torch.quantile(values.float(), FOCUS)
    return ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


def enlarged(values: Tensor, size: tuple[int, int], *, smooth: bool) -> Tensor:
    """Return a map [h, w] of patches as a map [H, W] of pixels."""
    return F.interpolate(values.float()[None, None], size, mode="bicubic" if smooth else "nearest")[0, 0].clamp(0, 1)


def with_heat(image: Tensor, values: Tensor) -> Image.Image:
    """Return an image uint8 [C, H, W] in grey under the heat of its patches [h, w], the hotter the more opaque."""
    under = grey(as_floats(image))
    strength = 0.35 + 0.4 * enlarged(scaled(values), sides(image), smooth=True).numpy()[..., None]
    return to_image(under * (1 - strength) + heat(values, size=sides(image), smooth=True) * strength)


def kept(image: Tensor, mask: Tensor) -> Image.Image:
    """Return the image with patches or pixels outside the mask [h, w] grey and dark."""
    return on_dark(image, as_floats(image), mask)


def coloured(image: Tensor, colours: Tensor, foreground: Tensor) -> Image.Image:
    """Return the colours [h, w, 3] of foreground patches over the image, which is grey and dark elsewhere."""
    painted = F.interpolate(colours.permute(2, 0, 1)[None].float(), sides(image), mode="nearest")[0].permute(1, 2, 0)
    return on_dark(image, 255 * painted.numpy(), foreground)


def on_dark(image: Tensor, pixels: Pixels, mask: Tensor) -> Image.Image:
    """Return pixels [H, W, 3] inside the mask [h, w] and the image, grey and dark, outside."""
    inside = enlarged(mask, sides(image), smooth=False).bool().numpy()[..., None]
    return to_image(np.where(inside, pixels, DIM * grey(as_floats(image))))


def tinted(image: Tensor, masks: Tensor, *, longest: int) -> Image.Image:
    """Return an image uint8 [C, H, W], resized to `longest` pixels, with its masks bool [n, H, W] each in a colour and
    outlined; the first lies on top."""
    height, width = sides(image)
    ratio = longest / max(height, width)
    size = max(1, round(height * ratio)), max(1, round(width * ratio))
    pixels = as_floats(resize(image, size))
    painted = pixels.copy()
    for i, mask in reversed(list(enumerate(masks))):
        colour, large = np.array(MASKS[i % len(MASKS)], np.float32), enlarged(mask, size, smooth=False).bool()
        painted[large.numpy()] = (1 - TINT) * pixels[large.numpy()] + TINT * colour
        painted[outline(large).numpy()] = colour
    return to_image(painted)


def outline(mask: Tensor) -> Tensor:
    """Return the pixels of a mask [H, W] within two pixels of its outside."""
    outside = (~mask).float()[None, None]
    return mask & F.max_pool2d(outside, 5, stride=1, padding=2)[0, 0].bool()
