"""The class of each pixel of an image by a window that slides over it, how often it is right, and masks written."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from simdino.data.opening import BrokenImage
from simdino.data.workers import in_order
from simdino.evaluate.segmentation.crops import WholeImages
from simdino.evaluate.segmentation.head import LOGITS, Segmenter, enlarged
from simdino.evaluate.segmentation.masks import IGNORED, note, write_mask
from simdino.features.extract import inputs
from simdino.feedback import Progress


def stride_of(window: int) -> int:
    """Pixels between windows: two thirds of their side."""
    return max(1, 2 * window // 3)


def starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin: every `stride` pixels, the last moved back to end with the image."""
    count = 1 + max(0, ceil((side - window) / stride))
    return [max(0, min(i * stride, side - window)) for i in range(count)]


@torch.no_grad()
def slide(model: Segmenter, image: Tensor, *, window: int, stride: int | None = None) -> Tensor:
    """Logits float32 [K, h, w] of a normalised image [C, h, w]: each pixel's are the mean of those of the windows that
    it lies in. stride: two thirds of the window unless given. An image smaller than the window is one window."""
    stride = stride or stride_of(window)
    height, width = image.shape[-2:]
    sides = min(window, height), min(window, width)
    places = [(y, x) for y in starts(height, window, stride) for x in starts(width, window, stride)]
    cuts = torch.stack([image[:, y : y + sides[0], x : x + sides[1]] for y, x in places])
    total = torch.zeros(model.classes, height, width, device=image.device)
    count = torch.zeros(height, width, device=image.device)
    for (y, x), logits in zip(places, model(cuts), strict=True):
        total[:, y : y + sides[0], x : x + sides[1]] += enlarged(logits[None], sides, model.patch)[0]
        count[y : y + sides[0], x : x + sides[1]] += 1
    return total.div_(count)


def classes_at(logits: Tensor, sides: tuple[int, ...]) -> Tensor:
    """The greatest of the logits [K, h, w] brought to an image's own sides bilinearly: uint8 [H, W] on the CPU. A few
    rows at a time, as those of a photo are gigabytes."""
    height, width = sides
    if tuple(logits.shape[1:]) == sides:
        return logits.argmax(0).to(torch.uint8).cpu()
    middle = (torch.arange(height, device=logits.device, dtype=torch.float32) + 0.5) * (logits.shape[1] / height) - 0.5
    middle = middle.clamp(0, logits.shape[1] - 1)
    above = middle.long()
    below, share = (above + 1).clamp(max=logits.shape[1] - 1), middle - above
    found = []
    for rows in torch.arange(height, device=logits.device).split(max(1, LOGITS // (len(logits) * width))):
        lines = torch.lerp(logits[:, above[rows]], logits[:, below[rows]], share[rows, None])
        lines = F.interpolate(lines[None], (len(rows), width), mode="bilinear")[0]
        found.append(lines.argmax(0).to(torch.uint8).cpu())
    return torch.cat(found)


def score(
    model: Segmenter, images: WholeImages, broken: dict[str, str], *,
    out: Path | None, workers: int, progress: Progress,
) -> tuple[Confusion, int]:  # fmt: skip
    """The pixels of all test images by their class and the predicted one, and how many images could be read; the others
    are noted in `broken`. out: where predictions are written, with the data's own numbers in PASCAL VOC's colours."""
    found, count, pairs = Confusion(model.classes), 0, images.pairs
    stream = in_order(images, range(len(images)), workers=workers)
    for i, one in enumerate(progress(stream, f"scores on {pairs.name}", len(images))):
        if isinstance(one, BrokenImage):
            note(broken, {one.name: one.reason}, pairs)
            continue
        image, mask = one
        logits = slide(model, inputs(model.encoder, image[None])[0], window=images.size)
        predicted = classes_at(logits, tuple(mask.shape)).numpy()
        found.add(mask.numpy(), predicted)
        count += 1
        if out is not None:
            path = out / Path(pairs.images[i]).relative_to(pairs.folder).with_suffix(".png")
            write_mask(predicted + np.uint8(pairs.reduce_zero), path, palette().flatten().tolist())
    return found, count


def palette() -> NDArray[np.uint8]:
    """PASCAL VOC's colours, uint8 [256, 3]: the bits of a number dealt out to red, green and blue in turn, each
    channel's highest first."""
    bits = np.arange(256)[:, None, None] >> (3 * np.arange(8)[:, None] + np.arange(3)) & 1  # [256, 8, 3]
    return (bits << (7 - np.arange(8)[:, None])).sum(1).astype(np.uint8)


class Confusion:
    """Pixels counted by their class and by the class that they were given, over a whole set: int64 [K, K]."""

    def __init__(self, classes: int) -> None:
        self.matrix = np.zeros((classes, classes), np.int64)

    def add(self, truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> None:
        """Count an image's pixels, without those that are ignored (255)."""
        count = len(self.matrix)
        known = truth != IGNORED
        pairs = count * truth[known].astype(np.int64) + predicted[known]
        self.matrix += np.bincount(pairs, minlength=count**2).reshape(count, count)

    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class in percent; NaN for one that neither is there nor was predicted."""
        right = self.matrix.diagonal()
        return percent(right, self.matrix.sum(0) + self.matrix.sum(1) - right)

    def accuracies(self) -> NDArray[np.float64]:
        """How many pixels of each class are right, in percent; NaN for one that is not there."""
        return percent(self.matrix.diagonal(), self.matrix.sum(1))

    def accuracy(self) -> float:
        """How many of all pixels are right, in percent."""
        return float(percent(self.matrix.trace(), self.matrix.sum()))


def percent(part: NDArray[np.int64] | np.int64, whole: NDArray[np.int64] | np.int64) -> NDArray[np.float64]:
    """NaN where there is nothing."""
    with np.errstate(invalid="ignore"):
        return 100 * np.divide(part, whole)
