"""What is done of a table of features, in parts beside it, so that a call that was stopped goes on where it was.

A folder .NAME.parts holds a small Parquet file for every few thousand images, and manifest.json, which tells what they
belong to. A part appears when it is whole. One that a failing disk has damaged is never joined."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from simdino.config import Precision
from simdino.contracts import InputError
from simdino.features.rows import WRITERS, regrouped, rows_in_group, write_parquet
from simdino.feedback import Log
from simdino.files import WRITING, locked, named_in_errors, write_aside, written

MANIFEST, LOCK = "manifest.json", ".lock"
KEY = "part"  # of a part's metadata: a JSON object of its images
SECONDS = 10.0  # of work that a kill may cost, and the batch that is being made
LONGEST = 255  # bytes of a file's name
OTHER = {
    "encoder": "another encoder", "images": "other images", "options": "other options",
    "versions": "other versions of simdino or torch",
}  # fmt: skip
"""What the parts belong to, and how a person is told that it is not what is asked for."""


@dataclass(frozen=True)
class Part:
    """A file with the rows of the images from one position of a source to another."""

    path: Path
    first: int
    after: int  # one past the last position
    rows: int
    broken: dict[int, str]  # the reasons, by position


class Parts:
    """The parts of a table."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        """folder: of `claimed`. schema: of the table's rows."""
        self.folder, self.schema = folder, schema
        self.parts = sound(folder)
        self.waiting: list[pa.RecordBatch] = []
        self.broken: dict[int, str] = {}  # of the images that are waiting
        self.after = self.done
        self.since = time.monotonic()

    @property
    def done(self) -> int:
        """How many images of the source are in parts, readable or not."""
        return self.parts[-1].after if self.parts else 0

    def add(self, rows: pa.RecordBatch | None, *, broken: dict[int, str], after: int) -> None:
        """Take the next images, up to the position `after` of the source. They are written when they are many, or some
        seconds have passed. rows: those of the readable ones; None where there are none."""
        self.waiting += [] if rows is None else [rows]
        self.broken |= broken
        self.after = after
        waiting = sum(batch.num_rows for batch in self.waiting)
        if waiting >= rows_in_group(self.schema) or time.monotonic() - self.since > SECONDS:
            self.write()

    def write(self) -> None:
        """Write the images that are waiting."""
        if self.after > self.done:
            path = self.folder / f"{self.done:012d}.parquet"
            rows = sum(batch.num_rows for batch in self.waiting)
            part = Part(path, self.done, self.after, rows, self.broken)
            about = {"first": part.first, "after": part.after, "broken": part.broken}
            with written(path, option="--out") as aside:
                schema = self.schema.with_metadata({KEY: json.dumps(about)})
                write_parquet(regrouped(self.waiting, rows or 1), schema, aside)
            self.parts.append(part)
        self.waiting, self.broken, self.since = [], {}, time.monotonic()

    def join(self, out: Path) -> None:
        """Write the table of all parts, a row group at a time."""
        write = WRITERS[out.suffix.lower()]
        with written(out, option="--out", within=self.folder) as aside:
            write(regrouped(self._rows(), rows_in_group(self.schema)), self.schema, aside)

    def _rows(self) -> Iterator[pa.RecordBatch]:
        """Every row, some at a time. Raises InputError for a part that cannot be read."""
        for part in self.parts:
            try:
                with part.path.open("rb") as file:
                    stored = pq.ParquetFile(file, page_checksum_verification=True)
                    yield from stored.iter_batches(rows_in_group(self.schema))
            except (OSError, pa.ArrowException) as error:
                why = str(error).splitlines()[0]
                raise InputError(
                    f"{part.path} cannot be read ({why}): delete it and give the same command, which embeds its images "
                    f"and those after them again"
                ) from None

    @property
    def rows(self) -> int:
        """How many images were readable."""
        return sum(part.rows for part in self.parts)

    def all_broken(self) -> dict[int, str]:
        """The reasons of all broken images, by their positions."""
        return {i: reason for part in self.parts for i, reason in part.broken.items()}


@contextmanager
def claimed(out: Path, belongs: dict[str, Any], *, precision: Precision, log: Log) -> Iterator[tuple[Path, Precision]]:
    """Give the folder of a table's parts to this process alone, and the precision of the parts in it, which the rest
    must have too: the fastest is measured, and need not be the same twice. Parts that belong to anything else are
    discarded, and a line says so. The folder goes when the body ends and no part is left.

    belongs: JSON values by the names of `OTHER`. precision: where there are no parts yet. Raises InputError where
    another process writes this table."""
    folder = folder_of(out)
    with named_in_errors(out, option="--out"):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / LOCK, doing=f"writing {out}"):
            for leftover in folder.glob(f"{WRITING}*"):
                leftover.unlink()
            began = read_manifest(folder)
            kept: Precision = began.get("precision", precision)
            other = [text for name, text in OTHER.items() if began.get(name) != belongs[name]]
            if other:
                if done := sum(part.after - part.first for part in sound(folder)):
                    text = " and ".join(other) if began else "something unknown"
                    log(f"{done:,} images that an earlier call embedded are discarded: they belong to {text}")
                discard(folder)
                kept, told = precision, {**belongs, "precision": precision}
                write_aside(folder / MANIFEST, json.dumps(told, indent=1).encode(), option="--out")
            try:
                yield folder, kept
            finally:
                if not any(folder.glob("*.parquet")):
                    (folder / MANIFEST).unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # parts are left, or another process has come
            folder.rmdir()


def folder_of(out: Path) -> Path:
    """The folder of a table's parts, on the table's disk, under a name that is not too long."""
    out = Path(os.path.realpath(out))
    name = f".{out.name}.parts"
    if len(os.fsencode(name)) > LONGEST:
        name = f".{sha256(os.fsencode(name)).hexdigest()}.parts"
    return out.with_name(name)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the parts in a folder belong to, and their precision; nothing where that is not told."""
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("precision") in get_args(Precision) else {}


def sound(folder: Path) -> list[Part]:
    """The parts from the first image on, as far as they are whole and follow each other. Others are deleted."""
    found: list[Part] = []
    for path in sorted(folder.glob("*.parquet")):
        part = read_part(path)
        if part is not None and part.first == (found[-1].after if found else 0):
            found.append(part)
        else:
            path.unlink()
    return found


def read_part(path: Path) -> Part | None:
    """What a part holds, by the end of its file; None where it is damaged. Raises InputError where the disk does not
    give it, which says nothing of the part."""
    try:
        with path.open("rb") as file:
            about = pq.read_metadata(file)
        told = json.loads(about.metadata[KEY.encode()])
        broken = {int(i): reason for i, reason in told["broken"].items()}
        part = Part(path, told["first"], told["after"], about.num_rows, broken)
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # pyarrow's, of the content, have none
            raise InputError(f"{path} cannot be read ({error.strerror}): try again") from None
        return None
    return part if part.after - part.first == part.rows + len(broken) else None


def discard(folder: Path) -> None:
    """Delete all parts, the last first: what a kill leaves is sound."""
    for path in sorted(folder.glob("*.parquet"), reverse=True):
        path.unlink()
