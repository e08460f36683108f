"""DAVIS's measures of a video's masks: region similarity J, boundary accuracy F, and what is made of them.

Perazzi et al. 2016, Pont-Tuset et al. 2017, as the official evaluator computes them (davis2017-evaluation at ac7c43f:
metrics.py, utils.py, evaluation.py), of the semi-supervised task. One difference: its decay counts frames in 8 bits and
goes wrong beyond 256 scored frames; ours does not.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from math import ceil, hypot
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simdino.contracts import InputError
from simdino.evaluate.video import Year
from simdino.result import Result, plain

Mask = NDArray[np.bool_]  # [H, W]
TOLERANCE = 0.008  # of the diagonal: how far apart two boundaries may be, 8 px at 480 x 854
BINS = 4


@dataclass(frozen=True)
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


@dataclass(frozen=True, kw_only=True)
class VideoResult(Result):
    """Scores in percent, as published tables have them. Global ones are the unweighted mean over all objects."""

    year: Year
    frames: int  # of all sequences
    objects: tuple[ObjectScores, ...]
    unscored: tuple[str, ...]  # sequences without annotations to compare with
    turned: int = 0  # frames that EXIF turns

    @property
    def j(self) -> Measure | None:
        """Region similarity; None where nothing could be scored."""
        return mean_measure(one.j for one in self.objects)

    @property
    def f(self) -> Measure | None:
        """Boundary accuracy; None where nothing could be scored."""
        return mean_measure(one.f for one in self.objects)

    @property
    def jf(self) -> float | None:
        """J&F-Mean, the number that papers compare."""
        return (self.j.mean + self.f.mean) / 2 if self.j and self.f else None

    def __str__(self) -> str:
        if self.j is None or self.f is None:
            return f"no sequence of {len(self.unscored)} could be scored: none has a mask of every frame"
        return (
            f"J&F {self.jf:.1f} %  J {self.j.mean:.1f} (recall {self.j.recall:.1f}, decay {self.j.decay:.1f})  "
            f"F {self.f.mean:.1f} (recall {self.f.recall:.1f}, decay {self.f.decay:.1f}), "
            f"{len(self.objects)} object{'s' * (len(self.objects) != 1)} in {self.frames} frames of DAVIS {self.year}"
            f"{f', {len(self.unscored)} sequences not scored' if self.unscored else ''}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with the means over all objects."""
        return {**super().as_dict(), "jf": self.jf, "j": plain(self.j), "f": plain(self.f)}

    def lines(self) -> list[str]:
        """A line for each object, then the means."""
        return [f"{o.sequence} {o.object}: J {o.j.mean:.1f}  F {o.f.mean:.1f}" for o in self.objects] + [str(self)]


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
    return Measure(*(float(100 * share) for share in (mean, recall, decay)))


def mean_measure(objects: Iterable[Measure]) -> Measure | None:
    """The unweighted mean over objects; None where there are none."""
    rows = [astuple(one) for one in objects]
    return Measure(*np.mean(rows, axis=0).tolist()) if rows else None


class SequenceScore:
    """J and F of each object of a sequence, frame by frame.

    count: objects, the highest number in the first frame's mask. An object that is never predicted counts as empty."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count = name, count
        self.frames = [list[tuple[float, float]]() for _ in range(count)]  # J and F of each object

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
        for number, frames in enumerate(self.frames, start=1):
            pair = predicted == number, truth == number
            frames.append((region_similarity(*pair), boundary_accuracy(*pair)))

    def objects(self) -> list[ObjectScores]:
        """The scores of the frames added."""
        both = ([measure(values) for values in zip(*frames, strict=True)] for frames in self.frames)
        return [ObjectScores(sequence=self.name, object=i, j=j, f=f) for i, (j, f) in enumerate(both, start=1)]
