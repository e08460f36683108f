"""The data that a person gives a protocol: their path or name, or images that are open already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from simdino.errors import InputError
from simdino.keywords import ClassDepth, TrainFolder, ValFolder

if TYPE_CHECKING:
    from simdino.data.base import Source
    from simdino.data.splits import DataPath

    Data = str | Path | DataPath | Source | tuple[Source, Source]
else:
    Data = object
"""A data set by its path or name, with what is said of its folders, as images, or as training and validation images."""


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
