"""`simdino embed`: what is written, by little memory."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_tables import BATCH, BROKEN, COUNT, Stop, numbers, quiet, stopped_after, toy, write_photos
from torch import Tensor

from simdino.contracts import InputError, Tokens
from simdino.data.sources import open_dataset
from simdino.features import extract, parts, table
from simdino.features.parts import folder_of
from simdino.features.table import embed_source, embed_to
from simdino.models.weights import load_encoder, save_encoder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    save_encoder(toy(), path)
    return path


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "BATCH", BATCH)
    monkeypatch.setattr(parts, "SECONDS", 0.0)


@pytest.fixture
def whole(photos: Path, weights: Path, tmp_path: Path) -> Path:
    """The table of a call that nobody stopped."""
    embed_to(str(weights), str(photos), out=tmp_path / "whole" / "f.parquet", log=quiet)
    return tmp_path / "whole" / "f.parquet"


def rounding(*, bfloat16: float) -> dict[str, float]:
    """How far two ways to the same features may differ in what this machine computes in."""
    tolerance = 1e-5 if extract.fastest("cpu") == "float32" else bfloat16
    return {"atol": tolerance, "rtol": tolerance}


# --- what is written ----------------------------------------------------------------------------------------------


def test_the_table_is_the_encoder_called_image_by_image(photos: Path, weights: Path, whole: Path) -> None:
    model, source = load_encoder(weights), open_dataset(photos)
    kept = [name for name in source.names if name not in BROKEN]
    found = pq.read_table(whole)
    assert found["path"].to_pylist() == [name.replace("\udce9\n", r"\xe9\n") for name in kept]
    assert found["label"].to_pylist() == [name[0] for name in kept]
    expected = torch.cat([model.embed(photos / name) for name in kept])
    torch.testing.assert_close(torch.from_numpy(numbers(whole)), expected, **rounding(bfloat16=1e-2))
    assert sorted(path.name for path in whole.parent.iterdir()) == ["f.parquet"]


@pytest.mark.parametrize("tokens", ["cls", "mean", "patches"])
def test_tokens_are_the_encoders_own(tokens: Any, photos: Path, weights: Path, tmp_path: Path) -> None:
    model, source, out = load_encoder(weights), open_dataset(photos), tmp_path / "f.parquet"
    got = embed_to(str(weights), str(photos), out=out, tokens=tokens, log=quiet)
    kept = [name for name in source.names if name not in BROKEN]
    with torch.no_grad():
        own: list[Tokens] = [model(model.transform(photos / name)[None]) for name in kept]
    assert all(one.patches is not None for one in own)
    expected = {
        "cls": lambda one: one.cls[0], "mean": lambda one: one.patches[0].double().mean(0).float(),
        "patches": lambda one: one.patches[0],
    }[tokens]  # fmt: skip
    rows = torch.stack([expected(one) for one in own])
    torch.testing.assert_close(torch.from_numpy(numbers(out)), rows, **rounding(bfloat16=0.1))
    assert (got.images, got.width, got.tokens) == (len(kept), model.embed_dim, tokens)
    assert got.grid == ((2, 2) if tokens == "patches" else None) and got.broken.keys() == BROKEN
    in_memory = extract.embed(model, source, tokens=tokens)
    assert np.array_equal(in_memory.vectors.numpy(), numbers(out)) and in_memory.grid == got.grid
    assert in_memory.broken == got.broken


def test_a_table_tells_what_made_it(weights: Path, whole: Path, photos: Path, tmp_path: Path) -> None:
    about = json.loads(pq.read_schema(whole).metadata[b"simdino"])
    assert about["encoder"] == str(weights) and about["tokens"] == "cls" and about["grid"] is None
    assert about["preprocess"]["crop"] == 16 and about["preprocess"]["mean"] == [0.5] * 3
    assert about["config"]["name"] == "vit_pico" and about["simdino"] == table.__version__
    embed_to(str(weights), str(photos), out=tmp_path / "p.parquet", tokens="patches", log=quiet)
    assert json.loads(pq.read_schema(tmp_path / "p.parquet").metadata[b"simdino"])["grid"] == [2, 2]


def test_a_csv_has_the_numbers_of_the_parquet(photos: Path, weights: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.csv"
    with pytest.raises(Stop):
        embed_to(str(weights), str(photos), out=out, log=quiet, progress=stopped_after(48))
    assert not out.exists() and folder_of(out).is_dir()
    embed_to(str(weights), str(photos), out=out, log=quiet)
    lines = [line.split(",") for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line[0] for line in lines[1:]] == pq.read_table(whole)["path"].to_pylist()
    assert np.array_equal(np.array([line[2:] for line in lines[1:]], dtype=np.float32), numbers(whole))


def test_patches_go_into_no_csv(photos: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a CSV has one vector a line, and --tokens patches has many"):
        embed_to(str(weights), str(photos), out=tmp_path / "f.csv", tokens="patches")


@pytest.mark.parametrize("tokens", ["mean", "patches"])
def test_an_encoder_without_patch_tokens_is_refused_in_a_line(tokens: Any, photos: Path, tmp_path: Path) -> None:
    model = toy()
    model.forward = lambda images, **_: Tokens(cls=images.mean((2, 3)), patches=None)  # type: ignore[method-assign]
    source, line = open_dataset(photos), rf"--tokens {tokens}: encoder vit_pico tells no patch tokens apart"
    with pytest.raises(InputError, match=line):
        embed_source(model, source, tmp_path / "f.parquet", name="x", tokens=tokens)
    with pytest.raises(InputError, match=line):
        extract.embed(model, source, tokens=tokens)
    assert not list(tmp_path.iterdir())
    assert extract.embed(model, source).vectors.shape == (COUNT - len(BROKEN), 3)


def test_an_unknown_kind_of_tokens_names_those_there_are(photos: Path) -> None:
    with pytest.raises(InputError, match="--tokens all must be one of cls, mean, patches"):
        extract.embed(toy(), photos, tokens="all")  # type: ignore[arg-type]


def test_half_numbers_are_half_as_large(photos: Path, weights: Path, whole: Path, tmp_path: Path) -> None:
    embed_to(str(weights), str(photos), out=tmp_path / "f.parquet", dtype="float16", log=quiet)
    assert np.array_equal(numbers(tmp_path / "f.parquet"), numbers(whole).astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("name", ["f\udce9\n.parquet", 247 * "x" + ".parquet", 251 * "y" + ".csv"])
def test_the_table_may_have_any_name_that_a_file_may(name: str, photos: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / name
    with pytest.raises(Stop):
        embed_to(str(weights), str(photos), out=out, log=quiet, progress=stopped_after(48))
    said: list[str] = []
    got = embed_to(str(weights), str(photos), out=out, log=said.append)
    assert said == [f"goes on after 48 of {COUNT} images"] and got.images == COUNT - len(BROKEN)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_link_stays_and_its_target_has_the_parts(photos: Path, weights: Path, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "f.parquet").symlink_to("there/g.parquet")
    with pytest.raises(Stop):
        embed_to(str(weights), str(photos), out=tmp_path / "f.parquet", log=quiet, progress=stopped_after(48))
    assert [path.name for path in (tmp_path / "there").iterdir()] == [".g.parquet.parts"]
    embed_to(str(weights), str(photos), out=tmp_path / "there" / "g.parquet", log=quiet)
    assert (tmp_path / "f.parquet").is_symlink() and (tmp_path / "f.parquet").read_bytes() == whole.read_bytes()


# --- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["cls", "patches"])
def test_few_rows_are_alive_at_any_time(
    tokens: Any, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every number that an encoder gives is counted until its memory is free; Arrow counts its own."""
    alive, most, of_arrow = 0, 0, 0

    def forget(count: int) -> None:
        nonlocal alive
        alive -= count

    def reader(*given: Any) -> Callable[[Tensor], Tensor]:
        def spied(images: Tensor) -> Tensor:
            nonlocal alive, most
            kept = honest(*given)(images).numpy().copy()
            alive += len(kept)
            most = max(most, alive)
            weakref.finalize(kept, forget, len(kept))
            return torch.from_numpy(kept)

        return spied

    def written(tables: Any, *given: Any) -> None:
        def seen() -> Iterator[pa.Table]:
            nonlocal of_arrow
            for one in tables:
                of_arrow = max(of_arrow, pa.total_allocated_bytes() - before)
                yield one

        write(seen(), *given)

    honest, write = extract.reader, parts.WRITERS[".parquet"]
    monkeypatch.setattr(extract, "reader", reader)
    monkeypatch.setitem(parts.WRITERS, ".parquet", written)
    monkeypatch.setattr(parts, "SECONDS", 1e9)
    monkeypatch.setattr("simdino.features.rows.MOST_ROWS", 64)
    before = pa.total_allocated_bytes()
    got = embed_to(str(weights), "digits", out=tmp_path / "f.parquet", tokens=tokens, log=quiet)
    assert got.images == 1797 and alive == 0
    assert 64 <= most <= 64 + BATCH
    assert 0 < of_arrow < 8 * 64 * numbers(tmp_path / "f.parquet")[0].nbytes
