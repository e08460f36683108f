"""DAVIS's measures against slow versions written from their definitions, and on shapes whose answer is known."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from simdino.contracts import InputError
from simdino.evaluate.video.metrics import (
    SequenceScore,
    boundary,
    boundary_accuracy,
    mean_measure,
    measure,
    region_similarity,
)

SIZE = (48, 64)  # a tolerance of 1 px
DAVIS = (480, 854)  # 8 px


def rectangle(top: int, left: int, height: int, width: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def blobs(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Smooth random shapes, some across the edge of the picture."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.random.default_rng(seed).standard_normal(size), 3) > 0.02


def slow_boundary(mask: np.ndarray) -> np.ndarray:
    """A pixel at a time."""
    height, width = mask.shape
    edge = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            if y == height - 1:
                others = [(y, x + 1)]
            if x == width - 1:
                others = [(y + 1, x)]
            edge[y, x] = any(a < height and b < width and mask[a, b] != mask[y, x] for a, b in others)
    return edge


def slow_f(predicted: np.ndarray, truth: np.ndarray) -> float:
    """By dilation with a disk, as the measure is defined."""
    reach = ceil(0.008 * np.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = x**2 + y**2 <= reach**2
    ours, theirs = slow_boundary(predicted), slow_boundary(truth)
    if not ours.any() and not theirs.any():
        precision, recall = 1.0, 1.0
    elif not ours.any():
        precision, recall = 1.0, 0.0
    elif not theirs.any():
        precision, recall = 0.0, 1.0
    else:
        precision = (ours & binary_dilation(theirs, disk)).sum() / ours.sum()
        recall = (theirs & binary_dilation(ours, disk)).sum() / theirs.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_boundary_and_f_are_those_of_the_slow_version(seed: int) -> None:
    ours, theirs = blobs(seed), blobs(seed + 10)
    assert np.array_equal(boundary(ours), slow_boundary(ours))
    assert boundary_accuracy(ours, theirs) == pytest.approx(slow_f(ours, theirs), abs=1e-12)
    assert 0.01 < boundary_accuracy(ours, theirs) < 0.99
    larger = (160, 300)  # 3 px
    pair = blobs(seed, larger), blobs(seed + 10, larger)
    assert boundary_accuracy(*pair) == pytest.approx(slow_f(*pair), abs=1e-12)


def test_the_boundary_of_a_rectangle_is_one_pixel_wide_and_lies_before_it() -> None:
    edge = boundary(rectangle(10, 20, 5, 7))
    expected = rectangle(9, 19, 6, 8) & ~rectangle(10, 20, 4, 6)
    assert np.array_equal(edge, expected)
    full = np.ones(SIZE, dtype=bool)
    assert not boundary(full).any()


@pytest.mark.parametrize("shift", [0, 1, 5, 20])
def test_j_of_a_rectangle_moved_sideways_has_a_closed_form(shift: int) -> None:
    truth, moved = rectangle(5, 5, 10, 20), rectangle(5, 5 + shift, 10, 20)
    assert region_similarity(moved, truth) == pytest.approx((20 - shift) / (20 + shift))


def test_a_boundary_8_px_off_counts_at_480_by_854_and_one_9_px_off_does_not() -> None:
    whole = rectangle(0, 0, 480, 400, DAVIS)
    for shift, expected in ((0, 1), (8, 1), (9, 0)):
        assert boundary_accuracy(rectangle(0, 0, 480, 400 + shift, DAVIS), whole) == expected


def test_a_dilated_mask_keeps_its_boundary_within_the_tolerance() -> None:
    truth = rectangle(100, 200, 200, 300, DAVIS)
    y, x = np.mgrid[-8:9, -8:9]
    grown = binary_dilation(truth, x**2 + y**2 <= 64)
    assert boundary_accuracy(grown, truth) > 0.99
    assert region_similarity(grown, truth) == pytest.approx(truth.sum() / grown.sum())
    y, x = np.mgrid[-12:13, -12:13]
    assert boundary_accuracy(binary_dilation(truth, x**2 + y**2 <= 144), truth) < 0.05


def test_empty_and_full_masks() -> None:
    empty, full, some = np.zeros(SIZE, bool), np.ones(SIZE, bool), rectangle(5, 5, 10, 10)
    assert (region_similarity(empty, empty), boundary_accuracy(empty, empty)) == (1, 1)
    assert (region_similarity(empty, some), boundary_accuracy(empty, some)) == (0, 0)
    assert (region_similarity(some, empty), boundary_accuracy(some, empty)) == (0, 0)
    assert (region_similarity(full, full), boundary_accuracy(full, full)) == (1, 1)
    assert boundary_accuracy(full, some) == 0  # a full mask has no boundary
    assert region_similarity(full, some) == some.sum() / some.size


def slow_measure(values: list[float]) -> tuple[float, float, float]:
    """Quarters between whole frames 1 ... N, counted from 1, halves rounded up."""
    count = len(values)
    edges = [int(1 + (count - 1) * i / 4 + 0.5 + 1e-10) for i in range(5)]
    first, last = values[edges[0] - 1 : edges[1]], values[edges[3] - 1 : edges[4]]
    mean = sum(values) / count
    recall = sum(v > 0.5 for v in values) / count
    return 100 * mean, 100 * recall, 100 * (sum(first) / len(first) - sum(last) / len(last))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 11, 48, 300, 700])
def test_mean_recall_and_decay_of_any_number_of_frames(count: int) -> None:
    values = np.random.default_rng(count).uniform(size=count).tolist()
    found = measure(values)
    assert (found.mean, found.recall, found.decay) == pytest.approx(slow_measure(values), abs=1e-9)


def test_decay_by_hand_and_without_a_wrap_beyond_256_frames() -> None:
    assert measure([1, 1, 1, 0, 0]).decay == pytest.approx(100)  # frames 1, 2 less frames 4, 5
    assert measure([0.5, 0.5, 0.9]).recall == pytest.approx(100 / 3)  # one half is not above one half
    assert measure([1.0] * 500 + [0.0] * 500).decay == pytest.approx(100)


def test_a_sequence_scores_each_object_of_the_first_mask_and_nothing_else() -> None:
    score = SequenceScore("goat", 3)
    truth = np.zeros(SIZE, np.uint8)
    truth[5:15, 5:25], truth[30:40, 30:50], truth[0:2, 0:2] = 1, 2, 9  # 9 came later: nobody asks for it
    predicted = np.where(truth == 1, 1, 0).astype(np.uint8)  # object 2 is never found, 3 is nowhere
    score.add(predicted, truth)
    score.add(predicted, truth)
    one, two, three = score.objects()
    assert (one.sequence, one.object, three.object) == ("goat", 1, 3)
    assert (one.j.mean, one.f.mean, two.j.mean, two.f.mean, three.j.mean, three.f.mean) == (100, 100, 0, 0, 100, 100)
    assert mean_measure(o.j for o in (one, two, three)).mean == pytest.approx(200 / 3)


def test_more_objects_than_the_first_mask_has_and_other_sizes_are_refused() -> None:
    score = SequenceScore("goat", 1)
    with pytest.raises(InputError, match="sequence goat: object 2 is predicted, but the first mask has 1"):
        score.add(np.full(SIZE, 2, np.uint8), np.zeros(SIZE, np.uint8))
    with pytest.raises(InputError, match="64 x 47 pixels, its annotation 64 x 48"):
        score.add(np.zeros((47, 64), np.uint8), np.zeros(SIZE, np.uint8))
