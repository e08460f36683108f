"""Zip and tar archives: their images by name, links followed, each image once."""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from simdino.contracts import InputError
from simdino.data.annotations import as_text, names_classes
from simdino.data.files import Skipped, stem, wanted

MAX_UNPACKED = 2 * 1024**3
"""The most bytes of images in a compressed tar, which is kept in memory because it cannot be read in random order."""

MAX_LINKS = 40  # on the way to a file, as Linux has it

T = TypeVar("T")


class Members(Generic[T]):
    """The content of an archive: files by name, each with what is needed to read its bytes, and links."""

    def __init__(self) -> None:
        self.files: dict[str, T] = {}
        self.same: dict[str, str] = {}  # hard links: another name of a file
        self.links: dict[str, str] = {}  # symbolic links: where they point, from the root
        self.folders: set[str] = set()

    def target(self, name: str) -> str | None:
        """Return the file or folder that a name leads to through hard and symbolic links, or None."""
        for _ in range(MAX_LINKS):
            if name in self.files or name in self.folders:
                return name
            if name in self.same:
                name = self.same[name]
                continue
            on_the_way = self._link_on_the_way(name)
            if on_the_way is None:
                return None
            name = posixpath.normpath(self.links[on_the_way] + name[len(on_the_way) :])
        return None

    def _link_on_the_way(self, name: str) -> str | None:
        """Return the first part of the name that is a symbolic link: a folder above it or the name itself."""
        parts = name.split("/")
        paths = ("/".join(parts[:end]) for end in range(1, len(parts) + 1))
        return next((path for path in paths if path in self.links), None)

    def images(self, path: Path, skipped: Skipped) -> dict[str, T]:
        """Return the images by their names relative to the root of the archive. Where names lead to one file, the real
        name is kept before links.

        Packing the folder `photos` gives `photos.zip` with everything below `photos/`: that folder is the root, so that
        an archive and its folder give the same names to images."""
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
        root = stem(path) + "/"
        if all(name.startswith(root) for name in found):
            return {name.removeprefix(root): value for name, value in sorted(found.items())}
        return dict(sorted(found.items()))


class ZipStore:
    """The images of a zip file. Every process opens it for itself: a shared file position would mix up the reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped = Skipped()
        self._zip: zipfile.ZipFile | None = None
        self._pid = -1
        members: Members[str] = Members()
        try:
            for info in self._opened().infolist():
                name = slashed(info.filename)
                if name.endswith("/"):
                    members.folders.add(name[:-1])
                elif stat.S_ISLNK(info.external_attr >> 16):
                    members.links[name] = pointed(name, os.fsdecode(self._opened().read(info)))
                else:
                    members.files[name] = info.filename
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise unreadable(path, error) from error
        self._images = members.images(path, self.skipped)
        self._texts = {name: file for name, file in members.files.items() if names_classes(name)}

    @property
    def names(self) -> list[str]:
        """The sorted names of the image files."""
        return list(self._images)

    def get(self, name: str) -> bytes:
        """Return the bytes of one image file."""
        return self._opened().read(self._images[name])

    def size(self, name: str) -> int:
        """Return the size in bytes of one image file, unpacked."""
        return self._opened().getinfo(self._images[name]).file_size

    def texts(self) -> dict[str, str]:
        """Return the content of the files that name classes (see `annotations`), by their names in the archive."""
        return {name: as_text(self._opened().read(file)) for name, file in self._texts.items()}

    def _opened(self) -> zipfile.ZipFile:
        if self._zip is None or self._pid != os.getpid():
            self._zip, self._pid = zipfile.ZipFile(self.path), os.getpid()
        return self._zip

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open archive, which cannot be pickled."""
        return self.__dict__ | {"_zip": None, "_pid": -1}


class TarStore:
    """The images of an uncompressed tar, read at their offsets, so that processes share no open file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped = Skipped()
        members: Members[tuple[int, int]] = Members()
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if note(members, member, self.skipped):
                        members.files[clean(member.name)] = (member.offset_data, member.size)
        except (OSError, EOFError, tarfile.TarError) as error:
            raise unreadable(path, error) from error
        self._images = members.images(path, self.skipped)
        self._texts = {name: place for name, place in members.files.items() if names_classes(name)}

    @property
    def names(self) -> list[str]:
        """The sorted names of the image files."""
        return list(self._images)

    def get(self, name: str) -> bytes:
        """Return the bytes of one image file."""
        return self._read(*self._images[name])

    def size(self, name: str) -> int:
        """Return the size in bytes of one image file."""
        return self._images[name][1]

    def texts(self) -> dict[str, str]:
        """Return the content of the files that name classes (see `annotations`), by their names in the archive."""
        return {name: as_text(self._read(*place)) for name, place in self._texts.items()}

    def _read(self, offset: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


class MemoryStore:
    """The images of a compressed tar, unpacked into memory."""

    def __init__(self, path: Path) -> None:
        self.skipped = Skipped()
        members: Members[bytes | None] = Members()
        try:
            with tarfile.open(path, "r:*") as archive:
                for member in archive:
                    if note(members, member, self.skipped):
                        members.files[clean(member.name)] = None
            linked = {members.target(name) for name in members.links}
            self._read(path, members, also=linked)
        except InputError:
            raise
        except Exception as error:  # gzip, bz2 and lzma each raise errors of their own for damaged input
            raise unreadable(path, error) from error
        self._images = members.images(path, self.skipped)
        self._texts = {name: data for name, data in members.files.items() if data is not None and names_classes(name)}

    def _read(self, path: Path, members: Members[bytes | None], *, also: set[str | None]) -> None:
        """Read the images and the targets of links in a second run through the archive: links are known only at its
        end."""
        room = MAX_UNPACKED
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = clean(member.name)
                if not member.isreg() or not (wanted(name, Skipped()) or name in also or names_classes(name)):
                    continue
                room -= member.size
                if room < 0:
                    raise InputError(
                        f"data: '{path}' holds more than {MAX_UNPACKED / 1024**3:.0f} GiB of images, and a "
                        "compressed tar cannot be read in random order; unpack it and give the folder"
                    )
                file = archive.extractfile(member)
                members.files[name] = b"" if file is None else file.read()

    @property
    def names(self) -> list[str]:
        """The sorted names of the image files."""
        return list(self._images)

    def get(self, name: str) -> bytes:
        """Return the bytes of one image file."""
        return self._images[name] or b""

    def size(self, name: str) -> int:
        """Return the size in bytes of one image file."""
        return len(self.get(name))

    def texts(self) -> dict[str, str]:
        """Return the content of the files that name classes (see `annotations`), by their names in the archive."""
        return {name: as_text(data) for name, data in self._texts.items()}


def folders_above(name: str) -> Iterator[str]:
    """Yield the folders that a name lies in, the innermost first."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def note(members: Members[T], member: tarfile.TarInfo, skipped: Skipped) -> bool:
    """Note a link or a folder of a tar. Return whether the member is a regular file."""
    name = clean(member.name)
    if member.islnk():
        members.same[name] = clean(member.linkname)
    elif member.issym():
        members.links[name] = pointed(name, member.linkname)
    elif member.isdir():
        members.folders.add(name)
    elif not member.isreg():
        skipped.no_files += 1
    return member.isreg()


def pointed(name: str, target: str) -> str:
    """Return where a symbolic link points, from the root of the archive; what lies outside keeps its "/" or ".."."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), target))


def clean(name: str) -> str:
    """Return a member's name without a leading "./"."""
    return name.removeprefix("./")


def slashed(name: str) -> str:
    """Return a member's name with slashes: some programs on Windows write backslashes."""
    return clean(name.replace("\\", "/"))


def unreadable(path: Path, error: Exception) -> InputError:
    """Return the error for an archive that cannot be opened."""
    why = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(
        f"data: cannot read the archive '{path}' ({why}); make it again, or unpack it and give the folder"
    )
