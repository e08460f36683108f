"""What protocols read: labelled images, plain images, or a folder in a layout of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from simdino.errors import InputError
from simdino.keywords import ClassDepth, TrainFolder, ValFolder

if TYPE_CHECKING:
    from simdino.data.base import Source
    from simdino.data.splits import DataPath
    from simdino.evaluate.labels import Labelled

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


def as_labelled(data: Data) -> Labelled:
    """Labelled images, of which a protocol opens the splits that it needs."""
    from simdino.evaluate.labels import Labelled

    return Labelled(data)


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


def name_of(opened: Any) -> tuple[str, dict[str, int]]:
    """What opened data are called, and how many images of each split were opened."""
    if isinstance(opened, Path):
        return opened.expanduser().resolve().name, {}
    return opened.name, getattr(opened, "counted", {})


def data_path(
    root: str | None, *, train: TrainFolder = None, val: ValFolder = None, class_depth: ClassDepth = None
) -> DataPath:
    """Data by their path or name, and what is said of their folders."""
    from simdino.data.splits import DataPath

    return DataPath(root=root, train=train, val=val, class_depth=class_depth)


LABELLED = Layout(text="Labelled images.", open=as_labelled, folders=True)
IMAGES = Layout(text="Images; no labels are read.", open=as_source)
