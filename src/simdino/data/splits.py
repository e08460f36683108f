"""Which images are for training, which for validation, and what class each belongs to: all from their names.

The rules, which `simdino inspect` reports for a data set (docs/data.md):

    a split folder needs its partner: train/ with val/, train2017/ with val2017/, seg_train/ with seg_test/
    they may lie below any number of folders that hold nothing else
    the class is the first folder below the split folder
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np

from simdino.config import DataConfig
from simdino.contracts import InputError
from simdino.data.names import Coded, selected

Part = Literal["train", "val"]
Split = Literal["train", "val", "all"]

TRAIN = ("train", "training", "trainset")
HELD_OUT = ("val", "valid", "validation", "valset", "test", "testing", "testset")
"""Words that name validation folders; where a data set has several, the first one here is the split "val"."""

NO_FOLDER = "."
"""The class of images that lie beside the class folders."""

_ONE_IN = 10
_WORD = re.compile(rf"(.*[^a-z])?({'|'.join((*TRAIN, *HELD_OUT))})([^a-z].*)?", re.IGNORECASE)
_PLAIN = re.compile(r"(images?|imgs?|data|dataset|set|folder|split|[^a-z])*", re.IGNORECASE)


def in_validation(name: str) -> bool:
    """Return whether an image of a data set without split folders is for validation: about 10 % are.

    It depends on the image's name alone, so it is the same on every machine and whatever other files there are."""
    # Some systems store accents as separate characters.
    same = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(same, digest_size=8).digest(), "big") % _ONE_IN == 0


def folder_of(name: str) -> str:
    """Return the folder of an image, without a slash at its end; empty at the top."""
    return name.rpartition("/")[0]


def lies_in(folder: str, outer: str) -> bool:
    """Return whether a folder is another one or lies below it."""
    return f"{folder}/".startswith(f"{outer}/")


def split_word(folder: str) -> tuple[str, str] | None:
    """Return the word for a split in a folder's name, and what is around it: "train2017" -> ("train", "*2017")."""
    found = _WORD.fullmatch(folder)
    if found is None:
        return None
    before, word, after = (part or "" for part in found.groups())
    return word.lower(), f"{before}*{after}".lower()


def looks_like_split(folder: str) -> bool:
    """Return whether a folder's name is a split's and little else: "val_256" is, "test-tube" is not."""
    found = split_word(folder)
    return found is not None and _PLAIN.fullmatch(found[1].replace("*", "")) is not None


@dataclass(frozen=True, kw_only=True)
class DataPath:
    """A data set by its path or name, and the folders that a person named as its splits; None: their names tell."""

    root: str | None = None  # None: the data that a run was trained on
    train: str | None = None  # the folder of training images
    val: str | None = None  # the folder of validation images
    class_depth: int | None = None  # how many folders name a class, see `Layout.class_of`

    def __str__(self) -> str:
        return self.root or "what the run was trained on"

    def folders(self) -> dict[str, str | int]:
        """Return the options that a person gave for its folders, by name."""
        given = {"train": self.train, "val": self.val, "class_depth": self.class_depth}
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def of(cls, config: DataConfig) -> DataPath:
        """Return the data that a run's configuration names."""
        return cls(root=config.root, train=config.train, val=config.val, class_depth=config.class_depth)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a data set has its splits and classes. Folders are paths from its root, without a slash at their end."""

    train: str | None  # None where there are no split folders, or all other images are for training
    val: str | None
    others: tuple[str, ...]  # further split folders beside these two, which are left out
    top: str  # the prefix below which classes begin, for images in no split folder
    tops: Mapping[str, str] = field(default_factory=dict)  # the same prefix for each split folder
    letters: bool = False  # whether the folders there are single letters, the initials of the folders in them
    class_depth: int | None = None

    @classmethod
    def of(cls, folders: Mapping[str, int], asked: DataPath | None = None) -> Layout:
        """Find the split folders, or take those asked for.

        folders: the number of images directly in each. Raises InputError for a missing folder that was asked for."""
        asked = asked or DataPath()
        if asked.class_depth == 0:
            raise InputError(
                "--class-depth 0 names no folder: give 1 for the first one below the split, -1 for the last"
            )
        level = below_wrappers(folders, "")
        if asked.train is not None or asked.val is not None:
            train, val = asked_folders(folders, asked)
            others: tuple[str, ...] = ()
        else:
            train, val, others = partners(images_below(folders, level))
            train, val = (None if name is None else level + name for name in (train, val))
        kept = {name: {one for one in folders if lies_in(one, name)} for name in (train, val) if name is not None}
        rest = set(folders).difference(*kept.values())
        top = below_wrappers(rest, level if others or kept else "")
        starts = {} if train is None else {train: below_wrappers(kept[train], f"{train}/")}
        reference = top if train is None else starts[train]
        deep = reference[len(f"{train}/") if train is not None else 0 :].count("/")
        if val is not None:
            starts[val] = below_wrappers(kept[val], f"{val}/", at_most=deep)
        starts |= {level + name: f"{level}{name}/" for name in others}
        return cls(
            train=train,
            val=val,
            others=tuple(level + name for name in others),
            top=top,
            tops=starts,
            letters=asked.class_depth is None and letter_folders(kept[train] if train is not None else rest, reference),
            class_depth=asked.class_depth,
        )

    def part_of(self, folder: str) -> str | None:
        """Return the split folder that a folder is or lies in, or None for one outside of them."""
        known = (name for name in (self.val, self.train, *self.others) if name is not None)
        return next((name for name in known if lies_in(folder, name)), None)

    def split_of(self, folder: str) -> Part | Literal["either"] | None:
        """Return the split of a folder's images: "either" where their names decide, None where they are left out."""
        part = self.part_of(folder)
        if part is not None and part == self.val:
            return "val"
        if part != self.train:
            return None
        return "either" if self.val is None else "train"

    def splits_of(self, names: Sequence[str], folders: Coded[str]) -> Coded[Part | None]:
        """Return the split of each image, by its name and its folder."""
        found = folders.mapped(self.split_of)
        either = np.flatnonzero(found.where("either"))
        drawn: dict[int, Part | Literal["either"] | None] = {
            i: "val" if in_validation(name) else "train"
            for i, name in zip(either.tolist(), selected(names, either), strict=True)
        }
        return found.replaced(drawn)  # pyright: ignore[reportReturnType]

    def class_of(self, folder: str) -> str:
        """Return the class of a folder's images: the first folder below the split, or with class_depth the first so
        many as a path. A class_depth below 0 counts from the image and takes that folder's name alone."""
        top = self._top_of(folder)
        if not folder or top.startswith(f"{folder}/"):
            return NO_FOLDER
        path = folder[len(top) :].split("/")
        if self.letters and len(path) > 1:
            return "/".join(path[1:])
        depth = self.class_depth or 1
        return "/".join(path[:depth] if depth > 0 else path[max(0, len(path) + depth) :][:1])

    def below_class(self, folder: str) -> bool:
        """Return whether a folder lies below the first folder of its class."""
        top = self._top_of(folder)
        return folder.startswith(top) and "/" in folder[len(top) :]

    def _top_of(self, folder: str) -> str:
        """Return the prefix below which the class of a folder begins."""
        part = self.part_of(folder)
        return self.top if part is None else self.tops[part]

    def classes_of(self, folders: Coded[str]) -> Coded[str]:
        """Return the class of each image, by its folder."""
        return folders.mapped(self.class_of)


def partners(tops: Mapping[str, int]) -> tuple[str | None, str | None, tuple[str, ...]]:
    """Return the training folder and its partner for validation, of folders that lie side by side, and further split
    folders.

    Of several pairs the one with the most training images is taken. Without partners nothing is."""
    spelled = {found: name for name in sorted(tops, reverse=True) if (found := split_word(name)) is not None}

    def spelled_as(words: Iterable[str], around: str) -> str | None:
        return next((spelled[word, around] for word in words if (word, around) in spelled), None)

    pairs = [
        (train, val)
        for around in sorted({around for _, around in spelled})
        if (train := spelled_as(TRAIN, around)) and (val := spelled_as(HELD_OUT, around))
    ]
    if not pairs:
        return None, None, ()
    train, val = max(pairs, key=lambda pair: tops[pair[0]])
    others = (name for name in sorted(tops) if name not in (train, val) and looks_like_split(name))
    return train, val, tuple(others)


def asked_folders(folders: Iterable[str], asked: DataPath) -> tuple[str | None, str | None]:
    """Return the split folders that a person named. Raises InputError for one without images, or one inside the
    other."""
    paths = [name.split("/") for name in folders if name]
    known = {"/".join(path[:end]) for path in paths for end in range(1, len(path) + 1)}
    found: list[str | None] = []
    for option, given in (("--train", asked.train), ("--val", asked.val)):
        name = None if given is None else inside(asked.root or "", given)
        if name is not None and name not in known:
            has = ", ".join(f"{one}/" for one in sorted(known, key=lambda one: (one.count("/"), one))[:8])
            raise InputError(
                f"{option} {given}: '{asked.root}' has no folder of this name with images; "
                f"{f'it has {has}' if has else 'it has no folders'}"
            )
        found.append(name)
    train, val = found
    if train is not None and val is not None and lies_in(train, val):
        raise InputError(f"--train {asked.train} lies in --val {asked.val}: nothing would be left for training")
    return train, val


def inside(root: str, folder: str) -> str:
    """Return a folder as a path from the root; it may also be given as a path on the disk."""
    whole, path = Path(root).expanduser(), Path(folder).expanduser()
    if (path.is_absolute() or not (whole / path).is_dir()) and path.resolve().is_relative_to(whole.resolve()):
        path = path.resolve().relative_to(whole.resolve())
    return path.as_posix()


def images_below(folders: Mapping[str, int], prefix: str) -> Counter[str]:
    """Return how many images there are in and below each of the first folders below a prefix."""
    found: Counter[str] = Counter()
    for folder, count in folders.items():
        if folder and folder.startswith(prefix):
            found[folder[len(prefix) :].split("/")[0]] += count
    return found


def below_wrappers(folders: Iterable[str], prefix: str, *, at_most: int | None = None) -> str:
    """Return the prefix extended by the single folders below it that hold further folders, at most so many of them."""
    steps = 0
    while at_most is None or steps < at_most:
        inside = [folder[len(prefix) :] for folder in folders if folder.startswith(prefix) and folder]
        found = {folder.split("/")[0] for folder in inside}
        if len(found) != 1 or not any("/" in folder for folder in inside):
            return prefix
        prefix, steps = f"{prefix}{found.pop()}/", steps + 1
    return prefix


def letter_folders(folders: Iterable[str], prefix: str) -> bool:
    """Return whether every folder below the prefix is a letter, the initial of the folders in it, as in Places365."""
    paths = [folder[len(prefix) :].split("/") for folder in folders if folder.startswith(prefix)]
    return bool(paths) and all(
        len(path) > 1 and len(path[0]) == 1 and path[1][:1].lower() == path[0].lower() for path in paths
    )


def labels_of(classes: Coded[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Return int64 [N] labels and the sorted classes from the class of each image. Return (None, ()) where they say
    nothing: one class for everything, or one class for every image."""
    known = tuple(sorted(classes.counts()))
    if len(known) < 2 or len(known) == len(classes):
        return None, ()
    position = {name: i for i, name in enumerate(known)}
    return np.array([position.get(name, -1) for name in classes.values], dtype=np.int64)[classes.at], known
