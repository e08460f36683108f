"""Logistic regression is scikit-learn's own, and few labels are drawn and averaged as said."""

from __future__ import annotations

from importlib import import_module
from math import sqrt

import numpy as np
import pytest
import torch
from scipy.stats import t
from sklearn.linear_model import LogisticRegression

from simdino.contracts import InputError
from simdino.evaluate.classification.regression import (
    Fit,
    drawn,
    few_labels,
    fit,
    fit_logistic,
    mean_and_interval,
    regression,
    strengths,
)
from simdino.features.extract import Features

pytestmark = pytest.mark.slow


def features(each: tuple[int, ...], *, seed: int, spread: float = 1.5, width: int = 5) -> Features:
    """Vectors around the centres of their classes, `each` of them; classes are shuffled."""
    centres = np.random.default_rng(7).normal(size=(len(each), width)) * 3
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(each)), each))
    vectors = centres[labels] + spread * random.normal(size=(len(labels), width))
    names = [str(i) for i in range(len(labels))]
    classes = tuple("abcdefgh"[: len(each)])
    return Features(vectors=torch.from_numpy(vectors).float(), names=names, labels=labels, classes=classes, broken={})


def arrays(given: Features) -> tuple[np.ndarray, np.ndarray]:
    assert given.labels is not None
    return given.vectors.double().numpy(), given.labels


@pytest.mark.parametrize("each", [(40, 50, 60), (45, 45)])
def test_the_result_is_that_of_scikit_learn(each: tuple[int, ...]) -> None:
    bank, query = features(each, seed=0, spread=4), features(each, seed=1, spread=4)
    found = fit_logistic(bank, query, grid=6)
    x, y = arrays(bank)
    own = LogisticRegression(C=found.C, tol=1e-6, max_iter=1000).fit(x, y)
    held, truth = arrays(query)
    assert found.top1 == pytest.approx(100 * own.score(held, truth), abs=0)
    assert found.top1 < 100  # not a set on which every classifier is right
    logits = query.vectors @ found.weight.T + found.bias
    probabilities = logits.double().softmax(-1).numpy()
    np.testing.assert_allclose(probabilities, own.predict_proba(held), atol=1e-5)
    top = np.argsort(-own.predict_proba(held), axis=1)[:, :5]
    assert found.top5 == 100 * np.mean([label in row for label, row in zip(truth, top, strict=True)])
    assert found.classes == bank.classes


def test_the_strength_is_chosen_on_a_tenth_of_each_class_by_cold_fits_too() -> None:
    bank, query = features((40, 52, 60), seed=3, spread=4), features((20, 20, 20), seed=4)
    found = fit_logistic(bank, query, grid=9, seed=5)
    x, y = arrays(bank)
    other = drawn(y, np.array([4, 5, 6]), seed=5)
    assert np.bincount(y[other]).tolist() == [4, 5, 6]
    own = np.delete(np.arange(len(y)), other)
    cold = [LogisticRegression(C=C, tol=1e-6, max_iter=1000).fit(x[own], y[own]) for C in strengths(9)]
    accuracies = [100 * model.score(x[other], y[other]) for model in cold]
    best = int(np.argmax(accuracies))  # the first of equals: the smallest C
    assert (found.C, found.chosen) == (pytest.approx(strengths(9)[best]), pytest.approx(accuracies[best]))
    assert len(set(accuracies)) > 1


def test_the_grid_is_that_of_dinov2() -> None:
    grid = strengths(45)
    assert (len(grid), grid[0], grid[-1]) == (45, pytest.approx(1e-6), pytest.approx(1e5))
    assert np.allclose(np.diff(np.log10(grid)), 0.25)


def test_a_warm_start_ends_where_a_cold_one_does() -> None:
    x, y = arrays(features((30, 30, 30), seed=0, spread=4))
    warm = regression(warm_start=True)
    for C in (1e-3, 1e-2, 1e-1, 1.0):
        assert not fit(warm.set_params(C=C), x, y)
        cold = regression(C=C)
        fit(cold, x, y)
        np.testing.assert_allclose(warm.coef_, cold.coef_, atol=2e-4)


def test_fits_that_the_limit_ends_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = features((30, 30), seed=0), features((30, 30), seed=1)
    assert fit_logistic(*data, grid=3).limited == 0
    monkeypatch.setattr(import_module("simdino.evaluate.classification.regression"), "ITERATIONS", 2)
    assert fit_logistic(*data, grid=3).limited == 4  # and no warning


def test_separable_classes_are_told_apart() -> None:
    found = fit_logistic(
        features((20, 20, 20, 20), seed=0, spread=0.1), features((5, 5, 5, 5), seed=1, spread=0.1), grid=4
    )
    assert (found.top1, found.top5) == (100, 100)


def test_draws_are_of_each_class_and_differ_by_seed() -> None:
    labels = np.random.default_rng(0).integers(0, 3, 60)
    one, same, other = (drawn(labels, np.array([2, 5, 1]), seed=seed) for seed in (0, 0, 1))
    assert np.bincount(labels[one]).tolist() == [2, 5, 1]
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert len(set(one)) == 8
    shares = [np.isin(np.arange(60), drawn(labels, np.array([2, 2, 2]), seed=s)) for s in range(400)]
    rates = np.mean(shares, axis=0)  # every image of a class is drawn as often as any other
    for c in range(3):
        count = (labels == c).sum()
        assert np.abs(rates[labels == c] - 2 / count).max() < 4.5 * sqrt(2 / count / 400)


def test_the_interval_is_student_s() -> None:
    values = [70.0, 74.0, 71.0, 77.0]
    mean, half = mean_and_interval(values)
    low, high = t.interval(0.95, 3, loc=np.mean(values), scale=np.std(values, ddof=1) / 2)
    assert (mean, half) == (pytest.approx(73), pytest.approx((high - low) / 2))
    assert mean_and_interval([3.0]) == (3.0, None)


def test_few_labels_are_fits_on_draws() -> None:
    bank, query = features((30, 40, 61), seed=0, spread=4), features((30, 30, 30), seed=1, spread=4)
    rows = few_labels(bank, query, shots=[1, 4], shares=[0.1], draws=3, grid=5, seed=2)
    assert [(row.labels, row.images, len(row.draws)) for row in rows] == [
        ("1 per class", 3, 3), ("4 per class", 12, 3), ("10 %", 3 + 4 + 6, 3),
    ]  # fmt: skip
    x, y = arrays(bank)
    held, truth = arrays(query)
    for row, each in zip(rows, ([1, 1, 1], [4, 4, 4], [3, 4, 6]), strict=True):
        for draw, accuracy in enumerate(row.draws):
            chosen = drawn(y, np.array(each), seed=2 + draw)
            C = Fit.best(x[chosen], y[chosen], grid=5, seed=2 + draw).C
            own = LogisticRegression(C=C, tol=1e-6, max_iter=1000).fit(x[chosen], y[chosen])
            assert accuracy == pytest.approx(100 * own.score(held, truth))
            assert C == 1.0 or each[0] > 1  # nothing to choose on with one image a class
        assert (row.top1, row.interval) == (pytest.approx(np.mean(row.draws)), mean_and_interval(row.draws)[1])
    assert len(set(rows[0].draws)) > 1


def test_classes_without_training_images_are_never_answered_and_count_as_wrong() -> None:
    bank, query = features((20, 20, 20), seed=0, spread=0.1), features((10, 10, 20), seed=1, spread=0.1)
    assert bank.labels is not None
    seen = np.flatnonzero(bank.labels != 1)
    part = Features(
        vectors=bank.vectors[seen], names=[bank.names[i] for i in seen], labels=bank.labels[seen],
        classes=bank.classes, broken={},
    )  # fmt: skip
    found = fit_logistic(part, query, grid=3)
    assert (found.top1, found.classes) == (75.0, ("a", "c"))


def test_mistakes_end_with_one_line() -> None:
    bank, query = features((5, 3, 4), seed=0), features((5, 5, 5), seed=1)
    bare = Features(vectors=bank.vectors, names=bank.names, labels=None, classes=(), broken={})
    single = Features(
        vectors=bank.vectors, names=bank.names, labels=np.zeros(12, np.int64), classes=bank.classes, broken={}
    )
    mistakes = [
        ("needs labels of at least two classes", (bare, bare), [1]),
        ("at least two classes: all 12 images of the training images are 'a'", (single, query), [1]),
        ("different classes.*: c", (bank, features((5, 5), seed=1)), [1]),
        ("--shots 4 must be between 1 and 3, the training images of class 'b'", (bank, query), [4]),
    ]
    for message, data, shots in mistakes:
        with pytest.raises(InputError, match=message) as caught:
            few_labels(*data, shots=shots, shares=[], draws=5, grid=45)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="two classes"):
        fit_logistic(bare, bare, grid=45)
