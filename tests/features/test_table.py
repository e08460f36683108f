"""`simdino embed`: tables of any length, the same whenever and however they were stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import PATIENCE, PRELOAD
from full_disk import nearly_full
from simdino import files
from simdino.cli import main
from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess, Tokens
from simdino.data.sources import open_dataset
from simdino.features import extract, parts, table
from simdino.features.parts import LOCK, folder_of
from simdino.features.table import FeatureTable, embed_source, embed_to
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder
from simdino.models.weights import load_encoder, save_encoder

pytestmark = pytest.mark.slow

BATCH = 16
COUNT = 7 * BATCH - 5
BROKEN = {"b/003.png", "a/050.png", "b/051.png", f"b/{COUNT - 2:03d}.png"}
ODD = "a/caf\udce9\n.png"  # a byte that is not UTF-8, and a line break


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small pictures of two classes, some of them torn, one with an odd name."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(COUNT - 1):
        path = folder / "ab"[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (folder / ODD).write_bytes((folder / "a/000.png").read_bytes())
    for name in BROKEN:
        (folder / name).write_bytes(b"torn")
    return folder


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


def toy(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    preprocess = Preprocess(resize=18, crop=16, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    narrow = EncoderConfig(name="vit_pico", image_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2)
    return make_encoder(narrow, preprocess).eval()


def quiet(line: str) -> None:
    """Say nothing."""


def numbers(path: Path) -> np.ndarray:
    return np.array(pq.read_table(path).column(2).to_pylist(), dtype=np.float32)


class Stop(Exception):
    """What ends a call in the middle."""


def stopped_after(images: int) -> Any:
    """Progress that ends the call once so many images have been embedded."""

    def progress(items: Any, what: str, total: int) -> Iterator[Any]:
        for i, item in enumerate(items):
            if i * BATCH >= images:
                raise Stop
            yield item

    return progress


# --- what is written ----------------------------------------------------------------------------------------------


def test_the_table_is_the_encoder_called_image_by_image(photos: Path, weights: Path, whole: Path) -> None:
    model, source = load_encoder(weights), open_dataset(photos)
    kept = [name for name in source.names if name not in BROKEN]
    found = pq.read_table(whole)
    assert found["path"].to_pylist() == [name.replace("\udce9\n", r"\xe9\n") for name in kept]
    assert found["label"].to_pylist() == [name[0] for name in kept]
    expected = torch.cat([model.embed(photos / name) for name in kept])
    torch.testing.assert_close(torch.from_numpy(numbers(whole)), expected, atol=1e-5, rtol=1e-5)
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
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if extract.fastest("cpu") == "float32" else {"atol": 0.1, "rtol": 0.1}
    torch.testing.assert_close(torch.from_numpy(numbers(out)), rows, **tolerance)
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


# --- stopped ------------------------------------------------------------------------------------------------------


NEVER, AT_LAST = 10**6, 10**6 + 1  # moments of a kill: none; when the table is whole and its parts are still there


def child(encoder: str, data: str, out: str, flushes: int, log: str, workers: int) -> None:
    """Embed in a process that SIGKILLs itself when so many files were about to be flushed to the disk."""
    extract.BATCH, parts.SECONDS = BATCH, 0.0
    flush, count = files.flush, 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(path: Path) -> None:
        nonlocal count
        count += 1
        if count == flushes:
            die()
        flush(path)

    def say(line: str) -> None:
        with Path(log).open("a") as file:
            file.write(line + "\n")

    files.flush = counted
    if flushes == AT_LAST:
        parts.discard = lambda folder: die()
    found = embed_to(encoder, data, out=Path(out), workers=workers, log=say)
    say(json.dumps([found.images, sorted(found.broken.items())]))


def begun(weights: Path, photos: Path, out: Path, flushes: int, log: Path, workers: int = 0) -> BaseProcess:
    """A process of `child`."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    words = str(weights), str(photos), str(out), flushes, str(log), workers
    process = context.Process(target=child, args=words)
    process.start()
    return process


def in_a_process(weights: Path, photos: Path, out: Path, flushes: int, log: Path, workers: int = 0) -> int:
    """The exit code of `child`."""
    process = begun(weights, photos, out, flushes, log, workers)
    process.join(PATIENCE)
    assert process.exitcode is not None, "it did not end"
    return process.exitcode


PARTS = 7  # of COUNT images; before them the manifest is flushed, after them the table


def test_killed_at_every_file_in_turn_gives_the_same_bytes(
    photos: Path, weights: Path, whole: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "f.parquet", tmp_path / "log"
    assert in_a_process(weights, photos, out, 1, log) == -signal.SIGKILL  # the manifest
    assert in_a_process(weights, photos, out, 2, log) == -signal.SIGKILL  # the first part
    for _ in range(PARTS):  # a part is made, and the kill comes while the next one is written, at last the table
        assert in_a_process(weights, photos, out, 2, log) == -signal.SIGKILL
        assert not out.exists()
    assert in_a_process(weights, photos, out, AT_LAST, log) == -signal.SIGKILL  # the table is there, the parts too
    assert out.read_bytes() == whole.read_bytes() and folder_of(out).is_dir()
    assert in_a_process(weights, photos, out, NEVER, log) == 0
    assert out.read_bytes() == whole.read_bytes() and not folder_of(out).exists()
    said = log.read_text().splitlines()
    ends = [min(BATCH * i, COUNT) for i in range(1, PARTS + 1)]
    assert said[:-1] == [f"goes on after {end} of {COUNT} images" for end in [*ends, COUNT]]
    images, broken = json.loads(said[-1])
    assert images == COUNT - len(BROKEN) and {name for name, _ in broken} == BROKEN


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_any_moment_with_workers_gives_the_same_bytes(
    workers: int, photos: Path, weights: Path, whole: Path, tmp_path: Path
) -> None:
    out, log, kills = tmp_path / "f.parquet", tmp_path / "log", 0
    for least in (1, 3, 5):
        process = begun(weights, photos, out, NEVER, log, workers)
        while process.exitcode is None and len([*folder_of(out).glob("0*.parquet")]) < least:
            process.join(0.001)
        process.kill()
        process.join(PATIENCE)
        kills += process.exitcode == -signal.SIGKILL
    assert kills and in_a_process(weights, photos, out, NEVER, log, workers) == 0
    assert out.read_bytes() == whole.read_bytes() and not folder_of(out).exists()
    images, broken = json.loads(log.read_text().splitlines()[-1])
    assert images == COUNT - len(BROKEN) and {name for name, _ in broken} == BROKEN


@pytest.mark.parametrize("at", [BATCH, 48, 6 * BATCH, COUNT])
@pytest.mark.parametrize("tokens", ["cls", "patches"])
def test_broken_images_met_before_the_stop_are_named_too(
    at: int, tokens: Any, photos: Path, weights: Path, tmp_path: Path
) -> None:
    told: list[FeatureTable] = []
    for out, stop in (("one.parquet", None), ("two.parquet", stopped_after(at))):
        if stop is not None and at < COUNT:
            with pytest.raises(Stop):
                embed_to(str(weights), str(photos), out=tmp_path / out, tokens=tokens, log=quiet, progress=stop)
        told.append(embed_to(str(weights), str(photos), out=tmp_path / out, tokens=tokens, log=quiet))
    assert told[0].broken == told[1].broken and told[0].broken.keys() == BROKEN
    assert [*told[0].broken] == [name for name in open_dataset(photos).names if name in BROKEN]
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


@pytest.mark.parametrize("other", ["encoder", "images", "labels", "options", "versions", "two"])
def test_parts_of_anything_else_are_discarded_in_one_line(
    other: str, photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, words = {"weights": weights, "photos": photos}, dict[str, Any]()
    if other in ("encoder", "two"):
        save_encoder(toy(seed=1), tmp_path / "encoder.safetensors")
        first["weights"] = tmp_path / "encoder.safetensors"
    if other == "images":
        first["photos"] = tmp_path / "photos"
        copied(photos, tmp_path / "photos")
        (tmp_path / "photos" / "a" / "000.png").write_bytes((photos / "b" / "001.png").read_bytes() + b" ")
    if other in ("options", "two"):
        words = {"tokens": "mean"}
    if other == "versions":
        monkeypatch.setattr(table, "__version__", "0.0.1")
    out, said = tmp_path / "f.parquet", list[str]()
    source, model = open_dataset(first["photos"]), load_encoder(first["weights"])
    if other == "labels":
        source.labels = 1 - source.labels
    with pytest.raises(Stop):
        embed_source(model, source, out, name="x", log=quiet, progress=stopped_after(48), **words)
    if other == "versions":
        monkeypatch.setattr(table, "__version__", "0.0.2")
    embed_to(str(weights), str(photos), out=out, log=said.append)
    names = {"labels": "images", "two": "encoder"}
    text = parts.OTHER[names.get(other, other)] + (" and other options" if other == "two" else "")
    assert said == [f"48 images that an earlier call embedded are discarded: they belong to {text}"]
    embed_to(str(weights), str(photos), out=tmp_path / "g.parquet", log=said.append)
    assert out.read_bytes() == (tmp_path / "g.parquet").read_bytes() and len(said) == 1


def copied(folder: Path, to: Path) -> None:
    for path in folder.rglob("*.png"):
        target = to / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())


def test_a_finished_table_is_made_anew(photos: Path, weights: Path, whole: Path) -> None:
    said, before = list[str](), whole.stat().st_ino
    embed_to(str(weights), str(photos), out=whole, log=said.append)
    assert not said and whole.stat().st_ino != before


def test_the_rest_has_the_precision_of_the_parts(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "f.parquet"
    monkeypatch.setattr("simdino.device.fastest", lambda device: "bfloat16")
    embed_to(str(weights), str(photos), out=tmp_path / "whole.parquet", log=quiet)
    with pytest.raises(Stop):
        embed_to(str(weights), str(photos), out=out, log=quiet, progress=stopped_after(48))
    monkeypatch.setattr("simdino.device.fastest", lambda device: "float32")
    embed_to(str(weights), str(photos), out=out, log=quiet)
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    embed_to(str(weights), str(photos), out=out, log=quiet)
    assert out.read_bytes() != (tmp_path / "whole.parquet").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "no manifest", "odd manifest"])
def test_damaged_parts_are_made_again(damage: str, photos: Path, weights: Path, whole: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "f.parquet", list[str]()
    with pytest.raises(Stop):
        embed_to(str(weights), str(photos), out=out, log=quiet, progress=stopped_after(80))
    made = sorted(folder_of(out).glob("*.parquet"))
    assert len(made) == 5
    if "manifest" in damage:
        manifest = folder_of(out) / "manifest.json"
        manifest.write_text('{"precision": "float8"}') if damage == "odd manifest" else manifest.unlink()
        expected = ["80 images that an earlier call embedded are discarded: they belong to something unknown"]
    else:
        made[2].write_bytes(made[2].read_bytes()[: -9 if damage == "cut" else 0])
        if damage == "gone":
            made[2].unlink()
        expected = [f"goes on after 32 of {COUNT} images"]
    embed_to(str(weights), str(photos), out=out, log=said.append)
    assert said == expected and out.read_bytes() == whole.read_bytes()


def test_a_bit_that_a_disk_has_turned_is_found(photos: Path, weights: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    with pytest.raises(Stop):
        embed_to(str(weights), str(photos), out=out, log=quiet, progress=stopped_after(80))
    part = sorted(folder_of(out).glob("*.parquet"))[1]
    content = bytearray(part.read_bytes())
    content[content.index(numbers(part)[3].tobytes()) + 5] ^= 1
    part.write_bytes(content)
    with pytest.raises(InputError, match=r"0016.parquet cannot be read \(.*\): delete it and give the same command"):
        embed_to(str(weights), str(photos), out=out, log=quiet)
    assert not out.exists()
    part.unlink()
    embed_to(str(weights), str(photos), out=out, log=quiet)
    assert out.read_bytes() == whole.read_bytes()


# --- beside others ------------------------------------------------------------------------------------------------


def test_two_processes_do_not_write_one_table(photos: Path, weights: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "f.parquet", folder_of(tmp_path / "f.parquet")
    with pytest.raises(Stop):
        embed_to(str(weights), str(photos), out=out, log=quiet, progress=stopped_after(48))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    words = [sys.executable, "-m", "simdino", "embed", str(weights), str(photos), "--out", str(out)]
    with files.locked(folder / LOCK, doing="writing it"):
        ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == f"simdino: another process is writing {out}: wait for it, or stop it first\n"
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_nothing_readable_leaves_nothing(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(40):
        (tmp_path / "photos" / f"{i}.png").write_bytes(b"torn")
    with pytest.raises(InputError, match="no readable image in photos: 40 tried"):
        embed_to(str(weights), str(tmp_path / "photos"), out=tmp_path / "new" / "f.parquet", log=quiet)
    assert not list((tmp_path / "new").iterdir())


def test_a_call_that_ends_before_its_first_part_leaves_nothing(photos: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        embed_to(str(weights), str(photos), out=tmp_path / "f.parquet", log=quiet, progress=stopped_after(0))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_in_a_line_and_what_is_done_is_kept(
    photos: Path, weights: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "f.parquet"
    words = ["embed", str(weights), str(photos), "--out", str(out)]
    largest = 1000 * (1 + len(whole.read_bytes()) // 2000)  # more than a part, less than the table
    with nearly_full(largest), pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.splitlines()[-1] == f"simdino: --out {out} cannot be written: File too large"
    assert not out.exists() and not [*folder_of(out).glob(".writing-*")]
    main(words)
    assert f"goes on after {COUNT} of {COUNT} images" in capsys.readouterr().err
    assert out.read_bytes() == whole.read_bytes()


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
