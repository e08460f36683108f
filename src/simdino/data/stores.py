"""Where the bytes of image files come from: folders, zip and tar archives, and lists of paths.

A store names its image files (`names`, relative to the root, "/" between parts, sorted) and gets the bytes of one.
"""

from __future__ import annotations

import csv
import os
import tarfile
import zipfile
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from simdino.contracts import InputError
from simdino.data.decode import is_image_name

LISTS = (".txt", ".lst", ".csv")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_UNPACKED = 2 * 1024**3
"""Bytes of images that a compressed tar may hold: it cannot be read in random order, so it is kept in memory."""

_LIST_HEADERS = frozenset({"path", "file", "filename", "file_name", "filepath", "image", "image_path", "name"})
_LIST_PROBES = 100

T = TypeVar("T")


class Store(Protocol):
    """Image files and their bytes. Can be pickled and used after a fork."""

    @property
    def names(self) -> list[str]:
        """The sorted relative paths of the image files, or a list file's paths in the order of its lines."""
        ...

    def get(self, name: str) -> bytes:
        """The bytes of one file."""
        ...

    def size(self, name: str) -> int:
        """How many bytes one file has."""
        ...


class FolderStore:
    """Files below a root. Absolute names (from list files) are read where they are."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self.root = root
        self.names = names

    @classmethod
    def walk(cls, root: Path) -> FolderStore:
        """Every image file below the root. InputError where a folder cannot be listed."""
        try:
            return cls(root, sorted(name for name in _walk(root) if _wanted(name)))
        except OSError as error:
            raise InputError(
                f"data: cannot list the folder '{error.filename}' ({error.strerror}); give a folder that you may read"
            ) from error

    def get(self, name: str) -> bytes:
        """The bytes of one file."""
        path = self.root / name
        if not path.is_file() and path.exists():  # a pipe or a device: reading it could last for ever
            raise OSError("it is no regular file")
        return path.read_bytes()

    def size(self, name: str) -> int:
        """How many bytes one file has; -1 where it is gone."""
        try:
            return (self.root / name).stat().st_size
        except OSError:
            return -1


class ZipStore:
    """Members of a zip. Every process opens the archive for itself: a shared file position would mix up the reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        self._pid = -1
        try:
            members = [info.filename for info in self._opened().infolist() if not info.is_dir()]
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            raise _unreadable(path, error) from error
        self._members = _named(path, {member: member for member in members})

    @property
    def names(self) -> list[str]:
        """The sorted names of the image files."""
        return sorted(self._members)

    def get(self, name: str) -> bytes:
        """The bytes of one member."""
        return self._opened().read(self._members[name])

    def size(self, name: str) -> int:
        """How many bytes one member has, unpacked."""
        return self._opened().getinfo(self._members[name]).file_size

    def _opened(self) -> zipfile.ZipFile:
        if self._zip is None or self._pid != os.getpid():
            self._zip, self._pid = zipfile.ZipFile(self.path), os.getpid()
        return self._zip

    def __getstate__(self) -> dict[str, object]:
        """Without the open archive, which cannot be pickled."""
        return self.__dict__ | {"_zip": None, "_pid": -1}


class TarStore:
    """Members of an uncompressed tar, read where their bytes lie, so that there is no open file to share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        places: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.islnk() and member.linkname in places:
                        places[member.name] = places[member.linkname]
                    elif member.isreg():
                        places[member.name] = (member.offset_data, member.size)
        except (OSError, EOFError, tarfile.TarError) as error:
            raise _unreadable(path, error) from error
        self._members = _named(path, places)

    @property
    def names(self) -> list[str]:
        """The sorted names of the image files."""
        return sorted(self._members)

    def get(self, name: str) -> bytes:
        """The bytes of one member."""
        offset, size = self._members[name]
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def size(self, name: str) -> int:
        """How many bytes one member has."""
        return self._members[name][1]


class MemoryStore:
    """Members of a compressed tar, unpacked into memory."""

    def __init__(self, path: Path) -> None:
        contents: dict[str, bytes] = {}
        room = MAX_UNPACKED
        try:
            with tarfile.open(path, "r:*") as archive:
                for member in archive:
                    if not member.isreg() or not _wanted(_clean(member.name)):
                        continue
                    room -= member.size
                    if room < 0:
                        raise InputError(
                            f"data: '{path}' holds more than {MAX_UNPACKED / 1024**3:.0f} GiB of images, and a "
                            "compressed tar cannot be read in random order; unpack it and give the folder"
                        )
                    file = archive.extractfile(member)
                    contents[member.name] = b"" if file is None else file.read()
        except InputError:
            raise
        except Exception as error:  # gzip, bz2 and lzma each have their own for damaged input
            raise _unreadable(path, error) from error
        self._members = _named(path, contents)

    @property
    def names(self) -> list[str]:
        """The sorted names of the image files."""
        return sorted(self._members)

    def get(self, name: str) -> bytes:
        """The bytes of one member."""
        return self._members[name]

    def size(self, name: str) -> int:
        """How many bytes one member has."""
        return len(self._members[name])


def open_store(path: Path) -> tuple[Store, list[str] | None]:
    """The store for a folder, an archive or a list file, and the labels that a list file gives to its lines.

    Raises:
        InputError: the file is of no known kind or cannot be read.
    """
    kind = path.name.lower()
    if path.is_dir():
        return FolderStore.walk(path), None
    if kind.endswith(LISTS):
        return _read_list(path)
    if kind.endswith(".zip"):
        return ZipStore(path), None
    if kind.endswith(".tar"):
        return (TarStore(path) if _is_plain_tar(path) else MemoryStore(path)), None
    if kind.endswith(ARCHIVES):
        return MemoryStore(path), None
    single = is_image_name(kind)
    hint = (
        "give the folder that this image is in" if single else "give a folder of images, unpacked if this is an archive"
    )
    raise InputError(
        f"data: '{path}' is no folder and no file of a known kind ({', '.join(ARCHIVES)}, or a list of paths in "
        f"{', '.join(LISTS)}); {hint}"
    )


def stem(path: Path) -> str:
    """The name of a data set: the folder's or file's name without the extension of an archive or list."""
    name = path.resolve().name
    if path.is_dir():
        return name
    endings = sorted((*ARCHIVES, *LISTS), key=len, reverse=True)
    return next((name[: -len(ending)] for ending in endings if name.lower().endswith(ending)), name)


def _walk(root: Path) -> Iterable[str]:
    """Every file below the root, each folder once, real folders before links to folders.

    Once, because links can form loops, and because an image under two names could be trained on and held out.
    """
    seen: set[tuple[int, int]] = set()
    waiting = deque([""])
    while waiting:
        prefix = waiting.popleft()
        status = (root / prefix).stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(root / prefix) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = prefix + entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.appendleft(name + "/")
                elif entry.is_dir():
                    waiting.append(name + "/")
                elif entry.is_file():
                    yield name


def _wanted(name: str) -> bool:
    """Whether this is a visible image file, not a by-product of the Finder."""
    return is_image_name(name) and not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _clean(name: str) -> str:
    """A member's name without a leading "./"."""
    return name.removeprefix("./")


def _named(path: Path, members: Mapping[str, T]) -> dict[str, T]:
    """The wanted members by their names relative to the root of the archive.

    Packing the folder `photos` gives `photos.zip` with everything below `photos/`: that folder is the root, so that
    an archive and its folder name the same images alike.
    """
    cleaned = {_clean(name): value for name, value in members.items() if _wanted(_clean(name))}
    root = stem(path) + "/"
    if all(name.startswith(root) for name in cleaned):
        return {name.removeprefix(root): value for name, value in cleaned.items()}
    return cleaned


def _is_plain_tar(path: Path) -> bool:
    """Whether a .tar is uncompressed, as its name says. True for what is no tar at all: opening it says why."""
    try:
        with path.open("rb") as file:
            start = file.read(6)
    except OSError as error:
        raise _unreadable(path, error) from error
    return not start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"))


def _read_list(path: Path) -> tuple[FolderStore, list[str] | None]:
    """A file with a path per line and perhaps a label after a tab or a comma."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data: cannot read the list '{path}' ({error}); give a text file in UTF-8") from error
    split = _csv_row if path.suffix.lower() == ".csv" else _text_row
    rows = [(number, *split(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    if rows and rows[0][1].lower() in _LIST_HEADERS:
        rows = rows[1:]
    if not rows:
        raise InputError(f"data: the list '{path}' names no image; write one path per line")
    labelled = sum(bool(label) for _, _, label in rows)
    if 0 < labelled < len(rows):
        number = next(number for number, _, label in rows if not label)
        raise InputError(
            f"data: line {number} of '{path}' has no label but {labelled} other lines have one; label all or none"
        )
    folder = path.resolve().parent
    names = [_relative(name, folder) for _, name, _ in rows]
    if not any((folder / name).is_file() for name in names[:_LIST_PROBES]):
        raise InputError(
            f"data: line {rows[0][0]} of '{path}' names '{rows[0][1]}', which does not exist, nor do the next lines' "
            f"files; relative paths start at '{folder}'"
        )
    return FolderStore(folder, names), [label for _, _, label in rows] if labelled else None


def _csv_row(line: str) -> tuple[str, str]:
    if "\t" in line:
        return _text_row(line)
    cells = [*next(csv.reader([line])), ""]
    return cells[0].strip(), cells[1].strip()


def _text_row(line: str) -> tuple[str, str]:
    line = line.strip()
    name, _, label = line.rpartition("\t" if "\t" in line else ",")
    # A comma may be part of a file's name: the line is all path if it ends like one.
    if not name or (is_image_name(line) and not is_image_name(name)):
        return line, ""
    return name.strip(), label.strip()


def _relative(name: str, folder: Path) -> str:
    """Relative to the list's folder where possible, so that a moved data set keeps its names."""
    path = Path(name).expanduser()
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def _unreadable(path: Path, error: Exception) -> InputError:
    why = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(
        f"data: cannot read the archive '{path}' ({why}); make it again, or unpack it and give the folder"
    )
