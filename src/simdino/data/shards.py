"""Shards: large files with many images in each, read in any order: tars as WebDataset has them, Parquet and Arrow.

What is where is found once and kept, see `index`. An image's name is its shard's, without the ending, and its own in
the shard. For splits and classes it lies in a folder called like its shard without the number, so that
`train-000000.tar` and `val-000000.tar` are partners, and below that in its folder in the shard."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simdino.contracts import InputError
from simdino.data.files import Skipped
from simdino.data.index import read_index, watch, write_index
from simdino.data.names import Coded, Names
from simdino.data.stores import Store
from simdino.text import readable

KIND = "shards"  # of the index
FILES = {".tar": "tars", ".parquet": "tables", ".arrow": "tables"}
"""The ending of a shard -> the file of this folder whose KINDS can read it."""

_NUMBER = re.compile(r"(?P<stem>.*?)[-_.]?(?P<number>\d+)(-of-\d+)?")


@dataclass
class Shard:
    """The images of one shard, in its order."""

    names: list[str] = field(default_factory=list[str])  # in the shard, each different
    folders: list[str] = field(default_factory=list[str])  # in the shard, without a slash at their ends
    places: list[int] = field(default_factory=list[int])  # where each begins: a byte, or the number of a row
    sizes: list[int] = field(default_factory=list[int])  # in bytes
    classes: list[str | None] = field(default_factory=list["str | None"])
    labelled_by: str = ""  # what names the classes
    skipped: Skipped = field(default_factory=Skipped)
    notes: list[str] = field(default_factory=list[str])


class ShardKind(ABC):
    """How shards of an ending are read. One object reads all of a set's; it can be pickled and used after a fork."""

    @abstractmethod
    def contents(self, path: Path) -> Shard:
        """Return what is in a shard. Raises any error for a damaged one, InputError for one without images."""

    @abstractmethod
    def get(self, path: Path, place: int, size: int) -> bytes:
        """Return the bytes of an image."""


class ShardStore(Store):
    """The images of the shards in a folder, or of one."""

    def __init__(self, root: Path, files: Sequence[str], skipped: Skipped | None = None) -> None:
        """files: the shards' paths from the root. skipped: what else is there. Raises InputError for a damaged shard,
        and for shards of which none has an image."""
        self.files = list(files)
        self.kinds = {ending: kind_of(ending) for ending in {ending_of(name) for name in files}}
        kind = KIND if len(files) != 1 else f"{KIND} {files[0]}"
        kept = read_index(root, kind)
        if kept is None or kept.about["files"] != self.files:
            watched = {name: watch(root / name) for name in self.files}
            about, arrays = gathered(root, self.files, self.kinds, skipped or Skipped())
            write_index(root, kind, watched=watched, about=about, arrays=arrays)
        else:
            about, arrays = kept.about, kept.arrays
        prefixes = [f"{stem_of(name)}/" for name in self.files]
        super().__init__(root, Names.from_arrays(prefixes, arrays), Skipped(**about["skipped"]))
        self.of_shard, self.places, self.lengths = arrays["folders"], arrays["places"], arrays["sizes"]
        self.folders = Coded(about["placed"], arrays["placed"])
        self.classes = Coded(about["classes"], arrays["classes"]) if about["classes"] else None
        self.labelled_by, self.notes = about["labelled_by"], about["notes"]

    def get(self, name: str) -> bytes:
        """Return the bytes of one image. Raises OSError where its shard is gone or ends before it."""
        i = self._position(name)
        file = self.files[self.of_shard[i]]
        try:
            return self.kinds[ending_of(file)].get(self.path / file, int(self.places[i]), int(self.lengths[i]))
        except OSError as error:
            raise OSError(f"shard {readable(file)}: {error.strerror or error}") from error

    def size(self, name: str) -> int:
        """Return the size of one image in bytes; of Parquet the mean of its row group, packed."""
        return int(self.lengths[self._position(name)])

    def sizes(self, names: Sequence[str]) -> Sequence[int]:
        """Return the sizes of some of the images in bytes."""
        return self.lengths[names.positions()].tolist() if isinstance(names, Names) else super().sizes(names)

    def _position(self, name: str) -> int:
        i = bisect_left(self.names, name)
        if i == len(self.names) or self.names[i] != name:
            raise FileNotFoundError(f"no shard has {readable(name)}")
        return i


def shards_among(names: Sequence[str]) -> list[str]:
    """Return the files that are shards. Hugging Face keeps what it computed beside its Arrow files."""
    return [name for name in names if ending_of(name) and not name.rpartition("/")[2].startswith("cache-")]


def ending_of(name: str) -> str:
    """Return the ending of a shard's name; empty for any other file."""
    ending = name[name.rfind(".") :].lower() if "." in name else ""
    return ending if ending in FILES else ""


def stem_of(name: str) -> str:
    """Return a shard's path without its ending."""
    return name[: -len(ending_of(name))]


def group_of(name: str) -> str:
    """Return the folder that a shard counts as: its path without ending and number, `train` of `train-00001.tar`."""
    folder, slash, last = stem_of(name).rpartition("/")
    numbered = _NUMBER.fullmatch(last)
    return (folder + slash + (numbered["stem"] if numbered else last)).rstrip("/")


def kind_of(ending: str) -> ShardKind:
    """Return what reads shards of an ending."""
    kinds: dict[str, type[ShardKind]] = import_module(f"simdino.data.{FILES[ending]}").KINDS
    return kinds[ending]()


def gathered(
    root: Path, files: Sequence[str], kinds: dict[str, ShardKind], skipped: Skipped
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return what JSON can hold of a set of shards, and the arrays of its images by their sorted names."""
    shards = [opened(root, name, kinds[ending_of(name)]) for name in files]
    for ending in FILES:
        skipped.other.pop(ending, None)
    for shard in shards:
        add(skipped, shard.skipped)
    names = [f"{stem_of(name)}/{one}" for name, shard in zip(files, shards, strict=True) for one in shard.names]
    if not names:
        raise InputError(
            f"data: none of the {len(files)} shards in '{root}' has an image, first {files[0]} "
            f"({', '.join(skipped.lines()) or 'it is empty'}); give shards of image files"
        )
    order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
    of_shard = np.repeat(np.arange(len(files), dtype=np.int32), [len(shard.names) for shard in shards])[order]
    inside = [name for shard in shards for name in shard.names]
    ordered = Names.below(Coded(list(files), of_shard), [inside[i] for i in order])
    placed = Coded.of(
        "/".join(filter(None, (group_of(name), folder)))
        for name, shard in zip(files, shards, strict=True)
        for folder in shard.folders
    )
    classes, notes = labels_in(files, shards)
    about = {
        "files": list(files), "skipped": asdict(skipped), "placed": placed.values, "classes": classes.values,
        "labelled_by": next((shard.labelled_by for shard in shards if shard.labelled_by), ""),
        "notes": list(dict.fromkeys([*gaps(files), *notes, *(note for shard in shards for note in shard.notes)])),
    }  # fmt: skip
    places, sizes = (
        np.array([one for shard in shards for one in getattr(shard, of)], np.int64) for of in ("places", "sizes")
    )
    return about, ordered.arrays() | {
        "places": places[order], "sizes": sizes[order], "placed": placed.at[order], "classes": classes.at[order]
    }  # fmt: skip


def opened(root: Path, name: str, kind: ShardKind) -> Shard:
    """Return what is in a shard. Raises InputError where it is damaged."""
    try:
        return kind.contents(root / name)
    except InputError:
        raise
    except Exception as error:  # tarfile and pyarrow each raise their own for damaged input
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"data: cannot read the shard '{root / name}' ({why}); fetch or make it again, or take it away"
        ) from error


def add(skipped: Skipped, more: Skipped) -> None:
    """Count what is no image in a shard."""
    skipped.hidden += more.hidden
    skipped.no_files += more.no_files
    skipped.other = dict(Counter(skipped.other) + Counter(more.other))
    skipped.not_opened = dict(Counter(skipped.not_opened) + Counter(more.not_opened))


def labels_in(files: Sequence[str], shards: Sequence[Shard]) -> tuple[Coded[str], list[str]]:
    """Return the class of each image in the order of the shards, without values where not all have one, and a line
    where some have none."""
    found = [one for shard in shards for one in shard.classes]
    without = sum(one is None for one in found)
    if not without:
        return Coded.of(str(one) for one in found), []
    empty = Coded[str]((), np.zeros(len(found), np.int32))
    if without == len(found):
        return empty, []
    first = next(name for name, shard in zip(files, shards, strict=True) if None in shard.classes)
    return empty, [
        f"{without} of the {len(found)} images have no label, first in {readable(first)}, so that the labels of the "
        f"others are not read"
    ]


def gaps(files: Sequence[str]) -> list[str]:
    """Return a line where the numbers of the shards of a group have gaps: some may not have been fetched."""
    numbers: dict[str, list[int]] = {}
    for name in files:
        numbered = _NUMBER.fullmatch(stem_of(name).rpartition("/")[2])
        if numbered:
            numbers.setdefault(group_of(name), []).append(int(numbered["number"]))
    missing = {group: max(found) - min(found) + 1 - len(set(found)) for group, found in numbers.items()}
    return [
        f"of the shards {readable(group) or 'at the top'} {count} numbers between the first and the last are missing"
        for group, count in missing.items()
        if count
    ]
