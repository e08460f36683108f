"""DATA -> images: opens a folder, an archive, a list file or a built-in set by its name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import final, get_args

import numpy as np
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.base import ArraySource, Source
from simdino.data.builtin import (
    BUILTINS,
    IMAGENETTE_CLASSES,
    demo_data,
    fashion_mnist_available,
    imagenette_folder,
    open_arrays,
)
from simdino.data.decode import MAX_PIXELS, BrokenImage, decode, reason, upright_sides
from simdino.data.splits import Layout, Split, labels_of, share_classes
from simdino.data.stores import Store, open_store, stem

__all__ = [
    "BUILTINS",
    "MAX_PIXELS",
    "ArraySource",
    "BrokenImage",
    "FileSource",
    "Source",
    "Split",
    "absolute",
    "demo_data",
    "fashion_mnist_available",
    "open_source",
]


@final
class FileSource(Source):
    """Image files in a folder or an archive, decoded when they are read."""

    def __init__(
        self,
        name: str,
        store: Store,
        names: Sequence[str],
        labels: np.ndarray | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__(name, names, labels, classes)
        self.store = store

    def read(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
        """Image i as uint8 [C, H, W]; a large JPEG may come back smaller, its short side never below `at_least`."""
        return decode(self._bytes(i), self.names[i], channels=channels, at_least=at_least)

    def sides(self, i: int) -> tuple[int, int]:
        """Height and width of image i, as its header tells."""
        return upright_sides(self._bytes(i), self.names[i])

    def _bytes(self, i: int) -> bytes:
        name = self.names[i]
        try:
            return self.store.get(name)
        except Exception as error:  # a vanished file, a damaged or encrypted member: each archive has its own
            raise BrokenImage(name, reason(error)) from error


def open_source(data: str | Path, split: Split = "all") -> Source:
    """The images of a data set.

    Args:
        data: a folder (nested or flat), a .zip or .tar (also compressed), a list file (.txt, .lst, .csv: a path per
            line, perhaps a label after a tab or comma), or a built-in name. A path that exists wins over a name.
        split: "train" and "val" are the folders of these names (val also as valid, validation, test) at the top or
            below a single wrapper folder; without one for val, 10 % are held out by a hash of their names. "all" is
            everything.

    Labels come from a list's second column, else from the deepest folder; `classes` are those of all splits together.
    There are no labels where everything is one class or every image is a class of its own, and none in "train" and
    "val" where these have no class in common, as with a val folder that is not sorted into classes.

    Raises:
        InputError: nothing is there, it is of no known kind or unreadable, or it has no image for training.
    """
    if split not in get_args(Split):
        raise InputError(f"split: received '{split}'; give one of {', '.join(get_args(Split))}")
    if not str(data).strip():
        raise InputError("data: received an empty name; give a folder, an archive, a list file, or a built-in set")
    path = Path(data).expanduser()
    try:
        found = path.exists()
    except OSError as error:  # a folder on the way that may not be entered
        raise InputError(f"data: cannot look at '{data}' ({error.strerror}); give a path that you may read") from error
    if found:
        return _open_path(path, split)
    if str(data) == "imagenette":
        source = _open_path(imagenette_folder(), split)
        source.name, source.classes = "imagenette", IMAGENETTE_CLASSES
        return source
    if str(data) in BUILTINS:
        return open_arrays(str(data), split)
    raise InputError(_missing(data, path))


def absolute(where: str) -> str:
    """A path in full; the name of a built-in set as it is."""
    path = Path(where).expanduser()
    return str(path.resolve()) if path.exists() else where


def _open_path(path: Path, split: Split) -> Source:
    store, given = open_store(path)
    names = store.names
    if not names:
        raise InputError(_no_image(path))
    layout = Layout.of(names)
    labels, classes = labels_of(given or [layout.class_of(name) for name in names])
    everything = FileSource(stem(path), store, names, labels, classes)
    if split == "all":
        return everything
    splits = [layout.split_of(name) for name in names]
    if labels is not None and not share_classes(labels, splits):
        everything = FileSource(stem(path), store, names, None, ())
    chosen = [i for i, found in enumerate(splits) if found == split]
    if not chosen and split == "train":
        raise InputError(
            f"data: all {len(names)} images in '{path}' are held out and none is left for training; add images"
        )
    return everything.select(chosen)


def _no_image(path: Path) -> str:
    if path.is_dir() and not any(path.iterdir()):
        return f"data: the folder '{path}' is empty; give a folder with images in it"
    return f"data: '{path}' has no image file (such as .jpg, .png, .webp, .tif) in it or below it; give one that has"


def _missing(data: str | Path, path: Path) -> str:
    near = difflib.get_close_matches(str(data).lower().replace("_", "-"), BUILTINS, n=1)
    if near:
        return f"data: there is no file or folder '{data}'; did you mean the built-in set '{near[0]}'?"
    return (
        f"data: there is no file or folder '{data}' (looked for '{path.absolute()}'); give a folder, an archive, a "
        f"list file, or a built-in set ({', '.join(BUILTINS)})"
    )
