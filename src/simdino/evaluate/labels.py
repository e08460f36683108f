"""What protocols ask of labels: that there are some, of two classes at least, and that all splits have the same."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.features.extract import Features
from simdino.feedback import Log
from simdino.text import readable

NAMED = 5  # classes that a line names


def check_labels(images: Source | Features, *, task: str, name: str) -> NDArray[np.int64]:
    """The labels. Raises InputError where there are none, or only one class.

    task: what needs them. name: of the images."""
    if images.labels is None:
        raise InputError(
            f"{task} needs labels of at least two classes, and {name} has none: sort its images into a folder for each "
            f"class, or give a list file with labels"
        )
    found = np.unique(images.labels)
    if len(found) < 2:
        named = "".join(images.classes[i] for i in found)
        raise InputError(f"{task} needs at least two classes: all {len(images)} images of {name} are {named!r}")
    return images.labels


def check_classes(
    images: Source | Features, classes: Sequence[str], *, task: str, name: str
) -> NDArray[np.int64]:  # fmt: skip
    """The labels of images that are scored. Raises InputError where their classes are not those learned from."""
    if images.labels is None:
        raise InputError(f"{task} needs labels, and {name} have none of the training images' classes")
    if tuple(images.classes) != tuple(classes):
        differing = ", ".join(sorted(set(images.classes) ^ set(classes))[:NAMED])
        raise InputError(f"{task}: {name} have different classes than the training images: {differing}")
    return images.labels


def warn_of_unseen(train: Source, asked: Source, log: Log) -> None:
    """Print a warning that names the classes without a training image, whose images can only count as wrong.

    asked: the validation images, or `train` itself, whose images are each classified by the others."""
    if train.labels is None or asked.labels is None:
        return
    known, counts = (np.bincount(labels, minlength=len(train.classes)) for labels in (train.labels, asked.labels))
    unseen = np.flatnonzero((counts > 0) & (known - (train is asked) < 1))
    if len(unseen):
        names = ", ".join(readable(train.classes[i]) for i in unseen[:NAMED]) + ", ..." * (len(unseen) > NAMED)
        other = "other" if train is asked else "training"
        log(
            f"warning: {counts[unseen].sum()} of {len(asked)} images count as wrong, as {len(unseen)} of the classes "
            f"have no {other} image: {names}"
        )
