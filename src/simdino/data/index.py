"""What a data set's files are called, kept in the user's cache, so that a million names are not looked for again.

An index belongs to a folder and is used as long as nothing that it watched has changed: folders by their inode and the
time of their last change, shards by that and their size. The variable SIMDINO_INDEX is another folder for indices, or
"off"."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simdino.files import written
from simdino.text import readable

VARIABLE, OFF = "SIMDINO_INDEX", "off"
VERSION = 1  # of what is in an index
SETTLED = 2 * 10**9
"""Nanoseconds since the last change of a folder after which its time tells of any further change: file systems count
time in steps of up to two seconds."""


@dataclass(frozen=True)
class Kept:
    """The content of an index."""

    about: dict[str, Any]  # what JSON can hold
    arrays: dict[str, NDArray[Any]]


def cache_folder() -> Path:
    """Return where downloads and indices go."""
    return Path.home() / ".cache" / "simdino"


def index_file(root: Path, kind: str) -> Path | None:
    """Return where the index of a folder is kept; None where indices are switched off."""
    where = os.environ.get(VARIABLE, "")
    if where.lower() == OFF:
        return None
    folder = Path(where).expanduser() if where else cache_folder() / "indices"
    path = root.resolve()
    known = hashlib.sha256(f"{VERSION}\0{kind}\0{path}".encode("utf-8", "surrogateescape")).hexdigest()
    return folder / f"{known[:32]}.npz"


def watch(path: Path) -> tuple[int, ...]:
    """Return what tells that a folder or a shard has changed. Raises OSError."""
    status = path.stat()
    return (status.st_ino, status.st_mtime_ns) if path.is_dir() else (status.st_size, status.st_mtime_ns)


def read_index(root: Path, kind: str) -> Kept | None:
    """Return the index of a folder; None where there is none or something has changed since. A line is printed for one
    that is damaged."""
    file = index_file(root, kind)
    if file is None or not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        about = json.loads(arrays.pop("about").tobytes())
        watched = {name: tuple(map(int, seen)) for name, seen in about.pop("watched").items()}
    except Exception as error:  # numpy, zipfile and json each raise their own for damaged content
        why = (str(error) or type(error).__name__).splitlines()[0]
        print(f"the index {file} is damaged ({why}) and is made again", file=sys.stderr)
        return None
    try:
        same = all(watch(root / name) == seen for name, seen in watched.items())
    except OSError:  # a folder or a shard is gone
        return None
    return Kept(about, arrays) if same else None


def write_index(
    root: Path,
    kind: str,
    *,
    watched: Mapping[str, tuple[int, ...]],
    about: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
) -> None:
    """Keep the index of a folder, unless something in it changed a moment ago, or the cache cannot be written to.

    watched: paths from the root, with what `watch` returned before they were read."""
    file = index_file(root, kind)
    latest = max((seen[1] for seen in watched.values()), default=0)
    if file is None or latest > time.time_ns() - SETTLED:
        return
    about = {**about, "root": readable(str(root)), "watched": dict(watched)}
    content: dict[str, Any] = {"about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8), **arrays}
    with suppress(OSError), written(file) as aside, aside.open("wb") as out:
        np.savez(out, **content)
