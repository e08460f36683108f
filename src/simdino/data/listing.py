"""Every image file below a folder, a million in seconds: folders are listed by threads, names are kept as bytes."""

from __future__ import annotations

import os
from bisect import insort
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simdino.data.files import Skipped, is_hidden, names_classes
from simdino.data.index import read_index, write_index
from simdino.data.names import Coded, Names
from simdino.data.opening import extensions

THREADS = 8  # a network's disk answers many at once; on a local one they cost nothing

SMALL = 10_000  # images of a folder that is listed faster than anyone notices, and so without an index
KIND = "files"  # of the index


class Entry(NamedTuple):
    """A file that may have further names. Files sort before links."""

    is_link: bool
    name: str
    number: int  # of the inode that the name leads to


@dataclass
class Folder:
    """What is in one folder. `text`, `numbers` and `sizes` are of its image files that are no links, by their sorted
    names."""

    prefix: str  # its path from the root, with a slash at its end; empty for the root
    identity: tuple[int, int] = (0, 0)  # device and inode
    changed: int = 0  # the time of its last change, in nanoseconds
    text: bytes = b""  # the names, with a zero byte after each
    numbers: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))  # of the inodes
    sizes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # in bytes
    linked: list[tuple[str, int, int]] = field(default_factory=list[tuple[str, int, int]])  # name, inode, size
    folders: list[str] = field(default_factory=list[str])
    linked_folders: list[str] = field(default_factory=list[str])
    others: list[str] = field(default_factory=list[str])  # files that are no images
    dangling: list[str] = field(default_factory=list[str])
    hidden: int = 0
    no_files: int = 0
    error: OSError | None = None

    def names(self) -> list[str]:
        """Return the names of the image files that are no links."""
        return self.text.decode("utf-8", "surrogateescape").split("\0")[:-1]


@dataclass(frozen=True)
class Listing:
    """The image files below a root, by their sorted names."""

    names: Names
    sizes: NDArray[np.int64]  # of the files, in bytes
    skipped: Skipped
    naming: list[str]  # files that name classes
    others: list[str]  # files that are no images, where there are no images
    watched: dict[str, tuple[int, ...]]  # folders, each with its inode and the time of its last change


def indexed(root: Path) -> Listing:
    """Return `listing` of a root, from its index where that is up to date; a large one is kept. Raises OSError."""
    kept = read_index(root, KIND)
    if kept is not None:
        names = Names.from_arrays(kept.about["folders"], kept.arrays)
        return Listing(names, kept.arrays["sizes"], Skipped(**kept.about["skipped"]), kept.about["naming"], [], {})
    found = listing(root)
    if len(found.names) >= SMALL:
        about = {"folders": found.names.folders.values, "skipped": asdict(found.skipped), "naming": found.naming}
        arrays = {**found.names.arrays(), "sizes": found.sizes}
        write_index(root, KIND, watched=found.watched, about=about, arrays=arrays)
    return found


def listing(root: Path, *, every_name: bool = False) -> Listing:
    """Return every image file below a root. Raises OSError where the root cannot be listed.

    every_name: whether each hard or symbolic link to a file counts as an image; otherwise each file is one image."""
    skipped = Skipped()
    found = list(walked(root, skipped))
    others = sorted(folder.prefix + name for folder in found for name in folder.others)
    for name in others:
        skipped.count(name)
    repeated = set[str]() if every_name else further_names(root, found, skipped)
    names, sizes = joined(found, repeated)
    return Listing(
        names, sizes, skipped, [name for name in others if names_classes(name)], [] if names else others,
        {folder.prefix: (folder.identity[1], folder.changed) for folder in found},
    )  # fmt: skip


def walked(root: Path, skipped: Skipped) -> Iterator[Folder]:
    """Yield every folder below the root once, real ones before links to folders. What is no file is counted.

    Folders are listed once because links can form loops, and because an image under two names could be in both
    splits."""
    seen: set[tuple[int, int]] = set()
    links = deque([""])
    with ThreadPoolExecutor(THREADS) as threads:
        while links:
            level = [links.popleft()]
            while level:
                below: list[str] = []
                for folder in threads.map(lambda prefix: listed(root, prefix), level):
                    if folder.error is not None:
                        if not folder.prefix:
                            raise folder.error
                        skipped.closed[folder.prefix] = folder.error.strerror or str(folder.error)
                        continue
                    if folder.identity in seen:
                        skipped.repeated_folders.append(folder.prefix)
                        continue
                    seen.add(folder.identity)
                    skipped.hidden += folder.hidden
                    skipped.no_files += folder.no_files
                    skipped.dangling += [folder.prefix + name for name in folder.dangling]
                    below += [f"{folder.prefix}{name}/" for name in folder.folders]
                    links += [f"{folder.prefix}{name}/" for name in folder.linked_folders]
                    yield folder
                level = below


def listed(root: Path, prefix: str) -> Folder:
    """Return what is in one folder, or the error that listing it raised."""
    found, known = Folder(prefix), extensions()
    files: list[tuple[str, int, int]] = []
    try:
        status = (root / prefix).stat()
        found.identity, found.changed = (status.st_dev, status.st_ino), status.st_mtime_ns
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                name = entry.name
                if is_hidden(name):
                    found.hidden += 1
                elif entry.is_file(follow_symlinks=False):
                    stem, dot, extension = name.rpartition(".")
                    if stem and dot + extension.lower() in known:
                        files.append((name, entry.inode(), entry.stat(follow_symlinks=False).st_size))
                    else:
                        found.others.append(name)
                elif entry.is_dir(follow_symlinks=False):
                    found.folders.append(name)
                else:
                    place(found, entry, known)
    except OSError as error:
        found.error = error
        return found
    files.sort()
    for part in (found.folders, found.linked_folders, found.linked, found.dangling):
        part.sort()
    found.text = "".join(f"{name}\0" for name, _, _ in files).encode("utf-8", "surrogateescape")
    found.numbers = np.array([number for _, number, _ in files], dtype=np.uint64)
    found.sizes = np.array([size for *_, size in files], dtype=np.int64)
    return found


def place(found: Folder, entry: os.DirEntry[str], known: frozenset[str]) -> None:
    """Note a link by what it leads to, or something that is neither a file nor a folder."""
    if not entry.is_symlink():
        found.no_files += 1
    elif entry.is_dir():
        found.linked_folders.append(entry.name)
    elif not entry.is_file():
        found.dangling.append(entry.name)
    elif (dot := entry.name.rfind(".")) > 0 and entry.name[dot:].lower() in known:
        status = entry.stat()
        found.linked.append((entry.name, status.st_ino, status.st_size))
    else:
        found.others.append(entry.name)


def further_names(root: Path, found: Sequence[Folder], skipped: Skipped) -> set[str]:
    """Return the names whose file has another one before them, its own before those of links."""
    numbers = np.concatenate([
        *(folder.numbers for folder in found),
        np.array([number for folder in found for _, number, _ in folder.linked], dtype=np.uint64),
    ])  # fmt: skip
    numbers.sort()
    shared = set(numbers[1:][numbers[1:] == numbers[:-1]].tolist())
    if not shared:
        return set()
    entries = [
        Entry(is_link, folder.prefix + name, number)
        for folder in found
        for is_link, files in (
            (False, zip(folder.names(), folder.numbers.tolist(), strict=True)),
            (True, folder.linked),
        )
        for name, number, *_ in files
        if number in shared
    ]
    entries.sort()
    return {entry.name for entry in entries}.difference(one.name for one in each_file_once(root, entries, skipped))


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


def joined(found: Sequence[Folder], repeated: set[str]) -> tuple[Names, NDArray[np.int64]]:
    """Return the sorted names of all image files without the repeated ones, and the files' sizes in bytes."""
    folders = sorted((folder for folder in found if folder.text or folder.linked), key=lambda folder: folder.prefix)
    touched = {name.rpartition("/")[0] for name in repeated}
    for folder in folders:
        if folder.linked or folder.prefix.rstrip("/") in touched:
            mend(folder, repeated)
    sizes = np.concatenate([np.zeros(0, np.int64), *(folder.sizes for folder in folders)])
    at = np.repeat(np.arange(len(folders), dtype=np.int32), [len(folder.sizes) for folder in folders])
    packed = np.frombuffer(b"".join(folder.text for folder in folders), dtype=np.uint8)
    ends = np.flatnonzero(packed == 0) - np.arange(len(sizes))  # without the zero bytes
    prefixes = [folder.prefix for folder in folders]
    names = Names(Coded(prefixes, at), packed[packed != 0].tobytes(), ends)
    # Names in folders that lie side by side are sorted now; those below a folder that has images too may stand between.
    if all(not after.startswith(before) for before, after in pairwise(prefixes)):
        return names, sizes
    spelled = list(names)
    order = np.array(sorted(range(len(spelled)), key=spelled.__getitem__), dtype=np.int64)
    return Names.of(spelled[i] for i in order), sizes[order]


def mend(folder: Folder, repeated: set[str]) -> None:
    """Put the links among the files of a folder and take the repeated names out."""
    files = list(zip(folder.names(), folder.sizes.tolist(), strict=True))
    for name, _, size in folder.linked:
        insort(files, (name, size))
    files = [(name, size) for name, size in files if folder.prefix + name not in repeated]
    folder.text = "".join(f"{name}\0" for name, _ in files).encode("utf-8", "surrogateescape")
    folder.sizes = np.array([size for _, size in files], dtype=np.int64)
