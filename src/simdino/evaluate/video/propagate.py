"""The first frame's mask carried through a video by the likeness of patches: DINO's label propagation.

eval_video_segmentation.py at 7c446df (Jabri et al. 2020 before it). No training: a patch takes the labels of the
patches near it, in the first frame and the last few, that are most like it. What is computed equals the product of all
patches with all; only the products inside the window are made, a tile of the grid at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from simdino.contracts import unit
from simdino.evaluate.video.results import Propagation
from simdino.features.extract import inputs, patch_features, patch_of
from simdino.models.encoder import Encoder

Look = Callable[[Tensor], Tensor]
"""A frame uint8 [C, H, W] -> what is compared, float [h, w, D]."""

TILE = 8  # queries a side: a window of 25 patches needs 1.6 times the products that it keeps
LONG_STEP = 64  # pixels that DINO's long side is a multiple of


@dataclass(frozen=True, kw_only=True)
class Known:
    """A frame whose labels are known, hard or soft."""

    features: Tensor  # [h, w, D], unit norm
    labels: Tensor  # [h, w, C], sums to 1


def carry(query: Tensor, known: Sequence[Known], recipe: Propagation) -> Tensor:
    """Soft labels [h, w, C] of a frame's features [h, w, D], unit norm, from frames of the same grid.

    Of the patches at most `radius` away in both directions in any known frame, those whose cosine reaches the `nearest`
    highest (ties are all kept) give their labels, weighted by exp(cosine/temperature) over the sum of the weights."""
    height, width = query.shape[:2]
    out = query.new_empty(height, width, known[0].labels.shape[-1])
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            rows, columns = Span.at(top, height, recipe.radius), Span.at(left, width, recipe.radius)
            out[rows.inner, columns.inner] = carry_tile(query, known, rows, columns, recipe)
    return out


@dataclass(frozen=True, kw_only=True)
class Span:
    """Rows (or columns) of a tile, and those that its windows reach."""

    inner: slice
    outer: slice
    near: Tensor  # bool [inner, outer], whether a row is in the other's window

    @classmethod
    def at(cls, start: int, size: int, radius: int) -> Span:
        """The tile that starts at `start` of a grid of `size`."""
        inner = slice(start, min(start + TILE, size))
        outer = slice(max(0, start - radius), min(inner.stop + radius, size))
        apart = torch.arange(inner.start, inner.stop)[:, None] - torch.arange(outer.start, outer.stop)
        return cls(inner=inner, outer=outer, near=apart.abs() <= radius)


def carry_tile(query: Tensor, known: Sequence[Known], rows: Span, columns: Span, recipe: Propagation) -> Tensor:
    """`carry` for one tile: [rows, columns, C]."""
    tile = query[rows.inner, columns.inner]
    keys = torch.stack([frame.features[rows.outer, columns.outer] for frame in known]).flatten(0, 2)  # [t R S, D]
    labels = torch.stack([frame.labels[rows.outer, columns.outer] for frame in known]).flatten(0, 2)
    near = (rows.near[:, None, :, None] & columns.near[:, None, :]).flatten(2).flatten(0, 1).to(tile.device)  # [q, R S]
    cosines = (tile.flatten(0, 1) @ keys.T).unflatten(1, (len(known), -1))
    cosines = cosines.masked_fill_(~near[:, None], -torch.inf).flatten(1)
    highest = cosines.topk(min(recipe.nearest, cosines.shape[1]), dim=1).values
    # From the highest, so that nothing overflows: the sum of the weights divides it out again.
    weights = cosines.sub(highest[:, :1]).div_(recipe.temperature).exp_().masked_fill_(cosines < highest[:, -1:], 0)
    return (weights @ labels / weights.sum(1, keepdim=True)).unflatten(0, tile.shape[:2])


def follow(
    frames: Iterable[Tensor], first: NDArray[np.uint8], look: Look, patch: int, recipe: Propagation
) -> Iterator[NDArray[np.uint8]]:
    """The masks of a video's frames, the first as given, each uint8 [H, W] of the size of `first`.

    frames: uint8 [C, H, W], read one at a time. first: 0 is background, 1, 2, ... are objects. Memory does not grow
    with the video: the first frame and the last few are kept."""
    height, width = first.shape
    sides = frame_sides(height, width, patch=patch, size=recipe.size)
    grid = sides[0] // patch, sides[1] // patch
    start, recent = None, deque[Known](maxlen=recipe.last_frames)
    for frame in frames:
        features = unit(look(scaled(frame, sides)))
        if start is None:
            start = Known(features=features, labels=one_hot(first, grid).to(features))
            yield first
            continue
        soft = carry(features, [start, *recent], recipe)
        recent.append(Known(features=features, labels=soft))
        yield hard(soft, sides, (height, width))


def frame_sides(height: int, width: int, *, patch: int, size: int) -> tuple[int, int]:
    """Height and width that a frame is brought to: short side `size`, the long side in proportion, rounded down to a
    multiple of 64 as in DINO. Where the patch size does not divide both, or nothing would be left, both sides are
    rounded down to multiples of the patch."""
    short, long = sorted((height, width))
    long = size * long // short
    step = LONG_STEP if LONG_STEP % patch == size % patch == 0 and long >= LONG_STEP else patch
    short, long = max(patch, size // patch * patch), max(patch, long // step * step)
    return (long, short) if height > width else (short, long)


def scaled(frame: Tensor, sides: tuple[int, int]) -> Tensor:
    """uint8 [C, H, W] -> uint8 [C, *sides], bilinear, antialiased where it shrinks."""
    if frame.shape[1:] == sides:
        return frame
    return F.interpolate(frame[None], sides, mode="bilinear", antialias=True)[0]


def one_hot(mask: NDArray[np.uint8], grid: tuple[int, int]) -> Tensor:
    """A mask uint8 [H, W] -> labels [h, w, 1 + objects] of its patches: that of the pixel in the middle of each."""
    small = nearest_pixel(torch.from_numpy(mask.astype(np.uint8)), grid)
    return F.one_hot(small.long(), int(mask.max()) + 1)


def nearest_pixel(labels: Tensor, sides: tuple[int, int]) -> Tensor:
    """uint8 [H, W] -> uint8 [*sides] without mixing: the pixel nearest to each one's middle, as Pillow does it."""
    return F.interpolate(labels[None, None], sides, mode="nearest-exact")[0, 0]


def hard(soft: Tensor, sides: tuple[int, int], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Soft labels [h, w, C] -> the mask uint8 [*size]: each class enlarged to `sides` and stretched to [0, 1], the
    highest of them, enlarged to the frame. A class that is the same everywhere stays as it is, where DINO divides by
    0."""
    maps = F.interpolate(soft.permute(2, 0, 1)[None], sides, mode="bilinear", align_corners=False)[0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    maps = torch.where(high > low, (maps - low) / (high - low), maps)
    return nearest_pixel(maps.argmax(0).to(torch.uint8), size).cpu().numpy()


def patches_of(encoder: Encoder) -> Look:
    """Compares the encoder's patch tokens after the final norm."""
    return lambda frame: patch_features(encoder, frame[None])[0]


def colours_of(encoder: Encoder) -> Look:
    """Compares the pixels of each patch, with the mean and std of the encoder's images: what needs no encoder."""
    patch = patch_of(encoder)

    def look(frame: Tensor) -> Tensor:
        pixels = inputs(encoder, frame[None])
        height, width = pixels.shape[2] // patch, pixels.shape[3] // patch
        return F.unfold(pixels, patch, stride=patch)[0].T.unflatten(0, (height, width))

    return look
