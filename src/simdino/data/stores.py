"""Where the bytes of image files come from: folders, zip and tar archives.

Names of files are relative to the root, with "/" between parts. A store can be pickled and used after a fork."""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from simdino.contracts import InputError
from simdino.data.files import Skipped, names_classes, stem, wanted
from simdino.data.listing import indexed, listing
from simdino.data.names import Coded, Names
from simdino.data.splits import Part

MAX_UNPACKED = 2 * 1024**3
"""The most bytes of images in a compressed tar, which is kept in memory because it cannot be read in random order."""

MAX_LINKS = 40  # on the way to a file, as Linux has it

T = TypeVar("T")


class Store(ABC):
    """Image files and their bytes.

    Attributes:
        path: the folder or the archive.
        names: the sorted names of the image files, or those of a list file in the order of its lines.
        skipped: what became of all other files.
        naming: the names of the files that name classes.
        classes: the class of each image, where a list file or a shard gives it.
        splits: the split of each image, where a list file gives it.
        labelled_by: what gives `classes`.
        folders: where each image counts as lying, where that is not the folder in its name.
        notes: warnings about the list or the shards.
    """

    classes: Coded[str] | None = None
    splits: Coded[Part | None] | None = None
    labelled_by: str = "the list's column"
    folders: Coded[str] | None = None
    notes: Sequence[str] = ()

    def __init__(
        self, path: Path, names: Sequence[str], skipped: Skipped | None = None, naming: Sequence[str] = ()
    ) -> None:
        self.path, self.names, self.skipped, self.naming = path, names, skipped or Skipped(), naming

    @abstractmethod
    def get(self, name: str) -> bytes:
        """Return the bytes of one file."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Return the size of one file in bytes, unpacked; -1 where it is gone."""

    def sizes(self, names: Sequence[str]) -> Sequence[int]:
        """Return the sizes of some of the files in bytes, as `size` has them."""
        return [self.size(name) for name in names]

    def texts(self) -> dict[str, str]:
        """Return the content of the files that name classes, by their names. Bytes that are not UTF-8 are replaced,
        since no class name has any."""
        return {name: self.get(name).decode("utf-8", errors="replace") for name in self.naming}


class FolderStore(Store):
    """Image files below a root. Absolute names (from list files) are read where they are."""

    listed: NDArray[np.int64] | None = None
    """The sizes of the files when the folder was listed, which are of all `names`."""
    others: Sequence[str] = ()
    """The files that are no images, of a folder without any."""

    @classmethod
    def walk(cls, root: Path, *, every_name: bool = False) -> FolderStore:
        """Return a store of every image file below the root. Raises InputError where the root cannot be listed.

        every_name: whether each hard or symbolic link to a file counts as an image; otherwise each file is one
        image."""
        try:
            found = listing(root, every_name=True) if every_name else indexed(root)
        except OSError as error:
            raise InputError(
                f"data: cannot list the folder '{error.filename}' ({error.strerror}); give a folder that you may read"
            ) from error
        store = cls(root, found.names, found.skipped, found.naming)
        store.listed, store.others = found.sizes, found.others
        return store

    def get(self, name: str) -> bytes:
        """Return the bytes of one file."""
        path = self.path / name
        if not path.is_file() and path.exists():  # a pipe or a device: reading it could last for ever
            raise OSError("it is no regular file")
        return path.read_bytes()

    def size(self, name: str) -> int:
        """Return the size of one file in bytes; -1 where it is gone."""
        try:
            return (self.path / name).stat().st_size
        except OSError:
            return -1

    def sizes(self, names: Sequence[str]) -> Sequence[int]:
        """Return the sizes of some of the files in bytes, as they were when the folder was listed."""
        if self.listed is None or not isinstance(names, Names):
            return super().sizes(names)
        return self.listed[names.positions()].tolist()


@dataclass
class Members(Generic[T]):
    """The content of an archive: files by name, each with what is needed to read its bytes, and links."""

    files: dict[str, T] = field(default_factory=dict[str, T])
    same: dict[str, str] = field(default_factory=dict[str, str])  # hard links: another name of a file
    links: dict[str, str] = field(default_factory=dict[str, str])  # symbolic links: where they point, from the root
    folders: set[str] = field(default_factory=set[str])

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link. A target outside of the archive keeps its "/" or ".."."""
        self.links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))

    def target(self, name: str) -> str | None:
        """Return the file or folder that a name leads to through hard and symbolic links, or None."""
        for _ in range(MAX_LINKS):
            if name in self.files or name in self.folders:
                return name
            if name in self.same:
                name = self.same[name]
                continue
            on_the_way = next((path for path in (*folders_above(name), name) if path in self.links), None)
            if on_the_way is None:
                return None
            name = posixpath.normpath(self.links[on_the_way] + name[len(on_the_way) :])
        return None

    def images(self, skipped: Skipped) -> dict[str, T]:
        """Return the images by their names. Where names lead to one file, the real name is kept before links."""
        found: dict[str, T] = {}
        taken: set[str] = set()
        self.folders.update(above for name in self.files for above in folders_above(name))
        for name in (*sorted((*self.files, *self.same)), *sorted(self.links)):
            target = self.target(name)
            if target is None:
                skipped.dangling.append(name)
            elif target in self.folders:
                skipped.repeated_folders.append(name)
            elif wanted(name, skipped):
                if target in taken:
                    skipped.repeated.append(name)
                else:
                    taken.add(target)
                    found[name] = self.files[target]
        return dict(sorted(found.items()))


def folders_above(name: str) -> list[str]:
    """Return the folders that a name lies in, the outermost first."""
    parts = name.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


class Archive(Store, Generic[T]):
    """The image files of an archive, links followed, each file once. Its kinds find and read the members.

    Packing the folder `photos` gives `photos.zip` with everything below `photos/`: that folder is the root, so that an
    archive and its folder give the same names to images."""

    def __init__(self, path: Path) -> None:
        """Raises InputError where the archive cannot be read."""
        self.path, root, skipped = path, f"{stem(path)}/", Skipped()
        try:
            members = self._members(skipped)
            images = members.images(skipped)
            if all(name.startswith(root) for name in images):
                images = {name.removeprefix(root): place for name, place in images.items()}
            naming = [name for name in members.files if names_classes(name)]
            super().__init__(path, list(images), skipped, naming)
            self.places = images | {name: members.files[name] for name in naming}
            self._prepare()
        except InputError:
            raise
        except Exception as error:  # zipfile, tarfile, gzip, bz2 and lzma each raise their own for damaged input
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(
                f"data: cannot read the archive '{path}' ({why}); make it again, or unpack it and give the folder"
            ) from error

    @abstractmethod
    def _members(self, skipped: Skipped) -> Members[T]:
        """Return the members, by their names without a leading "./". Those that are no files are counted."""

    def _prepare(self) -> None:
        """Make the members readable that `places` lists, where the format needs it."""


class ZipStore(Archive[str]):
    """The images of a zip file. Every process opens it for itself: a shared file position would mix up the reads."""

    _zip: zipfile.ZipFile | None = None
    _pid = -1

    def _members(self, skipped: Skipped) -> Members[str]:
        members = Members[str]()
        for info in self._opened().infolist():
            name = info.filename.replace("\\", "/").removeprefix("./")  # some programs on Windows write backslashes
            if name.endswith("/"):
                members.folders.add(name[:-1])
            elif stat.S_ISLNK(info.external_attr >> 16):
                members.link(name, os.fsdecode(self._opened().read(info)))
            else:
                members.files[name] = info.filename
        return members

    def get(self, name: str) -> bytes:
        """Return the bytes of one file."""
        return self._opened().read(self.places[name])

    def size(self, name: str) -> int:
        """Return the size of one file in bytes, unpacked."""
        return self._opened().getinfo(self.places[name]).file_size

    def _opened(self) -> zipfile.ZipFile:
        if self._zip is None or self._pid != os.getpid():
            self._zip, self._pid = zipfile.ZipFile(self.path), os.getpid()
        return self._zip

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open archive, which cannot be pickled."""
        return self.__dict__ | {"_zip": None, "_pid": -1}


class TarStore(Archive[tuple[int, int]]):
    """The images of a tar, read at their offsets, so that processes share no open file. Those of a compressed tar are
    unpacked into memory."""

    def _members(self, skipped: Skipped) -> Members[tuple[int, int]]:
        members = Members[tuple[int, int]]()
        with self.path.open("rb") as file:
            packed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"))
        self._unpacked: dict[tuple[int, int], bytes] | None = {} if packed else None
        with tarfile.open(self.path, "r:*" if packed else "r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isreg():
                    members.files[name] = (member.offset_data, member.size)
                elif member.islnk():
                    members.same[name] = member.linkname.removeprefix("./")
                elif member.issym():
                    members.link(name, member.linkname)
                elif member.isdir():
                    members.folders.add(name)
                else:
                    skipped.no_files += 1
        return members

    def _prepare(self) -> None:
        """Unpack a compressed tar in a second run: links are known only at the end of the first."""
        if self._unpacked is None:
            return
        needed, room = set(self.places.values()), MAX_UNPACKED
        with tarfile.open(self.path, "r:*") as archive:
            for member in archive:
                place = (member.offset_data, member.size)
                if place not in needed:
                    continue
                room -= member.size
                if room < 0:
                    raise InputError(
                        f"data: '{self.path}' holds more than {MAX_UNPACKED / 1024**3:.0f} GiB of images, and a "
                        "compressed tar cannot be read in random order; unpack it and give the folder"
                    )
                file = archive.extractfile(member)
                self._unpacked[place] = b"" if file is None else file.read()

    def get(self, name: str) -> bytes:
        """Return the bytes of one file."""
        offset, size = self.places[name]
        if self._unpacked is not None:
            return self._unpacked[offset, size]
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def size(self, name: str) -> int:
        """Return the size of one file in bytes."""
        return self.places[name][1]
