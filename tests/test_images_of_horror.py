"""A folder as people really have it: training ends well, and says which files were broken."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Start
from simdino.config import Config
from simdino.contracts import InputError
from simdino.options import Options
from simdino.recipes import resolve
from simdino.runs.folder import read_broken
from simdino.train.loop import check_broken
from simdino.train.parallel import Processes

pytestmark = pytest.mark.slow

WORDS = "--batch 16 --image-size 16 --patch-size 8 --local-views 0 --encoder vit_toy --threads 1 --precision float32"
GOOD = 96  # plain images beside the horrors, half of them in either class
BROKEN = {"truncated.jpg", "empty.png", "text.jpg", "bomb.png", "cut.png"}


def photo(seed: int, *, size: tuple[int, int] = (24, 20)) -> Image.Image:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def bomb(path: Path, side: int = 60_000) -> None:
    """A PNG of a few bytes that claims 3.6 billion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b""))


def write_horrors(folder: Path) -> None:
    folder.mkdir(parents=True)
    picture = photo(1, size=(64, 48))
    picture.save(folder / "whole.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:300])
    picture.save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:200])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("Dear diary,")
    bomb(folder / "bomb.png")
    deep = np.linspace(0, 65535, 24 * 20).astype(np.uint16).reshape(20, 24)
    Image.fromarray(deep).save(folder / "sixteen_bits.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("P").save(folder / "palette.gif")
    picture.convert("RGBA").save(folder / "alpha.png")
    picture.convert("LA").save(folder / "grey_alpha.png")
    picture.convert("L").save(folder / "grey.jpg")
    picture.convert("1").save(folder / "bits.png")
    Image.new("RGB", (1, 1), "red").save(folder / "dot.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "turned.jpg", exif=exif)
    photo(2, size=(20_000, 8)).save(folder / "wide.png")
    photo(3).save(folder / "tab\there and\nline.png")
    photo(4).save(folder / "ümläut 写真.webp")


@pytest.fixture(scope="module")
def horrors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of good images and a class of horrors, all of it for training, and some good ones held out."""
    top = tmp_path_factory.mktemp("horrors") / "photos"
    for i in range(GOOD):
        path = top / "train" / ("cats", "dogs")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(i).save(path)
    for i in range(6):
        path = top / "val" / ("cats", "dogs")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(GOOD + i).save(path)
    write_horrors(top / "train" / "horrors")
    return top


@pytest.fixture(scope="module")
def runs(start: Start, horrors: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, str, str]]:
    """Three passes over it without workers and with two: folder, stdout, stderr."""
    found = {}
    for workers in (0, 2):
        folder = tmp_path_factory.mktemp("runs") / str(workers)
        words = [*WORDS.split(), "--steps", 22, "--evaluate-every", 11, "--workers", workers]
        command = start("pretrain", horrors, *words, "--out", folder)
        assert command.ends() == 0, command.errors
        found[workers] = folder, command.answer, command.errors
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_ends_well_and_names_exactly_the_broken_files(
    runs: dict[int, tuple[Path, str, str]], workers: int
) -> None:
    folder, said, _ = runs[workers]
    broken = read_broken(folder)
    assert set(broken) == {f"train/horrors/{name}" for name in BROKEN}
    assert broken["train/horrors/empty.png"] == "the file is empty (0 bytes)"
    assert "60000 x 60000 pixels are more than the limit" in broken["train/horrors/bomb.png"]
    assert f"{len(BROKEN)} images were left out, as they could not be read: {folder}/broken.txt" in said


def test_the_report_names_them_too(runs: dict[int, tuple[Path, str, str]]) -> None:
    page = (runs[0][0] / "report.html").read_text()
    assert all(f"train/horrors/{name}" in page for name in BROKEN)


def test_workers_change_no_bit(runs: dict[int, tuple[Path, str, str]]) -> None:
    for name in ("metrics.jsonl", "broken.txt", "encoder.safetensors"):
        assert (runs[0][0] / name).read_bytes() == (runs[2][0] / name).read_bytes(), name


def test_nothing_but_our_own_lines_is_said(runs: dict[int, tuple[Path, str, str]]) -> None:
    plan = ("data ", "views ", "encoder ", "objective ", "length ", "machine ", "splits ", "classes ", "left out ")
    starts = (*plan, "step ", "warning: the rate")
    for _, _, errors in runs.values():
        assert [line for line in errors.splitlines() if not line.startswith(starts)] == []


def test_the_broken_files_of_a_folder_are_found_again_after_a_kill(
    start: Start, runs: dict[int, tuple[Path, str, str]], horrors: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = [*WORDS.split(), "--steps", 22, "--evaluate-every", 11, "--checkpoint-every", 2, "--out", folder]
    command = start("pretrain", horrors, *words)
    command.until((folder / "checkpoints" / "step-00000002").exists)
    command.kill()
    rest = start("pretrain", "--resume", folder)
    assert rest.ends() == 0, rest.errors
    for name in ("metrics.jsonl", "broken.txt", "encoder.safetensors"):
        assert (folder / name).read_bytes() == (runs[0][0] / name).read_bytes(), name


def test_embed_and_inspect_tell_of_the_broken_files(
    start: Start, runs: dict[int, tuple[Path, str, str]], horrors: Path, tmp_path: Path
) -> None:
    embedding = start("embed", runs[0][0], horrors, "--out", tmp_path / "features.parquet")
    inspection = start("inspect", horrors)
    assert embedding.ends() == 0, embedding.errors
    assert inspection.ends() == 0, inspection.errors
    for name in BROKEN:
        assert f"left out train/horrors/{name}: " in embedding.errors
        assert f"broken train/horrors/{name}: " in inspection.answer


@pytest.mark.parametrize("good", [20, 150])
def test_too_many_broken_files_are_refused_before_anything_is_trained(start: Start, tmp_path: Path, good: int) -> None:
    data = tmp_path / "photos"
    data.mkdir()
    for i in range(good):
        photo(i).save(data / f"{i}.png")
    for i in range(good // 5):
        (data / f"broken{i}.png").write_bytes(b"no image")
    refused = start("pretrain", data, *WORDS.split(), "--steps", 2, "--out", tmp_path / "run")
    assert refused.ends() == 2
    assert refused.errors.count("\n") == 1
    assert "cannot be read, more than the share --max-broken 0.1" in refused.errors
    assert not (tmp_path / "run").exists()
    words = [*WORDS.replace("--batch 16", "--batch 8").split(), "--steps", 2, "--max-broken", 0.3]
    allowed = start("pretrain", data, *words, "--out", tmp_path / "run")
    assert allowed.ends() == 0, allowed.errors


@pytest.fixture
def large() -> Config:
    """A run over more images than were looked at before it."""
    config = resolve("digits", Options(batch=100, steps=99))
    return replace(config, data=replace(config.data, train_images=100_000))


def test_a_share_just_below_the_limit_is_never_refused_by_chance(large: Config) -> None:
    for steps in range(1, 99):
        broken = dict.fromkeys(range(9 * steps + 5), "")
        check_broken(len(broken), broken, steps, large, Processes())


def test_a_share_above_the_limit_is_refused_while_the_run_goes(large: Config) -> None:
    broken = dict.fromkeys(range(190), "")
    with pytest.raises(InputError, match=r"190 of the 1000 images seen so far .* --max-broken 0\.1"):
        check_broken(len(broken), broken, 10, large, Processes())


def test_where_no_broken_file_is_allowed_the_first_is_refused(large: Config) -> None:
    strict = replace(large, data=replace(large.data, max_broken=0.0))
    check_broken(0, {}, 5, strict, Processes())
    with pytest.raises(InputError, match="1 of the 500 images"):
        check_broken(1, {7: "empty"}, 5, strict, Processes())
