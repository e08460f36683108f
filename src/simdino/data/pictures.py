"""IMAGES -> pictures of their own shapes, for those who look at them one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.data.decode import BrokenImage, is_image_name
from simdino.data.sources import FileSource, open_dataset
from simdino.data.stores import FolderStore
from simdino.data.views import resized_crop

LONGEST = 4  # times the short side: a panorama's ends are cut, or its patches would fill the memory


def open_pictures(images: str) -> Source:
    """One picture by its path, or whatever `open_dataset` takes."""
    path = Path(images).expanduser()
    if images and path.is_file() and is_image_name(path.name):
        return FileSource(path.stem, FolderStore(path.parent, [path.name]), [path.name])
    return open_dataset(images)


def read_pictures(
    source: Source, *, channels: int, count: int, at_least: int
) -> tuple[list[str], list[Tensor], dict[str, str]]:
    """Names and pixels uint8 [C, H, W] of at most `count` readable pictures, the first of a fixed shuffle, in the
    source's order; the broken ones met on the way and why they are.

    Raises InputError where none is readable."""
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
    """uint8 [C, H, W] -> uint8 [C, h, w] with sides that `multiple` divides: the short side becomes `short`, rounded
    down but one multiple at least; the aspect is kept (up to 4 : 1), what is over on the long side cut off evenly."""
    height, width = image.shape[1:]
    side = max(1, short // multiple) * multiple
    scale = side / min(height, width)
    sides = max(side, round(height * scale)), max(side, round(width * scale))
    height, width = (min(length // multiple * multiple, LONGEST * side) for length in sides)
    box = (sides[0] - height) // 2, (sides[1] - width) // 2, height, width
    return resized_crop(image, sides, box).contiguous()


def as_rgb(image: Tensor) -> Tensor:
    """uint8 [C, H, W] -> uint8 [3, H, W]: of three or more channels the first three, else the first as grey."""
    if image.dtype != torch.uint8 or image.dim() != 3:
        raise ValueError(f"a picture is uint8 [C, H, W], not {image.dtype} {list(image.shape)}")
    return image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
