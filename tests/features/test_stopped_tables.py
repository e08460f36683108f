"""`simdino embed` that is stopped, whenever and however, writes the table of a call that never was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from small_tables import BATCH, BROKEN, COUNT, Stop, numbers, quiet, stopped_after, toy, write_photos

from conftest import PATIENCE, PRELOAD
from full_disk import nearly_full
from simdino import files
from simdino.cli import main
from simdino.contracts import InputError
from simdino.data.sources import open_dataset
from simdino.features import extract, parts, table
from simdino.features.parts import LOCK, folder_of
from simdino.features.table import FeatureTable, embed_source, embed_to
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
