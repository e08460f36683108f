"""Where the bytes of image files come from: folders, zip and tar archives, and lists of paths.

A store lists its image files (`names`, relative to the root, "/" between parts, sorted) and reads their bytes."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from simdino.contracts import InputError
from simdino.data.annotations import as_text, names_classes
from simdino.data.archives import MemoryStore, TarStore, ZipStore, unreadable
from simdino.data.decode import is_image_name
from simdino.data.files import ARCHIVES, LISTS, Skipped, is_hidden
from simdino.data.lists import read_list
from simdino.data.splits import Part


class Store(Protocol):
    """Image files and their bytes. A store can be pickled and used after a fork."""

    skipped: Skipped

    @property
    def names(self) -> Sequence[str]:
        """The sorted relative paths of the image files, or a list file's paths in the order of its lines."""
        ...

    def get(self, name: str) -> bytes:
        """Return the bytes of one file."""
        ...

    def size(self, name: str) -> int:
        """Return the size of one file in bytes."""
        ...

    def texts(self) -> dict[str, str]:
        """Return the content of the files that name classes (see `annotations`), by their names."""
        ...


class FolderStore:
    """Image files below a root. Absolute names (from list files) are read where they are."""

    def __init__(self, root: Path, names: list[str], *, skipped: Skipped | None = None, naming: Sequence[str] = ()):
        self.root = root
        self.names = names
        self.skipped = skipped or Skipped()
        self.naming = naming  # files that name classes

    @classmethod
    def walk(cls, root: Path, *, every_name: bool = False) -> FolderStore:
        """Return a store of every image file below the root. Raises InputError where the root cannot be listed.

        every_name: whether each hard or symbolic link to a file counts as an image; otherwise each file is one
        image."""
        skipped = Skipped()
        try:
            found = sorted(walked(root, skipped))
        except OSError as error:
            raise InputError(
                f"data: cannot list the folder '{error.filename}' ({error.strerror}); give a folder that you may read"
            ) from error
        images = []
        for entry in found:
            if is_image_name(entry.name):
                images.append(entry)
            else:
                skipped.count(entry.name)
        naming = [entry.name for entry in found if names_classes(entry.name)]
        kept = images if every_name else list(each_file_once(root, images, skipped))
        return cls(root, sorted(entry.name for entry in kept), skipped=skipped, naming=naming)

    def get(self, name: str) -> bytes:
        """Return the bytes of one file."""
        path = self.root / name
        if not path.is_file() and path.exists():  # a pipe or a device: reading it could last for ever
            raise OSError("it is no regular file")
        return path.read_bytes()

    def size(self, name: str) -> int:
        """Return the size of one file in bytes; -1 where it is gone."""
        try:
            return (self.root / name).stat().st_size
        except OSError:
            return -1

    def texts(self) -> dict[str, str]:
        """Return the content of the files that name classes (see `annotations`), by their names."""
        return {name: as_text(self.get(name)) for name in self.naming}


class Entry(NamedTuple):
    """A file that `walked` finds. Files sort before links."""

    is_link: bool
    name: str
    number: int  # of the inode that the name leads to


@dataclass(frozen=True)
class Opened:
    """A store, and the classes and splits that a list file gives for its lines."""

    store: Store
    classes: Sequence[str] | None = None
    splits: Sequence[Part | None] | None = None
    notes: Sequence[str] = ()


def open_store(path: Path) -> Opened:
    """Return the store for a folder, an archive, a list file or one image.

    Raises InputError where the file is of no known kind or cannot be read."""
    kind = path.name.lower()
    if path.is_dir():
        return Opened(FolderStore.walk(path))
    if kind.endswith(LISTS):
        found = read_list(path)
        return Opened(FolderStore(found.folder, found.names), found.classes, found.splits, found.notes)
    if kind.endswith(".zip"):
        return Opened(ZipStore(path))
    if kind.endswith(".tar"):
        return Opened(TarStore(path) if is_plain_tar(path) else MemoryStore(path))
    if kind.endswith(ARCHIVES):
        return Opened(MemoryStore(path))
    if is_image_name(kind):
        return Opened(FolderStore(path.parent, [path.name]))
    raise InputError(
        f"data: '{path}' is no folder and no file of a known kind ({', '.join(ARCHIVES)}, or a list of paths in "
        f"{', '.join(LISTS)}); give a folder of images, unpacked if this is an archive"
    )


def walked(root: Path, skipped: Skipped) -> Iterator[Entry]:
    """Yield every file below the root, each folder once, real folders before links to folders. Everything else is
    counted.

    Folders are listed once because links can form loops, and because an image under two names could be in both splits.
    A million files are listed without a system call for each: a directory tells kind and inode of its entries."""
    seen: set[tuple[int, int]] = set()
    waiting = deque([""])
    while waiting:
        prefix = waiting.popleft()
        try:
            status = (root / prefix).stat()
            if (status.st_dev, status.st_ino) in seen:
                skipped.repeated_folders.append(prefix)
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / prefix) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise
            skipped.closed[prefix] = error.strerror or str(error)
            continue
        for entry in found:
            name = prefix + entry.name
            if is_hidden(entry.name):
                skipped.hidden += 1
            elif entry.is_dir(follow_symlinks=False):
                waiting.appendleft(name + "/")
            elif entry.is_file(follow_symlinks=False):
                yield Entry(False, name, entry.inode())
            elif not entry.is_symlink():
                skipped.no_files += 1
            elif entry.is_dir():
                waiting.append(name + "/")
            elif entry.is_file():
                yield Entry(True, name, entry.stat().st_ino)
            else:
                skipped.dangling.append(name)


def each_file_once(root: Path, entries: Sequence[Entry], skipped: Skipped) -> Iterator[Entry]:
    """Yield the entries without further names of the same file.

    Only entries that share an inode number are examined further: some file systems give all files the same number."""
    numbers = Counter(entry.number for entry in entries)
    seen: set[tuple[int, int]] = set()
    for entry in entries:
        if numbers[entry.number] > 1:
            status = (root / entry.name).stat()
            file = (status.st_dev, status.st_ino)
            if file in seen and (entry.is_link or status.st_nlink > 1):
                skipped.repeated.append(entry.name)
                continue
            seen.add(file)
        yield entry


def is_plain_tar(path: Path) -> bool:
    """Return whether a .tar is uncompressed. True for a file that is no tar at all: opening it tells the error."""
    try:
        with path.open("rb") as file:
            start = file.read(6)
    except OSError as error:
        raise unreadable(path, error) from error
    return not start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"))
