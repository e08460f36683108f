"""Tables with an image in each row: Parquet, and the Arrow files of Hugging Face's `Dataset.save_to_disk`.

The image column holds the bytes of an image file, or Hugging Face's struct of `bytes` and `path`. Arrow files are
mapped into memory, so that a row costs nothing but its bytes; of Parquet a whole row group is read."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from simdino.contracts import InputError
from simdino.data.lists import LABELS
from simdino.data.shards import Shard, ShardKind

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "bytes", "content", "data")
"""Titles of the image column where several columns hold bytes, the first one here first."""

MOST_BYTES = 256 * 2**20  # of row groups that a process keeps
LARGE = 64 * 2**20  # bytes of a row group that make reading in any order slow


class TableKind(ShardKind):
    """What both kinds have in common. Every process opens the files for itself."""

    def __init__(self) -> None:
        self._open: dict[Path, Any] = {}
        self._pid = -1

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is open, which cannot be pickled."""
        return {"_open": {}, "_pid": -1}

    def opened(self, path: Path) -> Any:
        """Return what this process reads a file with."""
        if self._pid != os.getpid():
            self._open, self._pid = {}, os.getpid()
        if path not in self._open:
            self._open[path] = self._opening(path)
        return self._open[path]

    def _opening(self, path: Path) -> Any:
        raise NotImplementedError


class ArrowKind(TableKind):
    """Arrow files, streams or not."""

    def contents(self, path: Path) -> Shard:
        """Return the rows of a file."""
        check_complete(path)
        table = mapped(path)
        lengths = pc.call_function("binary_length", [bytes_in(table, path)]).fill_null(0).to_numpy()
        return rows_of(table.schema, lengths.tolist(), labels_of(table.schema, table))

    def get(self, path: Path, place: int, size: int) -> bytes:
        """Return the bytes of a row's image."""
        return content(self.opened(path)[place].as_py())

    def _opening(self, path: Path) -> Any:
        return bytes_in(mapped(path), path)


class ParquetKind(TableKind):
    """Parquet files. The row groups read last are kept."""

    def __init__(self) -> None:
        super().__init__()
        self._groups: OrderedDict[tuple[Path, int], Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is kept, too."""
        return super().__getstate__() | {"_groups": OrderedDict()}

    def contents(self, path: Path) -> Shard:
        """Return the rows of a file, each of the mean packed size of its row group."""
        with pq.ParquetFile(path) as file:
            schema, about = file.schema_arrow, file.metadata
            column = image_column(schema, path)
            packed = [group_bytes(about.row_group(i), column) for i in range(about.num_row_groups)]
            rows = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
            label = label_column(schema)
            labels = labels_of(schema, file.read([label], use_threads=False)) if label else []
        sizes = np.repeat([size // max(1, count) for size, count in zip(packed, rows, strict=True)], rows)
        found = rows_of(schema, sizes.tolist(), labels)
        if packed and max(packed) > LARGE:
            found.notes.append(
                f"row groups of Parquet hold up to {max(packed) / 2**20:.0f} MB of images, and one image costs reading "
                f"all of its group: give --shuffle {16 * max(rows)}, or write groups of 100 rows"
            )
        return found

    def get(self, path: Path, place: int, size: int) -> bytes:
        """Return the bytes of a row's image."""
        file, ends, column = self.opened(path)
        group = int(np.searchsorted(ends, place, side="right"))
        key = (path, group)
        if key not in self._groups:
            table = file.read_row_group(group, columns=[column], use_threads=False)
            self._groups[key] = bytes_in(table, path)
            while len(self._groups) > 1 and sum(one.nbytes for one in self._groups.values()) > MOST_BYTES:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return content(self._groups[key][place - (int(ends[group - 1]) if group else 0)].as_py())

    def _opening(self, path: Path) -> Any:
        file = pq.ParquetFile(path)
        rows = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        column = image_column(file.schema_arrow, path)
        struct = pa.types.is_struct(file.schema_arrow.field(column).type)
        return file, np.cumsum(rows), f"{column}.bytes" if struct else column


def mapped(path: Path) -> pa.Table:
    """Return an Arrow file without reading it. Raises ArrowInvalid for a damaged one."""
    file = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(file).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(file).read_all()


def check_complete(path: Path) -> None:
    """Raise InputError where the `state.json` beside an Arrow file names files that are not there."""
    state = path.with_name("state.json")
    if not state.is_file():
        return
    named = [str(one["filename"]) for one in json.loads(state.read_text())["_data_files"]]
    gone = [name for name in named if not path.with_name(name).is_file()]
    if gone:
        raise InputError(
            f"data: '{state}' names {len(gone)} shards that are missing, first {gone[0]}; fetch them again"
        )


def image_column(schema: pa.Schema, path: Path) -> str:
    """Return the column of images. Raises InputError where there is none, or several could be."""
    found = [column.name for column in schema if is_bytes(column.type)]
    known = [name for name in IMAGES if name in {one.lower() for one in found}]
    if known:
        return next(one for one in found if one.lower() == known[0])
    if len(found) == 1:
        return found[0]
    has = ", ".join(f"{column.name} ({column.type})" for column in schema)[:300]
    what = "no column holds images" if not found else f"{' and '.join(found)} hold bytes"
    raise InputError(
        f"data: in '{path}' {what}: it has {has}; call the column 'image' and let it hold the bytes of image files, or "
        f"structs of bytes and path"
    )


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether a type holds bytes, or Hugging Face's struct with such."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and is_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def bytes_in(table: pa.Table, path: Path) -> pa.ChunkedArray:
    """Return the bytes of the image column."""
    column = table.column(image_column(table.schema, path))
    if not pa.types.is_struct(column.type):
        return column
    at, kind = column.type.get_field_index("bytes"), column.type.field("bytes").type
    return pa.chunked_array([chunk.flatten()[at] for chunk in column.chunks], type=kind)


def content(data: bytes | None) -> bytes:
    """Return the bytes of a row. Raises ValueError for a row without any."""
    if data is None:
        raise ValueError("the row holds no bytes, only perhaps a path")
    return data


def group_bytes(group: Any, column: str) -> int:
    """Return the packed bytes of a column in a row group of Parquet."""
    columns = [group.column(i) for i in range(group.num_columns)]
    return sum(one.total_compressed_size for one in columns if one.path_in_schema.split(".")[0] == column)


def label_column(schema: pa.Schema) -> str:
    """Return the column of labels; empty without one."""
    return next((one.name for one in schema if one.name.lower() in LABELS and not pa.types.is_nested(one.type)), "")


def labels_of(schema: pa.Schema, table: pa.Table) -> list[str | None]:
    """Return the class of each row, by the names that Hugging Face's metadata have for its numbers; empty without
    labels. A number below 0 is none."""
    column = label_column(schema)
    if not column:
        return []
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names: list[str] = about.get("info", {}).get("features", {}).get(column, {}).get("names") or []
    found: list[str | None] = []
    for value in table.column(column).to_pylist():
        number = isinstance(value, int) and not isinstance(value, bool)
        if value is None or value == "" or (number and value < 0):
            found.append(None)
        else:
            found.append(names[value] if number and value < len(names) else str(value))
    return found


def rows_of(schema: pa.Schema, sizes: list[int], labels: list[str | None]) -> Shard:
    """Return a shard with an image for each row."""
    rows = len(sizes)
    return Shard(
        names=[f"{row:08d}" for row in range(rows)],
        folders=[""] * rows,
        places=list(range(rows)),
        sizes=sizes,
        classes=labels or [None] * rows,
        labelled_by=f"the column {label_column(schema)!r}" if labels else "",
    )


KINDS = {".arrow": ArrowKind, ".parquet": ParquetKind}
