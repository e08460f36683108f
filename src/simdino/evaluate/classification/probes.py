"""The protocols with labels for an encoder by its name: data opened, scores kept in a run's folder, the classifier
saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simdino.data.base import Source
from simdino.data.sources import DataPath
from simdino.evaluate.classification.classifier import Classifier, check_place, save_classifier
from simdino.evaluate.classification.finetune import FinetuneResult, finetune
from simdino.evaluate.classification.knn import warn_of_unseen
from simdino.evaluate.classification.linear import LinearResult, linear
from simdino.evaluate.classification.logistic import DRAWS, FewLabels, LogisticResult, few_labels, logistic
from simdino.evaluate.classification.training import labelled
from simdino.features.extract import Progress, extract, unwatched
from simdino.features.readout import Layers
from simdino.models.encoder import Encoder
from simdino.models.weights import load_encoder, to_stderr
from simdino.precision import present_device
from simdino.runs.evaluations import asked_data, keep_scores


def evaluate_linear(
    encoder: str, data: str | DataPath | None, *,
    protocol: str, avgpool: bool, epochs: float | None, steps: int | None, batch: int | None, test: str | None,
    seed: int, workers: int = 0, out: Path | None = None, device: str = "auto",
    log: Callable[[str], None] = to_stderr, progress: Progress = unwatched,
) -> LinearResult:  # fmt: skip
    """`linear` of an encoder by name. data: what the run was trained on unless given. out: where the best head is saved
    as a classifier. device: where everything runs. log: called with a line for what a person should know."""
    model, where, both = opened(encoder, data, task="linear", out=out, device=device)
    result = linear(
        model, both, protocol=protocol, avgpool=avgpool, epochs=epochs, steps=steps, batch=batch, test=test, seed=seed,
        workers=workers, log=log, progress=progress,
    )  # fmt: skip
    settings = {
        "protocol": protocol, "avgpool": avgpool, "batch": result.batch, "steps": result.steps, "seed": seed,
        "test": test,
    }  # fmt: skip
    finish(
        encoder, where, both, result.as_dict(), task="linear", settings=settings, said=str(result),
        classifier=result.classifier, broken=result.broken, out=out, log=log,
    )  # fmt: skip
    return result


def evaluate_logistic(
    encoder: str, data: str | DataPath | None, *,
    grid: int, shots: Sequence[int], shares: Sequence[float], draws: int, seed: int,
    workers: int = 0, out: Path | None = None, device: str = "auto",
    log: Callable[[str], None] = to_stderr, progress: Progress = unwatched,
) -> tuple[LogisticResult, list[FewLabels]]:  # fmt: skip
    """`logistic` of an encoder by name, and `few_labels` for the `shots` and `shares` given. The other arguments are
    those of `evaluate_linear`."""
    model, where, both = opened(encoder, data, task="logistic", out=out, device=device)
    bank, query = (extract(model, source, workers=workers, progress=progress) for source in both)
    few: list[FewLabels] = []
    if draws != DRAWS and not (shots or shares):
        log("--draws has no effect without --shots or --percent: all labels are used once")
    for share in shares:
        if bank.labels is not None and round(share * np.bincount(bank.labels).max()) < 1:
            log(f"--percent {100 * share:g} is less than an image of any class: each has one, as with --shots 1")
    if shots or shares:  # first: too many shots are known at once
        few = few_labels(bank, query, shots=shots, shares=shares, draws=draws, grid=grid, seed=seed, progress=progress)
    result = logistic(bank, query, grid=grid, seed=seed, progress=progress)
    classifier = Classifier(
        encoder=model, layers=Layers(), classes=result.classes, weight=result.weight, bias=result.bias
    )
    finish(
        encoder, where, both, {"all": result.as_dict(), "few": [one.as_dict() for one in few]}, task="logistic",
        settings={"grid": grid, "shots": list(shots), "shares": list(shares), "draws": draws, "seed": seed},
        said="\n".join(map(str, [result, *few])), classifier=classifier, broken=bank.broken | query.broken, out=out,
        log=log,
    )  # fmt: skip
    return result, few


def evaluate_finetune(
    encoder: str, data: str | DataPath | None, *,
    epochs: float | None, steps: int | None, batch: int | None, lr: float, layer_decay: float, weight_decay: float,
    label_smoothing: float, drop_path: float, seed: int,
    workers: int = 0, out: Path | None = None, device: str = "auto",
    log: Callable[[str], None] = to_stderr, progress: Progress = unwatched,
) -> FinetuneResult:  # fmt: skip
    """`finetune` of an encoder by name. The other arguments are those of `evaluate_linear`."""
    model, where, both = opened(encoder, data, task="finetune", out=out, device=device)
    result = finetune(
        model, both, epochs=epochs, steps=steps, batch=batch, lr=lr, layer_decay=layer_decay,
        weight_decay=weight_decay, label_smoothing=label_smoothing, drop_path=drop_path, seed=seed,
        workers=workers, log=log,
        progress=progress,
    )  # fmt: skip
    settings = {
        "batch": result.batch, "steps": result.steps, "lr": lr, "layer_decay": layer_decay,
        "weight_decay": weight_decay, "label_smoothing": label_smoothing, "drop_path": result.drop_path, "seed": seed,
    }  # fmt: skip
    finish(
        encoder, where, both, result.as_dict(), task="finetune", settings=settings, said=str(result),
        classifier=result.classifier, broken=result.broken, out=out, log=log,
    )  # fmt: skip
    return result


def opened(
    encoder: str, data: str | DataPath | None, *, task: str, out: Path | None, device: str
) -> tuple[Encoder, DataPath, tuple[Source, Source]]:
    """The encoder on its device, the data as given, and training and held-out images. Raises InputError for any of
    them, and for a file that cannot be written."""
    check_place(out)
    where = asked_data(encoder, data)
    both = labelled(where, task=task)
    return load_encoder(encoder).to(present_device(device)), where, both


def finish(
    encoder: str, where: DataPath, both: tuple[Source, Source], results: dict[str, Any], *, task: str,
    settings: dict[str, Any], said: str, classifier: Classifier, broken: dict[str, str], out: Path | None,
    log: Callable[[str], None],
) -> None:  # fmt: skip
    """Save the classifier, keep the scores, and name the images left out."""
    if out is not None:
        save_classifier(classifier, out)
    train, held_out = both
    warn_of_unseen(train, held_out, log)
    counted = {"train_images": len(train), "held_out_images": len(held_out)}
    keep_scores(
        encoder, protocol=task, where=where, name=train.name, counted=counted, settings=settings, results=results,
        said=said, log=log,
    )  # fmt: skip
    for name, reason in broken.items():
        log(f"left out {name}: {reason}")
