"""A classifier at work: the likeliest classes of every image, and the table of them."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from io import StringIO
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.files import check_file, write_aside
from simdino.keywords import Device, Option, Workers
from simdino.result import Result
from simdino.text import readable

if TYPE_CHECKING:
    from torch import Tensor

    from simdino.config import Precision
    from simdino.data.base import Source
    from simdino.evaluate.classification.classifier import Classifier

TOP = 5  # classes of an image that are told


@dataclass(frozen=True, kw_only=True)
class Predictions(Result):
    """The likeliest classes of the readable images of a source, in its order."""

    names: list[str]
    classes: tuple[str, ...]
    ranked: Tensor  # int64 [N, k], positions in `classes`, the likeliest first; k is 5, or all of fewer classes
    probabilities: Tensor  # float32 [N, k], of a softmax over all classes
    broken: dict[str, str]  # names of the images left out, and why
    out: str | None = None  # where they were written to

    def __len__(self) -> int:
        return len(self.names)

    def counts(self) -> dict[str, int]:
        """How many images each class is the likeliest of."""
        first = self.ranked[:, 0].tolist()
        return {name: first.count(i) for i, name in enumerate(self.classes)}

    def __str__(self) -> str:
        found = sorted(self.counts().items(), key=lambda pair: -pair[1])
        said = f"{len(self)} images: " + ", ".join(f"{count} {readable(name)}" for name, count in found[:TOP] if count)
        return f"{said}; written to {self.out}" if self.out else said

    def as_dict(self) -> dict[str, Any]:
        """Plain values: how many images of each class, and what was left out."""
        counted = {"images": len(self), "predicted": self.counts(), "broken": self.broken}
        return {"out": self.out, **counted} if self.out else counted


def classify_to(
    classifier: str, images: str, *,
    out: Annotated[Path, Option("CSV file.")] = Path("predictions.csv"),
    workers: Workers = 0, device: Device = "auto", log: Log = to_stderr, progress: Progress = no_bar,
) -> Predictions:  # fmt: skip
    """Write the likeliest classes of every image of IMAGES, by a CLASSIFIER.

    CLASSIFIER is a file that evaluate linear, logistic or finetune saved with --out."""
    from simdino.device import present_device
    from simdino.evaluate.classification.classifier import load_classifier

    check_file(out, option="--out")
    loaded = load_classifier(classifier).to(present_device(device))
    found = replace(classify(loaded, images, workers=workers, progress=progress), out=str(out))
    write_csv(found, out)
    return found


def classify(
    classifier: Classifier, data: str | Path | Source, *,
    precision: Precision | None = None, workers: int = 0, progress: Progress = no_bar,
) -> Predictions:  # fmt: skip
    """The likeliest classes of every readable image of `data`, labelled or not.

    Raises InputError where no image can be read."""
    from simdino.data.base import Source
    from simdino.data.sources import open_dataset
    from simdino.features.extract import BATCH, collected, inputs, prepared

    def probabilities(images: Tensor) -> Tensor:
        return classifier(inputs(classifier.encoder, images), precision=precision).softmax(-1).cpu()

    source = data if isinstance(data, Source) else open_dataset(data)
    batches = prepared(source, classifier.encoder.preprocess, workers=workers)
    stream = progress(batches, f"classes of {source.name}", ceil(len(source) / BATCH))
    found = collected(source, stream, probabilities)
    likely = found.vectors.topk(min(TOP, len(classifier.classes)))
    return Predictions(
        names=found.names, classes=classifier.classes, broken=found.broken, ranked=likely.indices,
        probabilities=likely.values,
    )  # fmt: skip


def write_csv(predictions: Predictions, out: Path) -> None:
    """A line for each image: path, class, probability, then class_2, probability_2 and so on to the fifth; names as
    `text.readable` has them. Raises InputError where it cannot be written."""
    count = predictions.ranked.shape[1]
    heads = [f"{word}_{i}" if i > 1 else word for i in range(1, count + 1) for word in ("class", "probability")]
    text = StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", *heads])
    classes = list(map(readable, predictions.classes))
    rows = zip(predictions.names, predictions.ranked.tolist(), predictions.probabilities.tolist(), strict=True)
    for name, ranked, probabilities in rows:
        pairs = zip(ranked, probabilities, strict=True)
        table.writerow([readable(name), *(cell for i, p in pairs for cell in (classes[i], f"{p:.6f}"))])
    write_aside(out, text.getvalue().encode(), option="--out")
