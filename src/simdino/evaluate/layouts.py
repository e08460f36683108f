"""What protocols read: labelled images, plain images, or a folder in a layout of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from simdino.errors import InputError
from simdino.keywords import ClassDepth, TrainFolder, ValFolder

if TYPE_CHECKING:
    from simdino.data.base import Source
    from simdino.data.splits import DataPath
    from simdino.feedback import Log

    Data = str | Path | DataPath | Source | tuple[Source, Source]
else:
    Data = object
"""A data set by its path or name, with what is said of its folders, as images, or as training and validation images."""

D = TypeVar("D")


@dataclass(frozen=True, kw_only=True)
class Layout(Generic[D]):
    """A kind of data.

    text: the help of --data. open: from what a person gave to what a protocol reads. folders: whether --train, --val
    and --class-depth say something of it. required: whether it must be given; else it is what a run was trained on."""

    text: str
    open: Callable[[Data], D]
    folders: bool = False
    required: bool = False


class Labelled:
    """Labelled images, of which a protocol opens training and validation images or all of them.

    name: of the data set. counted: how many images of each split were opened."""

    def __init__(self, data: Data) -> None:
        self.data, self.name = data, ""
        self.counted: dict[str, int] = {}

    def is_folder(self) -> bool:
        """Whether the data are a folder on the disk."""
        from simdino.data.splits import DataPath

        return isinstance(self.data, str | Path | DataPath) and Path(str(self.data)).expanduser().is_dir()

    def both(self, *, task: str, log: Log | None = None) -> tuple[Source, Source]:
        """The training images and the validation images, all labelled, of the same classes. log: called with a warning
        where classes have no training image.

        Raises InputError without labels, with one class only, without validation images and for other classes."""
        from simdino.data.base import Source
        from simdino.data.sources import open_dataset
        from simdino.evaluate.labels import check_classes, check_labels, warn_of_unseen

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
        from simdino.evaluate.labels import check_labels

        source = as_source(self.data)
        self.name = source.name
        check_labels(source, task=task, name=source.name)
        return source


def as_source(data: Data) -> Source:
    """All images of the data. Raises InputError for two sources."""
    from simdino.data.base import Source
    from simdino.data.sources import open_dataset

    if isinstance(data, tuple):
        raise InputError("this protocol reads all images of the data: give one source")
    return data if isinstance(data, Source) else open_dataset(data)


def as_folder(data: Data) -> Path:
    """The folder of data in a layout of their own. Raises InputError for images that are open already."""
    from simdino.data.splits import DataPath

    if not isinstance(data, str | Path | DataPath):
        raise InputError("this protocol reads a folder with more than images in it: give its path")
    return Path(str(data))


def data_path(
    root: str | None, *, train: TrainFolder = None, val: ValFolder = None, class_depth: ClassDepth = None
) -> DataPath:
    """Data by their path or name, and what is said of their folders."""
    from simdino.data.splits import DataPath

    return DataPath(root=root, train=train, val=val, class_depth=class_depth)


LABELLED = Layout(text="Labelled images.", open=Labelled, folders=True)
IMAGES = Layout(text="Images; no labels are read.", open=as_source)
