"""Rows of a table of features, as Arrow holds them and as Parquet and CSV are written: path, label and the numbers."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.text import readable

MOST_ROWS, MOST_BYTES = 8192, 32 * 2**20  # of a row group, which is all that is in memory of a table
KEY = "simdino"  # of the schema's metadata: a JSON object of what made the table
ARROW = {"float32": pa.float32(), "float16": pa.float16()}
Numbers = Literal["float32", "float16"]


def schema_of(shape: Sequence[int], numbers: Numbers, *, column: str, about: dict[str, Any]) -> pa.Schema:
    """The columns path, label (the class's name, or null) and the numbers of an image, lists of fixed sizes.

    column: the name of the last. about: JSON values that the schema keeps."""
    kind: pa.DataType = ARROW[numbers]
    for size in reversed(shape):
        kind = pa.list_(kind, size)
    columns = [("path", pa.string()), ("label", pa.string()), (column, kind)]
    return pa.schema(columns, metadata={KEY: json.dumps(about, sort_keys=True)})


def numbers_of(schema: pa.Schema) -> tuple[pa.DataType, int]:
    """The type of an image's numbers, and how many there are."""
    kind, count = schema.types[-1], 1
    while pa.types.is_fixed_size_list(kind):
        kind, count = kind.value_type, count * kind.list_size
    return kind, count


def rows_in_group(schema: pa.Schema) -> int:
    """How many rows are held and written at once."""
    kind, count = numbers_of(schema)
    return max(1, min(MOST_ROWS, MOST_BYTES * 8 // (count * kind.bit_width)))


def rows_of(source: Source, ids: Sequence[int], values: Tensor, schema: pa.Schema) -> pa.RecordBatch:
    """The rows of some images. ids: their positions in the source, whose names and classes are written as
    `text.readable` has them. values: float32 [N, ...]. Raises InputError for numbers that are not finite, and for
    numbers beyond float16 where these are asked for."""
    if pa.types.is_float16(numbers_of(schema)[0]):
        values = narrowed(values, source.names[ids[int(values.flatten(1).abs().amax(1).argmax())]])
    if not bool(values.isfinite().all()):
        first = int((~values.flatten(1).isfinite().all(1)).nonzero()[0])
        raise InputError(
            f"features of {readable(source.names[ids[first]])} are not finite: the encoder's weights are broken"
        )
    numbers: pa.Array = pa.array(values.flatten().numpy())
    for size in reversed(values.shape[1:]):
        numbers = pa.FixedSizeListArray.from_arrays(numbers, size)
    paths = [readable(source.names[i]) for i in ids]
    labels = [None if source.labels is None else readable(source.classes[source.labels[i]]) for i in ids]
    columns = [pa.array(paths, pa.string()), pa.array(labels, pa.string()), numbers]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def narrowed(values: Tensor, largest: str) -> Tensor:
    """The numbers in float16. largest: the image with the largest. Raises InputError where it does not fit."""
    if float(values.abs().max()) > torch.finfo(torch.float16).max:
        raise InputError(f"--dtype float16: numbers of {readable(largest)} are larger than 65504: give --dtype float32")
    return values.half()


def regrouped(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """The same rows as tables of `size` rows, the last perhaps of fewer, each in one piece: files must not depend on
    how rows came."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            waiting.append(batch.slice(start, size - count))
            start, count = start + waiting[-1].num_rows, count + waiting[-1].num_rows
            if count == size:
                yield pa.Table.from_batches(waiting).combine_chunks()
                waiting, count = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting).combine_chunks()


def write_parquet(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write a row group for each table, with checksums of its pages. Numbers are not compressed, which would win
    nothing."""
    texts: Any = {"path": "snappy", "label": "snappy"}  # pyarrow's types know only a word for all
    with (
        path.open("wb") as file,  # pyarrow opens no name that is not UTF-8
        pq.ParquetWriter(file, schema, use_dictionary=False, compression=texts, write_page_checksum=True) as writer,
    ):
        for table in tables:
            writer.write_table(table, row_group_size=table.num_rows)


def write_csv(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write a line for each row: path, label (or nothing) and the vector's numbers v0, v1 and so on in as many digits
    as they have."""
    kind = schema.types[-1]
    form = "{:.9g}".format if kind.value_type == pa.float32() else "{:.5g}".format
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "label", *(f"v{i}" for i in range(kind.list_size))])
        for part in tables:
            numbers: np.ndarray = part.column(2).combine_chunks().flatten().to_numpy(zero_copy_only=False)
            vectors = numbers.reshape(part.num_rows, -1).tolist()
            for name, label, vector in zip(part["path"].to_pylist(), part["label"].to_pylist(), vectors, strict=True):
                table.writerow([name, label, *map(form, vector)])


Writer = Callable[[Iterable[pa.Table], pa.Schema, Path], None]
WRITERS: dict[str, Writer] = {".parquet": write_parquet, ".csv": write_csv}
"""By the end of a file's name."""
