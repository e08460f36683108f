"""DATA -> images: a folder, an archive, a list file or a built-in set is opened by its name."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, final, get_args

import numpy as np
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.base import PYTHON, Source, Splits, splits_of
from simdino.data.builtin import BuiltIn
from simdino.data.contents import contents_of
from simdino.data.decode import Decoded, sides
from simdino.data.files import ARCHIVES, LISTS, MIXTURE, TABLES, annotated, stem
from simdino.data.lists import read_list
from simdino.data.mixtures import open_mixture
from simdino.data.names import Coded, folders_in, selected
from simdino.data.opening import breaking, is_image_name
from simdino.data.scale import Scale
from simdino.data.shards import ShardStore, ending_of, shards_among
from simdino.data.splits import DataPath, Layout, Part, Split, inside, labels_of
from simdino.data.stores import FolderStore, Store, TarStore, ZipStore
from simdino.settings import Values

FILES = ("builtin",)
SOURCES: dict[str, BuiltIn] = {
    name: source for file in FILES for name, source in import_module(f"simdino.data.{file}").SOURCES.items()
}
"""Every data set that has a name. Each file has some."""


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
        self.scale = Scale(store.get, store.names)

    def read(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
        """Return image i as [C, H, W]; a large JPEG may come back smaller, never below `at_least`."""
        return self.examine(i, channels, at_least=at_least).pixels

    def examine(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Decoded:
        """Return image i as `read` gives it, with what had to be done to it."""
        return self.scale.decode(self._bytes(i), self.names[i], channels=channels, at_least=at_least)

    def with_values(self, values: Values | None) -> FileSource:
        """Return the source with these values of its deep images as 0 and 1, where given."""
        if values is None or values == self.scale.values:
            return self
        part = copy.copy(self)
        part.scale = Scale(self.store.get, self.scale.sample, values=values)
        return part

    def sides(self, i: int) -> tuple[int, int]:
        """Return height and width of image i, as its header tells."""
        return sides(self._bytes(i), self.names[i])

    def stored_bytes(self, i: int) -> int:
        """Return the size of image i's file in bytes."""
        return self.store.size(self.names[i])

    def sizes(self) -> Sequence[int]:
        """Return the sizes of all images' files in bytes."""
        return self.store.sizes(self.names)

    def _bytes(self, i: int) -> bytes:
        with breaking(None, self.names[i]):  # a vanished file, a damaged or encrypted member: each has its own error
            return self.store.get(self.names[i])


def open_dataset(data: str | Path | DataPath, split: Split = "all") -> Source:
    """Return the images of a data set.

    Args:
        data: a folder (nested or flat; of images or of shards), a .zip or .tar (also compressed), a .parquet or .arrow,
            a list file (.txt, .lst, .csv: a path per line, perhaps label and split after a tab or comma), a mixture
            (.mix: a set per line, perhaps its weight), or a built-in name; with `DataPath` also which of its folders
            are splits, and which name classes. A path that exists wins over a name.
        split: "train" and "val" are folders of such names that are partners of each other, see `splits.Layout`;
            without them, 10 % are held out by a hash of their names. "all" is everything.

    Labels come from a list's second column, else from the first folder below the split; `classes` are those of both
    splits together. There are no labels where everything is one class or every image is a class of its own, and none
    in "val" where no validation image has a class of the training images, as with a val folder without class folders.

    Raises:
        InputError: nothing is there, it is of no known kind or unreadable, or it has no image for training.
    """
    if split not in get_args(Split):
        raise InputError(f"split: received '{split}'; give one of {', '.join(get_args(Split))}")
    return _opened(data, (split,))[0]


def open_splits(data: Any) -> Splits:
    """Return the images of a data set for training and for validation, see `open_dataset`."""
    if not isinstance(data, str | Path | DataPath):
        return splits_of(data)
    train, val = _opened(data, ("train", "val"))
    return Splits(train, val)


def _opened(data: str | Path | DataPath, parts: Sequence[Split]) -> list[Source]:
    """Return the images of some splits of a data set, whose files are listed once."""
    asked = data if isinstance(data, DataPath) else DataPath(root=str(data))
    root = asked.root or ""
    if not root.strip():
        raise InputError("data: received an empty name; give a folder, an archive, a list file, or a built-in set")
    if root.startswith(PYTHON):
        raise InputError(f"data: {root} is a data set of a program: give it again from Python, data=...")
    path = Path(root).expanduser()
    try:
        found = path.exists()
    except OSError as error:  # a folder on the way that may not be entered
        raise InputError(f"data: cannot look at '{root}' ({error.strerror}); give a path that you may read") from error
    if found and path.name.lower().endswith(MIXTURE) and path.is_file():
        if asked.train is not None or asked.val is not None:
            raise InputError(f"data: the sets of '{root}' have splits of their own: leave out --train and --val")
        return open_mixture(path, lambda one: _opened(replace(asked, root=str(one)), parts))
    if found:
        return [*_open_path(path, parts, asked)]
    if root not in SOURCES:
        raise InputError(_missing(root, path))
    if asked != DataPath(root=root):
        raise InputError(f"data: '{root}' has splits and classes of its own: leave out --train, --val, --class-depth")
    named = SOURCES[root]
    if named.folder is None:
        return [named.in_memory(root, split) for split in parts]
    sources = _open_path(named.folder(), parts, asked)
    for source in sources:
        source.name, source.classes = root, named.classes or source.classes
    return [*sources]


def absolute(where: str) -> str:
    """Return a path in full; the name of a built-in set stays as it is."""
    path = Path(where).expanduser()
    try:
        return str(path.resolve()) if path.exists() else where
    except OSError:  # a folder on the way that may not be entered; opening it says so
        return where


def located(data: DataPath) -> DataPath:
    """Return the same with the whole path of its root, and its folders as paths from there."""
    assert data.root is not None
    train, val = (None if name is None else inside(data.root, name) for name in (data.train, data.val))
    return replace(data, root=absolute(data.root), train=train, val=val)


def open_store(path: Path) -> Store:
    """Return the store for a folder, an archive, a list file or one image.

    Raises InputError where the file is of no known kind or cannot be read."""
    kind = path.name.lower()
    if path.is_dir():
        store = FolderStore.walk(path)
        shards = shards_among(store.others)
        return ShardStore(path, shards, store.skipped) if shards else store
    if kind.endswith(LISTS):
        return read_list(path)
    if kind.endswith(ARCHIVES):
        return ZipStore(path) if kind.endswith(".zip") else TarStore(path)
    if ending_of(kind):
        return ShardStore(path.parent, [path.name])
    if is_image_name(kind):
        return FolderStore(path.parent, [path.name])
    raise InputError(
        f"data: '{path}' is no folder and no file of a known kind ({', '.join((*ARCHIVES, *TABLES))}, a list of "
        f"paths in {', '.join(LISTS)}, a mixture in {MIXTURE}); give a folder of images, unpacked if this is an archive"
    )


def _open_path(path: Path, parts: Sequence[Split], asked: DataPath) -> list[FileSource]:
    store = open_store(path)
    names = store.names
    if not names:
        raise InputError("; ".join(filter(None, (_no_image(path), store.skipped.closed_images()))))
    folders = store.folders or folders_in(_below_one_root(path, names))
    layout = Layout.of(folders.counts(), asked)
    by_list = store.splits is not None and asked.train is None and asked.val is None
    splits = store.splits if by_list and store.splits is not None else layout.splits_of(names, folders)
    classes = store.classes or layout.classes_of(folders)
    file: str | None = None
    if store.naming:
        out = np.flatnonzero(splits.where("val"))
        named, file = annotated(store.texts(), selected(names, out))
        classes = classes.replaced({int(out[i]): found for i, found in named.items()})
    found = [_part_of(path, store, split, splits, classes) for split in parts]
    known = found[0].classes or _labels_in("train", splits, classes)[1]
    contents = contents_of(store, layout, folders, splits, by_list=by_list, classes=known, file=file)
    for source in found:
        source.contents = contents
    return found


def _part_of(path: Path, store: Store, split: Split, splits: Coded[Part | None], classes: Coded[str]) -> FileSource:
    """Return the images of one split. Raises InputError where it is for training and has none."""
    chosen = np.flatnonzero(splits.where(split)) if split != "all" else np.arange(len(splits))
    if not len(chosen) and split == "train":
        raise InputError(
            f"data: all {len(splits)} images in '{path}' are held out and none is left for training; add images"
        )
    labels, known = _labels_in(split, splits, classes)
    names = selected(store.names, chosen)
    return FileSource(stem(path), store, names, None if labels is None else labels[chosen], known)


def _below_one_root(path: Path, names: Sequence[str]) -> Sequence[str]:
    """Return the names as they are, or in full where a list names images outside of its own folder."""
    if path.is_dir() or not any(name.startswith(("/", "../")) for name in names):
        return names
    folder = path.resolve().parent
    return [Path(os.path.normpath(folder / name)).as_posix() for name in names]


def _labels_in(
    split: Split, splits: Coded[Part | None], classes: Coded[str]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Return the labels of all images, of which only those of the split count, and the names of the classes.

    "train" and "val" know the classes of both, unless they have none in common: then every k-NN score would be 0, and
    the validation images have no labels."""
    if split == "all":
        return labels_of(classes)
    parts = {part: splits.where(part) for part in ("train", "val")}
    train, val = (classes.chosen(mask).counts() for mask in parts.values())
    apart = bool(train and val) and not train.keys() & val.keys()
    if apart and split == "val":
        return None, ()
    kept = parts["train"] if apart else parts["train"] | parts["val"]
    found, known = labels_of(classes.chosen(kept))
    if found is None:
        return None, ()
    labels = np.zeros(len(classes), dtype=np.int64)
    labels[kept] = found
    return labels, known


def _no_image(path: Path) -> str:
    if path.is_dir() and not any(path.iterdir()):
        return f"data: the folder '{path}' is empty; give a folder with images in it"
    return f"data: '{path}' has no image file (such as .jpg, .png, .webp, .tif) in it or below it; give one that has"


def _missing(data: str, path: Path) -> str:
    near = difflib.get_close_matches(data.lower().replace("_", "-"), SOURCES, n=1)
    if near:
        return f"data: there is no file or folder '{data}'; did you mean the built-in set '{near[0]}'?"
    return (
        f"data: there is no file or folder '{data}' (looked for '{path.absolute()}'); give a folder, an archive, a "
        f"list file, or a built-in set ({', '.join(SOURCES)})"
    )
