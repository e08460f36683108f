"""Labelled images as protocols read them, and what is asked of their labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.data.sources import DataPath, open_dataset
from simdino.evaluate.given import Data, as_source
from simdino.feedback import Log
from simdino.text import readable

NAMED = 5  # classes that a line names


class HasLabels(Protocol):
    """A source of images, or their features."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Indices in `classes` [N]; None without labels."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        ...

    def __len__(self) -> int: ...


class Labelled:
    """Labelled images, opened when a protocol asks for training and validation images or for all of them.

    name: of the data set. counted: how many images of each split were opened."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.name = ""
        self.counted: dict[str, int] = {}

    def is_folder(self) -> bool:
        """Whether the data are a folder on the disk."""
        return isinstance(self.data, str | Path | DataPath) and Path(str(self.data)).expanduser().is_dir()

    def both(self, *, task: str, log: Log | None = None) -> tuple[Source, Source]:
        """The training images and the validation images, all labelled, of the same classes. log: called with a warning
        where classes have no training image.

        Raises InputError without labels, with one class only, without validation images and for other classes."""
        data = self.data
        if isinstance(data, Source):
            raise InputError(f"{task} needs training and validation images: give the two sources in a tuple")
        train, validation = (
            data if isinstance(data, tuple) else (open_dataset(data, "train"), open_dataset(data, "val"))
        )
        self.name = train.name
        if not len(validation):
            raise InputError(
                f"{train.name} has no validation images to classify: give data with a val/ folder or more images, or "
                f"--leave-one-out where the protocol has it"
            )
        check_labels(train, task=task, name=train.name)
        check_classes(validation, train.classes, task=task, name=f"the validation images of {train.name}")
        if log is not None:
            warn_of_unseen(train, validation, log)
        self.counted = {"train_images": len(train), "validation_images": len(validation)}
        return train, validation

    def all(self, *, task: str) -> Source:
        """All images of the data, of every split. Raises InputError without labels, or with one class."""
        source = as_source(self.data)
        self.name = source.name
        check_labels(source, task=task, name=source.name)
        return source


def same_classes(data: Data, classes: tuple[str, ...], *, task: str) -> Source:
    """All images of a further data set. Raises InputError where their classes are not those learned from."""
    source = as_source(data)
    check_labels(source, task=task, name=source.name)
    check_classes(source, classes, task=task, name=f"the images of {source.name}")
    return source


def check_labels(images: HasLabels, *, task: str, name: str = "the data") -> NDArray[np.int64]:
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


def check_classes(images: HasLabels, classes: Sequence[str], *, task: str, name: str) -> NDArray[np.int64]:
    """The labels of images that are scored. Raises InputError where their classes are not those learned from."""
    if images.labels is None:
        raise InputError(f"{task} needs labels, and {name} have none of the training images' classes")
    if tuple(images.classes) != tuple(classes):
        differing = ", ".join(sorted(set(images.classes) ^ set(classes))[:NAMED])
        raise InputError(f"{task}: {name} have different classes than the training images: {differing}")
    return images.labels


def warn_of_unseen(train: HasLabels, asked: HasLabels, log: Log) -> None:
    """Print a warning that names the classes that are asked for without an image to learn them from: their images can
    only count as wrong.

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
