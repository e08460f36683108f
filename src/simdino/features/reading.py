"""Tables of features read back, as `table.embed_to` wrote them: in parts, with one copy of the vectors in memory."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pyarrow import csv as arrow
from torch import Tensor

from simdino.contracts import InputError

ROWS = 2**12  # of a Parquet file read at a time
BLOCK, CELL = 2**20, 64  # bytes of a CSV file read at a time, or more: so many for each number of a row, which must fit
BUFFER = 2**20  # bytes of a Parquet file read at a time
Columns = tuple[list[str], list[str | None] | None, Tensor]
"""Paths, labels (None where no image has one) and vectors float32 [N, D] of a table."""


def read_table(path: Path) -> Columns:
    """The columns of a table that `embed_to` wrote. Vectors are put straight where they stay: no second copy of them is
    ever in memory. Raises InputError for a file that cannot be read, or is no such table."""
    kind = path.suffix.lower()
    if kind not in READERS:
        raise InputError(f"table '{path}' must end in {' or '.join(READERS)}: what simdino embed writes")
    try:
        return READERS[kind](path)
    except FileNotFoundError:
        raise InputError(f"table '{path}' is not there") from None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"table '{path}' cannot be read: {reason}") from None


def read_parquet(path: Path) -> Columns:
    """Read what `write_parquet` wrote; lists of other numbers or of no fixed size too, where all have one length."""
    with path.open("rb") as opened, pq.ParquetFile(opened, buffer_size=BUFFER) as file:
        check_columns(path, file.schema_arrow.names, ("path", "vector"))
        named = file.read([name for name in ("path", "label") if name in file.schema_arrow.names])
        vectors, start = np.empty((0, 0), dtype=np.float32), 0
        groups = range(file.num_row_groups)  # each by a reader of its own, as a reader holds on to what it has read
        batches = (one for group in groups for one in file.iter_batches(ROWS, row_groups=[group], columns=["vector"]))
        for batch in batches:
            part = lists_as_rows(batch.column(0), path)
            if not start:
                vectors = np.empty((len(named), part.shape[1]), dtype=np.float32)
            if part.shape[1] != vectors.shape[1]:
                raise InputError(f"table '{path}' has vectors of {vectors.shape[1]} and of {part.shape[1]} numbers")
            vectors[start : start + len(part)] = part
            start += len(part)
    return columns(path, named, vectors)


def lists_as_rows(column: Any, path: Path) -> NDArray[np.float32]:
    """A column of lists of numbers as [n, D]. Raises InputError where they have no one length."""
    if not pa.types.is_list(column.type) and not pa.types.is_fixed_size_list(column.type):
        raise InputError(f"table '{path}': the column vector has {column.type} where lists of numbers belong")
    lengths = pc.call_function("list_value_length", [column]).unique().to_pylist()
    flat = column.flatten()
    if pa.types.is_float16(flat.type) and not flat.null_count:  # which older versions of Arrow do not cast
        flat = pa.array(flat.to_numpy(zero_copy_only=False).astype(np.float32))
    numbers = flat.cast(pa.float32(), safe=False)
    if len(lengths) != 1 or not lengths[0] or numbers.null_count:
        raise InputError(f"table '{path}': the column vector has gaps, or lists of several lengths")
    return numbers.to_numpy(zero_copy_only=False).reshape(-1, lengths[0])


def read_csv(path: Path) -> Columns:
    """Read what `write_csv` wrote: once for the paths and labels, which tell how many rows there are, then for the
    vectors."""
    with path.open(encoding="utf-8", newline="") as file:
        names = next(csv.reader(file), [])
    check_columns(path, names, ("path", "v0"))
    numbers = [f"v{i}" for i in range(sum(name[:1] == "v" and name[1:].isdigit() for name in names))]
    check_columns(path, names, numbers)
    texts = [name for name in ("path", "label") if name in names]
    kinds = {name: pa.string() for name in texts} | {name: pa.float32() for name in numbers}
    size = arrow.ReadOptions(block_size=max(BLOCK, CELL * len(names)))

    def parts(wanted: list[str]) -> Iterator[Any]:
        convert = arrow.ConvertOptions(
            include_columns=wanted, column_types=kinds, null_values=[""], strings_can_be_null=True
        )
        with path.open("rb") as file, arrow.open_csv(file, read_options=size, convert_options=convert) as reader:
            yield from reader

    named = pa.Table.from_batches(parts(texts), pa.schema([(name, pa.string()) for name in texts]))
    vectors, start = np.empty((len(named), len(numbers)), dtype=np.float32), 0
    for batch in parts(numbers):
        if any(column.null_count for column in batch.columns):
            raise InputError(f"table '{path}': a number is missing in rows {start} to {start + len(batch) - 1}")
        for i, column in enumerate(batch.columns):
            vectors[start : start + len(batch), i] = column
        start += len(batch)
    return columns(path, named, vectors)


def check_columns(path: Path, there: Sequence[str], needed: Sequence[str]) -> None:
    """Raise InputError for a table without the columns that it needs."""
    missing = [name for name in needed if name not in there]
    if missing and "patches" in there:
        raise InputError(f"table '{path}' has the tokens of all patches: give one of --tokens cls or mean")
    if missing:
        raise InputError(
            f"table '{path}' has no column {', '.join(missing[:3])} (it has {', '.join(there[:5])}): give one that "
            "simdino embed wrote"
        )


def columns(path: Path, table: Any, vectors: NDArray[np.float32]) -> Columns:
    """What a table holds. Raises InputError where it has no rows, or one without a path."""
    if not len(vectors):
        raise InputError(f"table '{path}' has no rows")
    paths = table.column("path").to_pylist()
    if None in paths:
        raise InputError(f"table '{path}': row {paths.index(None)} has no path")
    labels = table.column("label").to_pylist() if "label" in table.column_names else []
    known = any(label is not None for label in labels)
    return list(map(str, paths)), labels if known else None, torch.from_numpy(vectors)


READERS = {".parquet": read_parquet, ".csv": read_csv}
