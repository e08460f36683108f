"""Tables of features back from Parquet and CSV: as they were written, and as other programs write them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import simdino as sd
from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.data.base import ArraySource
from simdino.features import reading
from simdino.features.extract import Features
from simdino.features.index import EmbeddingIndex
from simdino.features.reading import READERS
from simdino.features.rows import WRITERS, Numbers, regrouped, rows_of, schema_of
from simdino.features.table import embed_to
from simdino.models.catalogue import make_encoder
from simdino.models.weights import save_encoder


def made(count: int = 40, width: int = 7, *, labels: bool = True) -> Features:
    random = np.random.default_rng(0)
    return Features(
        vectors=torch.from_numpy(random.normal(size=(count, width)).astype(np.float32)),
        names=[f'a, "b"/{i}.jpg' for i in range(count)], labels=random.integers(3, size=count) if labels else None,
        classes=("cat", "dog, big", "") if labels else (), broken={},
    )  # fmt: skip


def write(features: Features, out: Path, *, group: int, dtype: Numbers = "float32") -> None:
    """A table as `simdino embed` writes it, in row groups of so many."""
    empty = np.zeros((len(features), 1, 1), np.uint8)
    source = ArraySource("made", empty, features.names, features.labels, features.classes)
    schema = schema_of(features.vectors.shape[1:], dtype, column="vector", about={})
    rows = rows_of(source, range(len(features)), features.vectors, schema)
    WRITERS[out.suffix](regrouped([rows], group), schema, out)


def test_what_is_written_can_be_read() -> None:
    assert READERS.keys() == WRITERS.keys()


@pytest.mark.parametrize("kind", WRITERS)
def test_a_table_of_float16_is_read(kind: str, tmp_path: Path) -> None:
    features = made()
    write(features, tmp_path / f"table{kind}", group=16, dtype="float16")
    assert torch.equal(EmbeddingIndex.load(tmp_path / f"table{kind}").vectors.half(), features.vectors.half())


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_table_comes_back_bit_for_bit(
    kind: str, labels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "ROWS", 16)
    monkeypatch.setattr(reading, "BLOCK", 1024)
    features = made(labels=labels)
    write(features, tmp_path / f"table{kind}", group=16)
    index, expected = sd.EmbeddingIndex.load(tmp_path / f"table{kind}"), sd.EmbeddingIndex(features)
    assert torch.equal(index.vectors, features.vectors) and index.names == features.names
    if kind == ".csv" and labels:  # which has no other word for a class without a name
        assert index.labels == [label or None for label in expected.labels or []]
    else:
        assert index.labels == expected.labels


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_what_the_command_wrote_is_what_embed_gives(kind: str, tmp_path: Path) -> None:
    preprocess = Preprocess(resize=8, crop=8, channels=1, mean=(0.5,), std=(0.3,))
    encoder = make_encoder(EncoderConfig(name="vit_toy", image_size=8, patch_size=4), preprocess)
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    embed_to(str(tmp_path / "encoder.safetensors"), "digits", split="val", out=tmp_path / f"table{kind}")
    index = EmbeddingIndex.load(str(tmp_path / f"table{kind}"))
    expected = sd.EmbeddingIndex(sd.embed(encoder, "digits", split="val"))
    assert index.names == expected.names and index.labels == expected.labels
    torch.testing.assert_close(index.vectors, expected.vectors)
    assert torch.equal(index.search(index.names[3]).indices, index.search(3).indices)


def test_lists_of_doubles_of_other_writers_are_read(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=(5, 3))
    parquet(tmp_path / "t.parquet", {"more": [1] * 5, "vector": numbers.tolist(), "path": list("abcde")})
    index = EmbeddingIndex.load(tmp_path / "t.parquet")
    assert np.array_equal(index.vectors.numpy(), numbers.astype(np.float32))
    assert index.names == list("abcde") and index.labels is None


READ = """
import sys, tracemalloc
from pathlib import Path
import pyarrow as pa
from simdino.features import reading, table
reading.BLOCK, reading.CELL = 2**15, 32
before = pa.default_memory_pool().max_memory()
tracemalloc.start()
vectors = reading.read_table(Path(sys.argv[1]))[2]
print(vectors.nbytes, tracemalloc.get_traced_memory()[1], pa.default_memory_pool().max_memory() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_reading_needs_the_memory_of_the_vectors_once(kind: str, tmp_path: Path) -> None:
    """Of Python and numpy, where the vectors and the bytes of the file are, and of arrow, in a process of its own."""
    write(made(6000, 96), tmp_path / f"table{kind}", group=512)
    words = [sys.executable, "-c", READ, str(tmp_path / f"table{kind}")]
    vectors, python, arrow = map(int, subprocess.run(words, check=True, capture_output=True).stdout.split())
    names = 6000 * 200  # paths and labels as texts of Python, and the lists that hold them
    assert vectors == 6000 * 96 * 4
    assert python + arrow < 1.3 * vectors + names, (python / vectors, arrow / vectors)


def parquet(path: Path, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), path)


NOTHING = {"path": pa.array([], pa.string()), "vector": pa.array([], pa.list_(pa.float32()))}
BAD = {
    "missing.parquet": (None, "is not there"),
    "table.npy": (b"", r"must end in \.parquet or \.csv"),
    "noise.parquet": (b"noise", "cannot be read: "),
    "empty.csv": (b"", "has no column path"),
    "head.csv": (b"path,label,v0\n", "has no rows"),
    "list.csv": (b"path,label\na,b\n", r"has no column v0 \(it has path, label\)"),
    "gap.csv": (b"path,v0,v2\na,1,2\n", "has no column v1"),
    "hole.csv": (b"path,v0,v1\na,1,2\nb,,2\n", "a number is missing in rows 0 to 1"),
    "word.csv": (b"path,v0\na,1\nb,two\n", "cannot be read: .*'two'"),
    "ragged.csv": (b"path,v0,v1\na,1,2\nb,1\n", "cannot be read: .*Expected 3 columns, got 2"),
    "bytes.csv": (b"path,v0\n\xff,1\n", "cannot be read: "),
    "nan.csv": (b"path,v0\na,nan\n", "not finite, the first is 0 \\(a\\)"),
    "patches.parquet": (
        {"path": ["a"], "patches": [[[1.0]]]},
        "has the tokens of all patches: give one of --tokens cls",
    ),
    "other.parquet": ({"path": ["a"], "score": [1.0]}, "has no column vector"),
    "flat.parquet": ({"path": ["a"], "vector": [1.0]}, "the column vector has double"),
    "lengths.parquet": ({"path": ["a", "b"], "vector": [[1.0], [1.0, 2.0]]}, "several lengths"),
    "null.parquet": ({"path": ["a", "b"], "vector": [[1.0], None]}, "gaps"),
    "inside.parquet": ({"path": ["a", "b"], "vector": [[1.0], [None]]}, "gaps"),
    "words.parquet": ({"path": ["a"], "vector": [["x"]]}, "cannot be read: "),
    "nameless.parquet": ({"path": ["a", None], "vector": [[1.0], [2.0]]}, "row 1 has no path"),
    "none.parquet": (
        {"path": pa.array([], pa.string()), "vector": pa.array([], pa.list_(pa.float32()))},
        "has no rows",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_table_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    content, expected = BAD[name]
    if isinstance(content, dict):
        parquet(tmp_path / name, content)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=expected) as told:
        EmbeddingIndex.load(tmp_path / name)
    assert "\n" not in str(told.value)


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        EmbeddingIndex.load(tmp_path / "folder.csv")


def test_parts_of_a_file_may_have_vectors_of_another_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "ROWS", 2)
    parquet(tmp_path / "t.parquet", {"path": list("abcd"), "vector": [[1.0]] * 2 + [[1.0, 2.0]] * 2})
    with pytest.raises(InputError, match="has vectors of 1 and of 2 numbers"):
        EmbeddingIndex.load(tmp_path / "t.parquet")
