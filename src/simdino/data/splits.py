"""Which images are for training, which are held out, and what class each belongs to: all from their names."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import numpy as np

Split = Literal["train", "val", "all"]

TRAIN = "train"
HELD_OUT = ("val", "valid", "validation", "test")
"""Folders that hold out their images; where a data set has several, the first one is the split "val"."""

NO_FOLDER = "."
"""The class of images that lie beside the class folders."""

_ONE_IN = 10


def held_out(name: str) -> bool:
    """Whether an image of a data set without split folders is held out: about 10 % are.

    Depends on nothing but its name, so it is the same on every machine and whatever other files there are.
    """
    # Some systems store accents as separate characters.
    same = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(same, digest_size=8).digest(), "big") % _ONE_IN == 0


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a data set keeps its split folders. Without any, both are None."""

    depth: int  # the number of folders above the split folders: 0, or 1 below a single wrapper
    train: str | None  # the training folder's name as it is written
    val: str | None

    @classmethod
    def of(cls, names: Iterable[str]) -> Layout:
        """Finds the split folders at the top, or below the single folder that holds everything."""
        paths = [name.split("/") for name in names]
        layout = cls._at(paths, 0)
        wrapped = len({path[0] for path in paths}) == 1 and all(len(path) > 1 for path in paths)
        return cls._at(paths, 1) if wrapped and not layout.has_splits else layout

    @classmethod
    def _at(cls, paths: list[list[str]], depth: int) -> Layout:
        folders = {path[depth] for path in paths if len(path) > depth + 1}
        written = {folder.lower(): folder for folder in sorted(folders)}
        train = written.get(TRAIN)
        val = next((written[name] for name in HELD_OUT if name in written), None)
        if val is None and len(folders) > 1:
            train = None  # "train" beside "car" and "bus" is a vehicle
        if train is None and all(path[depth].lower() in HELD_OUT for path in paths):
            val = None  # with nothing to train on, these are ordinary folders
        return cls(depth=depth, train=train, val=val)

    @property
    def has_splits(self) -> bool:
        """Whether there are split folders."""
        return self.train is not None or self.val is not None

    def split_of(self, name: str) -> Literal["train", "val"] | None:
        """The split of an image, None for images outside the split folders."""
        folder = self._split_folder(name)
        if self.val is not None and folder == self.val:
            return "val"
        if self.train is not None and (folder is None or folder != self.train):
            return None
        if self.train is None and folder is not None:
            return None  # a second held-out folder
        return "val" if self.val is None and held_out(name) else "train"

    def class_of(self, name: str) -> str:
        """The deepest folder, never a split folder."""
        path = name.split("/")
        first = self.depth + 1 if self._split_folder(name) is not None else 0
        folders = path[first:-1]
        return folders[-1] if folders else NO_FOLDER

    def _split_folder(self, name: str) -> str | None:
        path = name.split("/")
        if not self.has_splits or len(path) <= self.depth + 1:
            return None
        folder = path[self.depth]
        return folder if folder == self.train or folder.lower() in HELD_OUT else None


def labels_of(classes: Sequence[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The class of each image -> int64 [N] labels and the sorted classes; (None, ()) where they say nothing: one
    class for everything, or a class of its own for every image."""
    known = tuple(sorted(set(classes)))
    if len(known) < 2 or len(known) == len(classes):
        return None, ()
    position = {name: i for i, name in enumerate(known)}
    return np.array([position[name] for name in classes], dtype=np.int64), known


def share_classes(labels: np.ndarray, splits: Sequence[str | None]) -> bool:
    """Whether some held-out image has the class of a training image, or there is nothing to compare.

    labels: int64 [N]; splits: the split of each image. Without a class in common every k-NN score would be 0."""
    found = {
        split: {int(label) for label, its in zip(labels, splits, strict=True) if its == split}
        for split in ("train", "val")
    }
    return not all(found.values()) or not found["train"].isdisjoint(found["val"])
