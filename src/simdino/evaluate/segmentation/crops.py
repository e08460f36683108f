"""Images with masks -> what a segmentation head is trained and tested on: mmseg's recipe for ADE20K.

Training: scaled by a random factor, a random crop that one class does not fill, mirrored or not, colours distorted.
Testing: the short side brought to a size. Every random number comes from a key of (seed, pass, image), so that crops do
not depend on the number of workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from simdino import rng as counters
from simdino.contracts import InputError, Preprocess
from simdino.data.loader import SUBSTITUTES
from simdino.data.opening import BrokenImage
from simdino.data.photometric import brightness, hue, normalise, to_unit_range
from simdino.data.views import resize
from simdino.data.workers import in_order
from simdino.evaluate.segmentation.masks import IGNORED, Mask, Pairs, note

SIZE, OF_ENCODER = 512, 224  # pixels of a crop, for an encoder of images of so many
SCALES = (0.5, 2.0)
LONGEST = 4  # times the short side: an image of a greater aspect is made smaller instead
CAT_MAX_RATIO = 0.75
TRIES = 10
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32 / 255, 0.5, 0.5, 18 / 180  # of the range, factors 1 ± .5, of a turn

Batch = tuple[Tensor, Tensor, dict[str, str]]
"""Crops float32 [B, C, S, S], masks int64 [B, S, S], names and reasons of the broken."""
Whole = tuple[Tensor, Tensor] | BrokenImage
"""Image [C, h, w] and mask uint8 [H, W], which keeps its size."""


@dataclass(frozen=True)
class CropBatches:
    """`batches[t]` is batch t of `steps`: crops of `size` pixels, normalised. The images follow one another in a new
    order for each epoch. A broken image is replaced by another."""

    pairs: Pairs
    preprocess: Preprocess
    size: int
    batch: int
    steps: int
    seed: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        broken: dict[str, str] = {}
        crops, masks = zip(*(self._crop(i, key, broken) for i, key in self.samples(step)), strict=True)
        return torch.stack(crops), torch.stack(masks).long(), broken

    def samples(self, step: int) -> list[tuple[int, np.int64]]:
        """Which images make a batch, and the keys of their random numbers."""
        epochs, places = np.divmod(np.arange(step * self.batch, (step + 1) * self.batch), len(self.pairs))
        orders = {p: counters.permutation(self.seed, int(p), len(self.pairs)) for p in set(epochs.tolist())}
        ids = [int(orders[p][place]) for p, place in zip(epochs.tolist(), places, strict=True)]
        return list(zip(ids, counters.sample_keys(self.seed, epochs, ids), strict=True))

    def _crop(self, i: int, key: np.int64, broken: dict[str, str]) -> tuple[Tensor, Tensor]:
        """A crop of image i, or in place of a broken one of another that the key chooses."""
        others = counters.uniform(key, counters.SUBSTITUTE, SUBSTITUTES)[0] * len(self.pairs)
        for candidate in (i, *map(int, others)):
            try:
                return training_crop(self.pairs, candidate, self.preprocess, size=self.size, key=key)
            except BrokenImage as error:
                broken[error.name] = error.reason
        name, why = next(reversed(broken.items()))
        raise InputError(f"{SUBSTITUTES + 1} images in a row could not be read, the last {name}: {why}")


def crop_stream(crops: CropBatches, broken: dict[str, str], *, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The crops and masks of all steps; broken images are noted."""
    for images, masks, unreadable in in_order(crops, range(len(crops)), workers=workers):
        note(broken, unreadable, crops.pairs)
        yield images, masks


@dataclass(frozen=True)
class WholeImages:
    """Image i with its short side at `size` pixels, and its mask as it is."""

    pairs: Pairs
    channels: int
    size: int

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> Whole:
        try:
            image, mask = self.pairs.read(i, self.channels)
        except BrokenImage as error:
            return error
        return resize(image, scaled_sides(*mask.shape, short=self.size)), torch.from_numpy(mask)


def usual_size(of_encoder: int, short_side: int, patch: int) -> int:
    """Pixels of a crop's side, see `segment`."""
    size = min(SIZE, round(SIZE * of_encoder / OF_ENCODER), short_side)
    return size if size == SIZE else max(patch, size // patch * patch)


def scaled_sides(height: int, width: int, *, short: float) -> tuple[int, int]:
    """Height and width with the short side at `short` pixels, or the long one at four times that if it is longer."""
    scale = min(short / min(height, width), LONGEST * short / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def training_crop(
    pairs: Pairs, i: int, preprocess: Preprocess, *, size: int, key: np.int64
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Crop float32 [C, S, S] and mask uint8 [S, S] of image i. What an image smaller than the crop leaves free, below
    and to the right, is 0 after normalisation and ignored."""
    scale, mirror, *places = counters.uniform(key, counters.GEOMETRY, 2 + 2 * (TRIES + 1))[0]
    short = size * (SCALES[0] + (SCALES[1] - SCALES[0]) * scale)
    image, mask = pairs.read(i, preprocess.channels)
    sides = scaled_sides(*mask.shape, short=short)
    mask = nearest(mask, sides)
    top, left = choose_place(mask, size, np.reshape(places, (-1, 2)))
    crop = resize(image, sides)[:, top : top + size, left : left + size]
    labels = torch.from_numpy(mask[top : top + size, left : left + size])
    if mirror < 0.5:
        crop, labels = crop.flip(-1), labels.flip(-1)
    colours = distort(to_unit_range(crop), counters.uniform(key, counters.PHOTOMETRY, 9)[0])
    crop = normalise(colours, mean=preprocess.mean, std=preprocess.std)
    free = (0, size - crop.shape[2], 0, size - crop.shape[1])
    return F.pad(crop, free), F.pad(labels, free, value=IGNORED)


def nearest(mask: Mask, sides: tuple[int, int]) -> Mask:
    """The mask at another size: each pixel is the one that its middle falls on."""
    pairs = zip(sides, mask.shape, strict=True)
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in pairs)
    return mask[rows[:, None], columns]


def choose_place(mask: Mask, size: int, draws: NDArray[np.float64]) -> tuple[int, int]:
    """Top and left of a crop: the first of ten where a class fills less than three quarters of what is not ignored,
    else the eleventh, as mmseg has it. draws: uniform [11, 2]."""
    free = np.maximum(np.array(mask.shape) - size, 0)
    places = (draws * (free + 1)).astype(np.int64).tolist()
    for top, left in places[:TRIES]:
        counts = np.bincount(mask[top : top + size, left : left + size].ravel(), minlength=IGNORED + 1)[:IGNORED]
        if np.count_nonzero(counts) > 1 and counts.max() < CAT_MAX_RATIO * counts.sum():
            return top, left
    return tuple(places[TRIES])


def distort(image: Tensor, draws: NDArray[np.float64]) -> Tensor:
    """mmseg's PhotoMetricDistortion of an image [C, h, w] in [0, 1]: brightness moved, contrast (a plain factor) before
    or after saturation and hue of HSV, each with probability 1/2. An image of one channel has no colours to change.

    draws: uniform [9], four of whether, four of how much, one of when the contrast comes."""
    whether, (bright, contrast, saturation, turn), last = draws[:4] < 0.5, 2 * draws[4:8] - 1, draws[8] < 0.5
    if whether[0]:
        image = (image + BRIGHTNESS * bright).clamp(0, 1)
    if whether[1] and not last:
        image = brightness(image, torch.tensor(1 + CONTRAST * contrast))
    if whether[2] and len(image) == 3:
        image = saturate(image, 1 + SATURATION * saturation)
    if whether[3] and len(image) == 3:
        image = hue(image[None], torch.tensor(HUE * turn))[0]
    if whether[1] and last:
        image = brightness(image, torch.tensor(1 + CONTRAST * contrast))
    return image


def saturate(image: Tensor, factor: float) -> Tensor:
    """Saturation of HSV times the factor, at most 1, hue and value kept: [3, h, w] in [0, 1]."""
    value = image.amax(0)
    chroma = value - image.amin(0)
    most = torch.where(chroma > 0, value / chroma, 1)  # the factor at which the smallest channel is 0
    return value - (value - image) * most.clamp(max=factor)
