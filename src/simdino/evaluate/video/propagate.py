"""The first frame's mask carried through a video by the likeness of patches: DINO's label propagation.

eval_video_segmentation.py at 7c446df (Jabri et al. 2020 before it). No training: a patch takes the labels of the
patches near it, in the first frame and the last few, that are most like it. What is computed equals the product of all
patches with all; only the products inside the window are made, a tile of the grid at a time.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from simdino.contracts import InputError, unit
from simdino.data.annotated import Exif
from simdino.data.views import resize
from simdino.evaluate.segmentation.masks import write_mask
from simdino.evaluate.video import Propagation, Year
from simdino.evaluate.video.metrics import SequenceScore, VideoResult
from simdino.evaluate.video.sequences import Video, open_davis
from simdino.features.extract import inputs, patch_features, patch_of
from simdino.feedback import Progress, no_bar
from simdino.files import check_folder
from simdino.models.encoder import Encoder

Look = Callable[[Tensor], Tensor]
"""A frame uint8 [C, H, W] -> what is compared, float [h, w, D]."""

TILE = 8  # queries a side: a window of 25 patches needs 1.6 times the products that it keeps
LONG_STEP = 64  # pixels that DINO's long side is a multiple of
SCORED_FROM = 3  # frames: the first and the last do not count


@dataclass(frozen=True, kw_only=True)
class Known:
    """A frame whose labels are known, hard or soft."""

    features: Tensor  # [h, w, D], unit norm
    labels: Tensor  # [h, w, C], sums to 1


def carry(query: Tensor, known: Sequence[Known], recipe: Propagation) -> Tensor:
    """Soft labels [h, w, C] of a frame's features [h, w, D], unit norm, from frames of the same grid.

    Of the patches at most `radius` away in both directions in any known frame, those whose cosine reaches the `nearest`
    highest (ties are all kept) give their labels, weighted by exp(cosine/temperature) over the sum of the weights."""
    out = query.new_empty(*query.shape[:2], known[0].labels.shape[-1])
    tiled = product(*(tiles(side, recipe.radius) for side in query.shape[:2]))
    for (rows, near_rows, in_rows), (columns, near_columns, in_columns) in tiled:
        tile = query[rows, columns]
        keys = torch.stack([frame.features[near_rows, near_columns] for frame in known]).flatten(0, 2)  # [t R S, D]
        labels = torch.stack([frame.labels[near_rows, near_columns] for frame in known]).flatten(0, 2)
        near = (in_rows[:, None, :, None] & in_columns[:, None, :]).flatten(2).flatten(0, 1).to(tile.device)  # [q, R S]
        cosines = (tile.flatten(0, 1) @ keys.T).unflatten(1, (len(known), -1))
        cosines = cosines.masked_fill_(~near[:, None], -torch.inf).flatten(1)
        highest = cosines.topk(min(recipe.nearest, cosines.shape[1]), dim=1).values
        # From the highest, so that nothing overflows: the sum of the weights divides it out again.
        weights = cosines.sub(highest[:, :1]).div_(recipe.temperature).exp_()
        weights = weights.masked_fill_(cosines < highest[:, -1:], 0)
        out[rows, columns] = (weights @ labels / weights.sum(1, keepdim=True)).unflatten(0, tile.shape[:2])
    return out


def tiles(size: int, radius: int) -> list[tuple[slice, slice, Tensor]]:
    """The tiles of a side of `size` patches: the rows (or columns) of each, those that its windows reach, and which of
    these are in the window of which row, bool [rows, reached]."""
    found: list[tuple[slice, slice, Tensor]] = []
    for start in range(0, size, TILE):
        rows = slice(start, min(start + TILE, size))
        reached = slice(max(0, start - radius), min(rows.stop + radius, size))
        apart = torch.arange(rows.start, rows.stop)[:, None] - torch.arange(reached.start, reached.stop)
        found.append((rows, reached, apart.abs() <= radius))
    return found


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
        features = unit(look(resize(frame, sides, interpolation="bilinear")))
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


def one_hot(mask: NDArray[np.uint8], grid: tuple[int, int]) -> Tensor:
    """A mask uint8 [H, W] -> labels [h, w, 1 + objects] of its patches: that of the pixel in the middle of each."""
    return F.one_hot(nearest_pixel(torch.from_numpy(mask), grid).long(), int(mask.max()) + 1)


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


def follow_all(
    look: Look, encoder: Encoder, data: Path, recipe: Propagation, *,
    out: Path | None = None, year: Year | None = None, exif: Exif = "turn", progress: Progress = no_bar,
) -> VideoResult:  # fmt: skip
    """The result of looking at the frames in one way; of the encoder only the patch size and channels count."""
    patch = patch_of(encoder)
    if out is not None:
        check_folder(out, option="--out")
    year, videos = open_davis(data, year, exif=exif, values=encoder.preprocess.values)
    counts = {one.name: count_of(one) for one in videos}
    scores = {one.name: SequenceScore(one.name, counts[one.name]) for one in videos if one.annotated}
    frames = sum(len(one) for one in videos)
    todo = all_masks(videos, look, patch, encoder.in_chans, recipe)
    for one, i, mask in progress(todo, f"frames of DAVIS {year}", frames):
        if one.annotated and 0 < i < len(one) - 1:
            scores[one.name].add(mask, one.mask(i))
        if out is not None:
            write_mask(mask, out / one.name / f"{one.frames[i].stem}.png", one.palette())
    return VideoResult(
        year=year, frames=frames, objects=tuple(row for score in scores.values() for row in score.objects()),
        unscored=tuple(one.name for one in videos if not one.annotated), turned=sum(one.turned() for one in videos),
    )  # fmt: skip


def count_of(one: Video) -> int:
    """Objects in the first mask. Raises InputError for none, and for too few frames to score."""
    count = int(one.mask(0).max(initial=0))
    if not count:
        hint = "" if one.whole else "; 255 is no object in a list of 2017: try --year 2016 where it marks one"
        raise InputError(f"data: sequence {one.name}: the first mask '{one.masks[0]}' has no object to follow{hint}")
    if one.annotated and len(one) < SCORED_FROM:
        raise InputError(
            f"data: sequence {one.name} has {len(one)} frames; the first and the last are not scored, so give 3 or more"
        )
    return count


def all_masks(
    videos: Iterable[Video], look: Look, patch: int, channels: int, recipe: Propagation
) -> Iterator[tuple[Video, int, NDArray[np.uint8]]]:
    """(video, frame, mask) of every frame, one at a time."""
    for one in videos:
        frames = (one.frame(i, channels) for i in range(len(one)))
        for i, mask in enumerate(follow(frames, one.mask(0), look, patch, recipe)):
            yield one, i, mask
