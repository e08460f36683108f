"""Logistic regression on frozen class tokens, and how it fares with few labels.

The protocol of DINOv2 (dinov2/eval/log_regression.py at b8931f7) with DINOv3's stratified choice and solver
(scikit-learn's lbfgs): class tokens as they are, not normalised; L2 penalty; the inverse strength C chosen on a tenth
of the training images, then a fit on all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simdino.contracts import InputError
from simdino.evaluate.labels import check_classes, check_labels
from simdino.features.extract import Features
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.result import Result

SHARE = 0.1  # of the training images that C is chosen on
TOLERANCE, ITERATIONS = 1e-6, 1000
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LogisticFit(Result):
    """Accuracies in percent on the validation images, of the fit on all training images."""

    top1: float
    top5: float
    C: float
    chosen: float  # accuracy of that C on the images it was chosen on, of a fit without them
    limited: int  # fits, of the grid and the last one, that the limit of 1,000 iterations ended
    train_images: int
    validation_images: int
    weight: Tensor = field(repr=False, compare=False)  # float32 [K, D]
    bias: Tensor = field(repr=False, compare=False)  # float32 [K]
    classes: tuple[str, ...]  # K names, of those that training images have

    def __str__(self) -> str:
        return (
            f"logistic regression: {self.top1:.2f} % (top-5 {self.top5:.2f} %) of {self.validation_images} validation "
            f"images, C {self.C:.3g} chosen on a tenth of {self.train_images} training images"
        )


@dataclass(frozen=True, kw_only=True)
class FewLabels(Result):
    """Logistic regression on a few of the training images. Accuracies in percent, on all validation images."""

    labels: str  # how many: "5 per class" or "10 %"
    images: int
    top1: float  # mean over the draws
    interval: float | None  # half the width of its 95 % interval by Student's t; None for a single draw
    draws: list[float]

    def __str__(self) -> str:
        spread = "" if self.interval is None else f" ± {self.interval:.2f}"
        return f"{self.labels}: {self.top1:.2f}{spread} %, {self.images} images, {len(self.draws)} draws"


def fit_logistic(
    bank: Features, query: Features, *, grid: int, seed: int = 0, progress: Progress = no_bar
) -> LogisticFit:
    """Fit scikit-learn's LogisticRegression to `bank` and classify `query`.

    grid: how many values of C from 1e-6 to 1e5, evenly spaced in their logarithm; with one, it is 1. C is chosen on a
    tenth of each class, drawn by `seed`, the smallest of equals; classes of a single image stay in training. Solved in
    float64 to a gradient of 1e-6, a fit of the grid starting where the one before it ended.

    Raises InputError without labels, with one class only, and where bank and query have different classes.
    """
    x, labels, queries, y = prepare(bank, query)
    fitted = Fit.best(x, labels, grid=grid, seed=seed, progress=progress)
    hits = fitted.ranked(queries, top=5) == y[:, None]
    weight, bias = fitted.weights()
    return LogisticFit(
        top1=100 * float(hits[:, 0].mean()), top5=100 * float(hits.any(1).mean()), C=fitted.C, chosen=fitted.chosen,
        limited=fitted.limited, train_images=len(bank), validation_images=len(query),
        weight=torch.from_numpy(weight).float(), bias=torch.from_numpy(bias).float(),
        classes=tuple(bank.classes[i] for i in fitted.model.classes_),
    )  # fmt: skip


def few_labels(
    bank: Features, query: Features, *,
    shots: Sequence[int], shares: Sequence[float], draws: int, grid: int, seed: int = 0,
    log: Log = to_stderr, progress: Progress = no_bar,
) -> list[FewLabels]:  # fmt: skip
    """`fit_logistic` on `shots` images of each class, then on `shares` of the images of each class (at least one each).

    Each is drawn `draws` times, the draws by the seeds `seed`, `seed` + 1, ...; C is chosen anew on each draw, or is 1
    where every class has a single image. log: called with a line for a share that is less than an image of any class.
    Raises InputError as `fit_logistic` does, and where a class has fewer images than shots.
    """
    x, labels, queries, y = prepare(bank, query)
    counts = np.bincount(labels, minlength=len(bank.classes))
    check_shots(shots, counts, bank.classes)
    sizes = {f"{n} per class": np.minimum(counts, n) for n in shots}
    for share in shares:
        if round(share * counts.max()) < 1:
            log(f"--percent {100 * share:g} is less than an image of any class: each has one, as with --shots 1")
        sizes[f"{100 * share:g} %"] = np.minimum(counts, np.maximum(1, np.rint(share * counts)).astype(np.int64))
    found = []
    for name, each in progress(sizes.items(), "few labels", len(sizes)):
        accuracies = []
        for draw in range(seed, seed + draws):
            chosen = drawn(labels, each, seed=draw)
            fitted = Fit.best(x[chosen], labels[chosen], grid=grid, seed=draw)
            accuracies.append(100 * float((fitted.ranked(queries, top=1)[:, 0] == y).mean()))
        mean, interval = mean_and_interval(accuracies)
        found.append(FewLabels(labels=name, images=int(each.sum()), top1=mean, interval=interval, draws=accuracies))
    return found


def check_shots(shots: Sequence[int], counts: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Raise InputError for more shots than the smallest class has."""
    there = np.flatnonzero(counts)
    least = int(there[counts[there].argmin()])
    for n in shots:
        if n > counts[least]:
            raise InputError(
                f"--shots {n} must be between 1 and {counts[least]}, the training images of class {classes[least]!r}"
            )


def prepare(bank: Features, query: Features) -> tuple[Array, NDArray[np.int64], Array, NDArray[np.int64]]:
    """Vectors float64 and labels of the bank and of the queries. Raises InputError for what cannot be fitted."""
    labels = check_labels(bank, task="logistic", name="the training images")
    asked = check_classes(query, bank.classes, task="logistic", name="the validation images")
    return bank.vectors.double().numpy(), labels, query.vectors.double().numpy(), asked


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fit of scikit-learn's on all given images, and how its C was chosen."""

    model: Any  # sklearn.linear_model.LogisticRegression
    C: float
    chosen: float
    limited: int

    @classmethod
    def best(cls, x: Array, labels: NDArray[np.int64], *, grid: int, seed: int, progress: Progress = no_bar) -> Fit:
        """Choose C on a tenth of each class, then fit to everything."""
        counts = np.bincount(labels)
        apart = np.where(counts > 1, np.maximum(1, np.rint(SHARE * counts)), 0).astype(np.int64)
        strength, chosen, limited = 1.0, float("nan"), 0
        if grid > 1 and apart.any():
            other = drawn(labels, apart, seed=seed)
            own = np.setdiff1d(np.arange(len(labels)), other)
            model = regression(warm_start=True)
            for value in progress(strengths(grid), "strengths of the penalty", grid):
                limited += fit(model.set_params(C=value), x[own], labels[own])
                accuracy = 100 * float(model.score(x[other], labels[other]))
                if not chosen >= accuracy:
                    strength, chosen = float(value), accuracy
        model = regression(C=strength)
        limited += fit(model, x, labels)
        return cls(model=model, C=strength, chosen=chosen, limited=limited)

    def weights(self) -> tuple[Array, Array]:
        """Weights [K, D] and biases [K] whose softmax are the probabilities; scikit-learn keeps one row for two
        classes."""
        weight, bias = self.model.coef_, self.model.intercept_
        if len(weight) == 1:
            return np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        return weight, bias

    def ranked(self, x: Array, *, top: int) -> NDArray[np.int64]:
        """The labels of the likeliest classes, int64 [N, top or the number of classes]."""
        weight, bias = self.weights()
        order = np.argsort(-(x @ weight.T + bias), axis=1, kind="stable")
        return self.model.classes_[order[:, :top]]


def strengths(grid: int) -> Array:
    """The values of C that are tried."""
    return 10 ** np.linspace(-6, 5, grid)


def regression(**settings: Any) -> Any:
    """scikit-learn's own, L2 and lbfgs."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(solver="lbfgs", tol=TOLERANCE, max_iter=ITERATIONS, **settings)


def fit(model: Any, x: Array, labels: NDArray[np.int64]) -> bool:
    """Whether the limit of iterations ended it, which scikit-learn warns of each time."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, labels)
    return bool(model.n_iter_.max() >= ITERATIONS)


def drawn(labels: NDArray[np.int64], each: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Positions of `each[c]` images of class c, in rising order."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    return np.sort(np.concatenate([shuffled[labels[shuffled] == c][:n] for c, n in enumerate(each)]))


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and half the width of its 95 % interval under Student's t; None for a single value."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    return mean, float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / sqrt(len(values)))
