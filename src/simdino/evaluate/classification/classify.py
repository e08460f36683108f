"""A classifier at work: the likeliest classes of every image, as a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from simdino.evaluate.classification.results import Predictions
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.files import check_file
from simdino.keywords import Device, Option, Workers

if TYPE_CHECKING:
    pass


def classify_to(
    classifier: str, images: str, *,
    out: Annotated[Path, Option("CSV file.")] = Path("predictions.csv"),
    workers: Workers = 0, device: Device = "auto", log: Log = to_stderr, progress: Progress = no_bar,
) -> Predictions:  # fmt: skip
    """Write the likeliest classes of every image of IMAGES, by a CLASSIFIER.

    CLASSIFIER is a file that evaluate linear, logistic or finetune saved with --out."""
    from simdino.device import present_device
    from simdino.evaluate.classification.classifier import classify, load_classifier, write_csv

    check_file(out, option="--out")
    loaded = load_classifier(classifier).to(present_device(device))
    found = replace(classify(loaded, images, workers=workers, progress=progress), out=str(out))
    write_csv(found, out)
    return found
