"""Sliding windows against a slow loop in float64, and scores against scikit-learn's confusion matrix."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from coloured import make
from sklearn.metrics import confusion_matrix, jaccard_score, recall_score
from torch.nn import functional as F

from simdino.evaluate.segmentation import sliding
from simdino.evaluate.segmentation.head import Segmenter, padded
from simdino.evaluate.segmentation.sliding import Confusion, classes_at, slide, starts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("side", [1, 11, 12, 13, 20, 21, 28, 29, 48])
def test_windows_begin_where_mmseg_has_them(side: int) -> None:
    window, stride = 12, 8
    grids = max(side - window + stride - 1, 0) // stride + 1
    expected = [max(min(i * stride + window, side) - window, 0) for i in range(grids)]
    assert starts(side, window, stride) == expected
    covered = {x for start in expected for x in range(start, min(start + window, side))}
    assert covered == set(range(side))


@pytest.mark.parametrize("sides", [(12, 12), (12, 31), (25, 14), (9, 30), (5, 7)])
def test_logits_are_the_mean_over_the_windows_of_a_pixel(sides: tuple[int, int]) -> None:
    model = Segmenter(make(), classes=3, layers=1, size=12, seed=0, precision="float32").eval()
    norm, convolution = model.head
    norm.running_mean, norm.running_var = torch.linspace(-1, 1, 16), torch.linspace(0.5, 2, 16)
    torch.nn.init.normal_(convolution.weight, generator=torch.Generator().manual_seed(1))  # pyright: ignore
    encoder, head = copy.deepcopy(model.encoder).double(), copy.deepcopy(model.head).double()
    image = torch.randn(3, *sides, generator=torch.Generator().manual_seed(0))
    total, count = torch.zeros(3, *sides, dtype=torch.float64), torch.zeros(sides, dtype=torch.float64)
    height, width = (min(12, side) for side in sides)
    for y in sorted({min(i, sides[0] - height) for i in range(0, sides[0], 8)}):
        for x in sorted({min(i, sides[1] - width) for i in range(0, sides[1], 8)}):
            whole = padded(image[None, :, y : y + height, x : x + width].double(), 4)
            patches = encoder(whole).patches
            assert patches is not None
            grid = (whole.shape[2] // 4, whole.shape[3] // 4)
            logits = head(patches.transpose(1, 2).unflatten(2, grid))
            logits = F.interpolate(logits, whole.shape[2:], mode="bilinear")[0].detach()
            top, left = (whole.shape[2] - height) // 2, (whole.shape[3] - width) // 2
            total[:, y : y + height, x : x + width] += logits[:, top : top + height, left : left + width]
            count[y : y + height, x : x + width] += 1
    found = slide(model, image, window=12, stride=8)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), total / count, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("at_once", [1, 200, 2**26])
@pytest.mark.parametrize("sides", [(9, 12), (23, 40), (4, 5), (9, 30), (1, 1)])
def test_a_photo_gets_its_classes_a_few_rows_at_a_time(
    sides: tuple[int, int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliding, "LOGITS", at_once)
    logits = torch.randn(5, 9, 12, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(logits[None].double(), sides, mode="bilinear")[0]
    first, second = whole.topk(2, dim=0).values
    clear = first - second > 1e-5
    found = classes_at(logits, sides)
    assert found.dtype == torch.uint8
    assert torch.equal(found[clear].long(), whole.argmax(0)[clear])
    assert clear.float().mean() > 0.9


def test_scores_are_those_of_one_confusion_matrix_of_all_pixels() -> None:
    random = np.random.default_rng(0)
    found, truths, guesses = Confusion(6), [], []
    for _ in range(4):  # of class 4 nothing, class 5 is predicted and not there, class 3 is there and not predicted
        truth = random.choice([0, 1, 2, 3, 255], (7, 9)).astype(np.uint8)
        guess = np.where((random.random((7, 9)) < 0.4) & (truth < 3), truth, random.choice([0, 1, 2, 5], (7, 9)))
        found.add(truth, guess.astype(np.uint8))
        truths.append(truth[truth != 255])
        guesses.append(guess[truth != 255])
    y, z = np.concatenate(truths), np.concatenate(guesses)
    assert np.array_equal(found.matrix, confusion_matrix(y, z, labels=range(6)))
    there = [0, 1, 2, 3, 5]
    iou = 100 * np.asarray(jaccard_score(y, z, labels=there, average=None))
    np.testing.assert_allclose(found.iou()[there], iou)
    assert np.isnan(found.iou()[4]) and found.iou()[3] == found.iou()[5] == 0
    np.testing.assert_allclose(
        found.accuracies()[:4], 100 * np.asarray(recall_score(y, z, labels=range(4), average=None))
    )
    assert np.isnan(found.accuracies()[4:]).all()
    assert found.accuracy() == pytest.approx(100 * (y == z).mean())
    assert np.nanmean(found.iou()) == pytest.approx(iou.mean())


def test_classes_of_254_fit() -> None:
    found = Confusion(255)
    found.add(np.array([[254, 255, 254]], np.uint8), np.array([[254, 254, 0]], np.uint8))
    assert (found.matrix[254, 254], found.matrix[254, 0], found.matrix.sum()) == (1, 1, 2)
