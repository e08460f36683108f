"""DAVIS's measures of a video's masks: region similarity J, boundary accuracy F, and what is made of them.

Perazzi et al. 2016, Pont-Tuset et al. 2017, as the official evaluator computes them (davis2017-evaluation at ac7c43f:
metrics.py, utils.py, evaluation.py), of the semi-supervised task. One difference: its decay counts frames in 8 bits and
goes wrong beyond 256 scored frames; ours does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, hypot

import numpy as np
from numpy.typing import NDArray

from simdino.contracts import InputError

Mask = NDArray[np.bool_]  # [H, W]
TOLERANCE = 0.008  # of the diagonal: how far apart two boundaries may be, 8 px at 480 x 854
BINS = 4


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure's frames in three numbers, in percent."""

    mean: float
    recall: float  # share of frames above one half
    decay: float  # mean of the first quarter of the frames less that of the last


@dataclass(frozen=True, kw_only=True)
class ObjectScores:
    """One object of one sequence."""

    sequence: str
    object: int  # its number in the masks, from 1
    j: Measure
    f: Measure


def region_similarity(predicted: Mask, truth: Mask) -> float:
    """J: pixels in both masks over pixels in either, in [0, 1]; 1 where both are empty."""
    union = np.count_nonzero(predicted | truth)
    return np.count_nonzero(predicted & truth) / union if union else 1.0


def boundary_accuracy(predicted: Mask, truth: Mask) -> float:
    """F: harmonic mean of the shares of each boundary's pixels that have one of the other's within ceil(.008 diagonal)
    px, in [0, 1]. 1 where neither has a boundary, 0 where one has."""
    reach = ceil(TOLERANCE * hypot(*truth.shape))
    ours, theirs = (np.argwhere(boundary(mask)) for mask in (predicted, truth))
    if not len(ours) or not len(theirs):
        return float(len(ours) == len(theirs))
    precision, recall = share_within(ours, theirs, reach), share_within(theirs, ours, reach)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: Mask) -> Mask:
    """Pixels that differ from the one to their right, below, or to the right below; in the last row and column, where
    there is only one of these, from that one."""
    edge = np.zeros_like(mask)
    inner = mask[:-1, :-1]
    edge[:-1, :-1] = (inner ^ mask[:-1, 1:]) | (inner ^ mask[1:, :-1]) | (inner ^ mask[1:, 1:])
    edge[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    edge[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return edge


def share_within(pixels: NDArray[np.int64], others: NDArray[np.int64], reach: int) -> float:
    """Share of `pixels` [N, 2] that have one of `others` [M, 2] in the disk x² + y² <= reach²: the same as to dilate
    the others by the disk, from their positions alone."""
    from scipy.spatial import KDTree

    # Squares of distances are whole numbers: half a unit more includes the circle, whatever the rounding.
    distances, _ = KDTree(others).query(pixels, distance_upper_bound=(reach**2 + 0.5) ** 0.5)
    return float(np.isfinite(distances).mean())


def measure(values: Iterable[float]) -> Measure:
    """Mean, recall and decay of an object's frames, values in [0, 1]. Neighbouring quarters share a frame."""
    frames = np.array(list(values), dtype=np.float64)
    edges = np.round(np.linspace(1, len(frames), BINS + 1) + 1e-10).astype(int) - 1  # halves are rounded up
    first, last = (frames[edges[i] : edges[i + 1] + 1] for i in (0, BINS - 1))
    mean, recall, decay = frames.mean(), (frames > 0.5).mean(), first.mean() - last.mean()
    return Measure(mean=float(100 * mean), recall=float(100 * recall), decay=float(100 * decay))


def mean_measure(objects: Iterable[Measure]) -> Measure:
    """The unweighted mean over objects."""
    rows = np.array([(one.mean, one.recall, one.decay) for one in objects])
    mean, recall, decay = rows.mean(0).tolist()
    return Measure(mean=mean, recall=recall, decay=decay)


class SequenceScore:
    """J and F of each object of a sequence, frame by frame.

    count: objects, the highest number in the first frame's mask. An object that is never predicted counts as empty."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count = name, count
        self.j: list[list[float]] = [[] for _ in range(count)]
        self.f: list[list[float]] = [[] for _ in range(count)]

    def add(self, predicted: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        """A frame that counts: neither the first, whose mask was given, nor the last, which DAVIS leaves out. Masks
        [H, W] of object numbers.

        Raises InputError for masks of different sizes, and for a predicted object beyond the count."""
        if predicted.shape != truth.shape:
            raise InputError(
                f"sequence {self.name}: a predicted mask has {predicted.shape[1]} x {predicted.shape[0]} pixels, its "
                f"annotation {truth.shape[1]} x {truth.shape[0]}; give masks of the annotation's size"
            )
        if predicted.max(initial=0) > self.count:
            raise InputError(
                f"sequence {self.name}: object {predicted.max()} is predicted, but the first mask has {self.count}"
            )
        for i in range(self.count):
            pair = predicted == i + 1, truth == i + 1
            self.j[i].append(region_similarity(*pair))
            self.f[i].append(boundary_accuracy(*pair))

    def objects(self) -> list[ObjectScores]:
        """The scores of the frames added."""
        return [
            ObjectScores(sequence=self.name, object=i + 1, j=measure(self.j[i]), f=measure(self.f[i]))
            for i in range(self.count)
        ]
