"""A classifier at work: the likeliest classes of every image, as a table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.files import check_file
from simdino.keywords import Device, Option, Workers
from simdino.result import Result
from simdino.text import readable

if TYPE_CHECKING:
    from torch import Tensor

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
    from simdino.evaluate.classification.classifier import classify, load_classifier, write_csv
    from simdino.precision import present_device

    check_file(out, option="--out")
    loaded = load_classifier(classifier).to(present_device(device))
    found = replace(classify(loaded, images, workers=workers, progress=progress), out=str(out))
    write_csv(found, out)
    return found
