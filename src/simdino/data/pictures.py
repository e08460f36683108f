"""Images in their own shapes, for what looks at them one by one."""

import numpy as np
import torch
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.data.opening import BrokenImage
from simdino.data.views import resized_crop

SAMPLED = 100_000  # pixels of a channel that tell its range
LONGEST = 4  # times the short side: a panorama's ends are cut, otherwise its patches would fill the memory


def read_pictures(
    source: Source, *, channels: int, count: int, at_least: int
) -> tuple[list[str], list[Tensor], dict[str, str]]:
    """Return names and pixels [C, H, W] of at most `count` readable images, the first of a fixed shuffle, in the
    source's order, and the broken images met on the way with their reasons.

    Raises InputError where no image is readable."""
    order = np.arange(len(source)) if len(source) <= count else np.random.default_rng(0).permutation(len(source))
    found: dict[int, Tensor] = {}
    broken: dict[str, str] = {}
    for i in map(int, order):
        if len(found) == count:
            break
        try:
            found[i] = source.read(i, channels, at_least=at_least)
        except BrokenImage as error:
            broken[source.names[i]] = error.reason
    if not found:
        name, reason = next(iter(broken.items()), ("", "it has no images"))
        raise InputError(f"no readable image in {source.name}: {len(broken)} tried, {name or 'none'}: {reason}")
    return [source.names[i] for i in sorted(found)], [found[i] for i in sorted(found)], broken


def fitted(image: Tensor, *, short: int, multiple: int) -> Tensor:
    """Resize and crop [C, H, W] to [C, h, w] with sides that `multiple` divides. The short side becomes
    `short`, rounded down to a multiple but at least one; the aspect ratio is kept up to 4 : 1, and the rest of the long
    side is cut evenly at both ends."""
    height, width = image.shape[1:]
    side = max(1, short // multiple) * multiple
    scale = side / min(height, width)
    sides = max(side, round(height * scale)), max(side, round(width * scale))
    height, width = (min(length // multiple * multiple, LONGEST * side) for length in sides)
    box = (sides[0] - height) // 2, (sides[1] - width) // 2, height, width
    return resized_crop(image, sides, box).contiguous()


def as_rgb(image: Tensor) -> Tensor:
    """Return [C, H, W] as uint8 [3, H, W] for a person's eyes: the first three of three or more channels, else the
    first as grey. Of deep images each channel's values between its lowest and highest hundredth fill the range."""
    if image.dim() != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise ValueError(f"an image is uint8 or float [C, H, W], not {image.dtype} {list(image.shape)}")
    if image.is_floating_point():
        shown = image[:3].float()
        flat = shown.flatten(1)[:, :: max(1, shown[0].numel() // SAMPLED)]
        low, high = (flat.quantile(q, dim=1).view(-1, 1, 1) for q in (0.01, 0.99))
        image = (255 * ((shown - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)).round().to(torch.uint8)
    return image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
