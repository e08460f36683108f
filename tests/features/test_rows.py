"""Rows of tables of features: what is written is what was given, however it came."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.base import ArraySource
from simdino.features import rows
from simdino.features.rows import regrouped, rows_in_group, rows_of, schema_of, write_csv, write_parquet

NAMES = ["red/1.png", "blue/Größe 2.png", "c", "d"]
Shape = tuple[int, ...]


def named(names: list[str], labels: list[int] | None = None) -> ArraySource:
    pixels = np.zeros((len(names), 1, 1), dtype=np.uint8)
    return ArraySource("x", pixels, names, None if labels is None else np.array(labels), ("red", "blue"))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table_of(
    values: Tensor, source: ArraySource, *, dtype: rows.Numbers = "float32"
) -> tuple[list[pa.Table], pa.Schema]:
    column = "vector" if values.ndim == 2 else "patches"
    schema = schema_of(values.shape[1:], dtype, column=column, about={"a": "b"})
    return list(regrouped([rows_of(source, range(len(values)), values, schema)], len(values))), schema


@pytest.mark.parametrize("shape", [(6,), (1,), (5, 3), (1, 1)])
@pytest.mark.parametrize("labels", [[0, 1, 1, 0], None])
def test_rows_survive_the_way_through_parquet(tmp_path: Path, labels: list[int] | None, shape: Shape) -> None:
    values, out = numbers(4, *shape), tmp_path / "features.parquet"
    write_parquet(*table_of(values, named(NAMES, labels)), out)
    table = pq.read_table(out)
    assert table.column_names == ["path", "label", "vector" if len(shape) == 1 else "patches"]
    assert table.schema.field("path").type == pa.string() and table.schema.field("label").type == pa.string()
    assert table["path"].to_pylist() == NAMES
    assert table["label"].to_pylist() == (["red", "blue", "blue", "red"] if labels else [None] * 4)
    assert np.array_equal(np.array(table.column(2).to_pylist(), dtype=np.float32), values.numpy())
    assert json.loads(table.schema.metadata[b"simdino"]) == {"a": "b"}


def test_numbers_that_are_a_view_are_written_right(tmp_path: Path) -> None:
    wide = torch.arange(24.0).view(4, 6)
    write_parquet(*table_of(wide.T, named(list("abcdef"))), tmp_path / "f.parquet")
    assert pq.read_table(tmp_path / "f.parquet")["vector"].to_pylist() == wide.T.tolist()


def test_float16_is_what_torch_rounds_to_and_comes_back_from_csv_too(tmp_path: Path) -> None:
    values = numbers(4, 50) * torch.logspace(-6, 4, 50)
    for write, end in ((write_parquet, "parquet"), (write_csv, "csv")):
        write(*table_of(values, named(NAMES), dtype="float16"), tmp_path / f"f.{end}")
    stored = pq.read_table(tmp_path / "f.parquet")["vector"]
    assert stored.type.value_type == pa.float16()
    assert np.array_equal(np.array(stored.to_pylist(), dtype=np.float16), values.half().numpy())
    cells = [line[2:] for line in csv.reader((tmp_path / "f.csv").read_text(encoding="utf-8").splitlines())][1:]
    assert np.array_equal(np.array(cells, dtype=np.float64).astype(np.float16), values.half().numpy())


@pytest.mark.parametrize("number", [65520.0, -1e9, float("inf")])
def test_numbers_beyond_float16_are_refused_with_the_images_name(number: float) -> None:
    values = numbers(4, 3)
    values[2, 1] = number
    with pytest.raises(InputError, match=r"--dtype float16: numbers of c are larger than 65504: give --dtype float32"):
        table_of(values, named(NAMES), dtype="float16")


def test_csv_has_every_digit_of_float32(tmp_path: Path) -> None:
    values = numbers(4, 40) * torch.logspace(-30, 30, 40)
    write_csv(*table_of(values, named(NAMES, [0, 1, 0, 1])), tmp_path / "f.csv")
    lines = list(csv.reader((tmp_path / "f.csv").read_text(encoding="utf-8").splitlines()))
    assert lines[0] == ["path", "label", *(f"v{i}" for i in range(40))]
    assert [line[:2] for line in lines[1:]] == [[name, ["red", "blue"][i % 2]] for i, name in enumerate(NAMES)]
    assert np.array_equal(np.array([line[2:] for line in lines[1:]], dtype=np.float32), values.numpy())


@pytest.mark.parametrize("write", [write_parquet, write_csv])
def test_the_file_does_not_depend_on_how_rows_came(write: rows.Writer, tmp_path: Path) -> None:
    values, source = numbers(1500, 70), named([f"{i}.png" for i in range(1500)], [i % 2 for i in range(1500)])
    schema, written = schema_of((70,), "float32", column="vector", about={}), set[bytes]()
    for seed in range(3):
        random = np.random.default_rng(seed)
        cuts = [0, *sorted(random.choice(np.arange(1, 1500), size=10 * seed, replace=False).tolist()), 1500]
        parts = [rows_of(source, range(a, b), values[a:b], schema) for a, b in pairwise(cuts)]
        tables = list(regrouped(parts, 599))
        assert [table.num_rows for table in tables] == [599, 599, 302]
        assert all(column.num_chunks == 1 for table in tables for column in table.columns)
        write(tables, schema, tmp_path / "f")
        written.add((tmp_path / "f").read_bytes())
    assert len(written) == 1


@pytest.mark.parametrize(
    ("shape", "dtype", "most"),
    [((192,), "float32", 8192), ((4096,), "float32", 2048), ((4096,), "float16", 4096), ((256, 384), "float32", 85),
     ((5000, 4096), "float32", 1)],
)  # fmt: skip
def test_a_group_has_some_thousand_rows_or_32_mib(shape: Shape, dtype: rows.Numbers, most: int) -> None:
    assert rows_in_group(schema_of(shape, dtype, column="x", about={})) == most


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numbers_that_are_not_finite_are_refused_with_the_images_name(dtype: rows.Numbers) -> None:
    values = numbers(4, 3)
    values[2, 1] = torch.nan
    with pytest.raises(InputError, match="features of c are not finite"):
        table_of(values, named(NAMES), dtype=dtype)
