"""What is written: the umask's mode, the old content or the new, one line where the system refuses, and refused places
before the work."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from full_disk import nearly_full
from simdino.cli import main
from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.evaluate.classification.classifier import Classifier, save_classifier
from simdino.features.readout import Layers
from simdino.files import check_file, check_folder, write_aside, written
from simdino.models.catalogue import make_encoder
from simdino.models.weights import save_encoder

NOISE = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)


def save_torch(path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"a": torch.zeros(100_000)}, file)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "bytes": lambda path: path.write_bytes(bytes(400_000)),
    "text": lambda path: path.write_text("x" * 400_000),
    "torch": save_torch,
    "safetensors": lambda path: save_file({"a": torch.zeros(100_000)}, path),
    "parquet": lambda path: pq.write_table(pa.table({"a": NOISE.flatten()}), path),
    "png": lambda path: Image.fromarray(NOISE).save(path, "PNG"),
}
EVERY_WRITER = pytest.mark.parametrize("writer", WRITERS)


@contextmanager
def mask(bits: int) -> Iterator[None]:
    old = os.umask(bits)
    try:
        yield
    finally:
        os.umask(old)


@EVERY_WRITER
@pytest.mark.parametrize("bits", [0o022, 0o002, 0o077])
def test_a_file_has_the_umasks_mode(writer: str, bits: int, tmp_path: Path) -> None:
    with mask(bits), written(tmp_path / "new" / "file") as aside:
        WRITERS[writer](aside)
    assert stat.S_IMODE((tmp_path / "new" / "file").stat().st_mode) == 0o666 & ~bits
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_encoders_and_classifiers_have_the_umasks_mode(tmp_path: Path) -> None:
    preprocess = Preprocess(resize=16, crop=16, channels=1, mean=(0.5,), std=(0.5,))
    encoder = make_encoder(EncoderConfig(name="vit_pico", image_size=16, patch_size=8), preprocess)
    layers = Layers(blocks=1, avgpool=False)
    head = Classifier(
        encoder=encoder, layers=layers, classes=("a", "b"), weight=torch.zeros(2, 256), bias=torch.zeros(2)
    )
    with mask(0o022):
        save_encoder(encoder, tmp_path / "encoder.safetensors")
        save_classifier(head, tmp_path / "classifier.safetensors")
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o644}


@EVERY_WRITER
@pytest.mark.parametrize("option", ["--out", None])
def test_a_full_disk_is_one_line_and_the_old_content_stays(writer: str, option: str | None, tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_aside(file, b"old")
    kind = OSError if option is None else InputError
    with nearly_full(), pytest.raises(kind) as error, written(file, option=option) as aside:
        WRITERS[writer](aside)
    named = f"{file}" if option is None else f"--out {file}"
    assert str(error.value) == f"{named} cannot be written: File too large"
    assert file.read_bytes() == b"old" and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_other_errors_pass_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), written(tmp_path / "file"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_link_leads_to_what_is_written_and_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/file")
    write_aside(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "file").read_bytes() == b"new"


def test_the_longest_name_that_a_file_may_have_is_written(tmp_path: Path) -> None:
    file = tmp_path / (251 * "x" + ".csv")
    check_file(file, option="--out")
    write_aside(file, b"new")
    assert file.read_bytes() == b"new"


def test_a_folder_that_vanished_is_made_again(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b", option="--out")
    (tmp_path / "a" / "b").rmdir()
    write_aside(tmp_path / "a" / "b" / "file", b"new")
    assert (tmp_path / "a" / "b" / "file").exists()


# --- every command ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pictures of two classes, an encoder and a classifier, pictures with masks, and a file."""
    folder = tmp_path_factory.mktemp("places")
    for i in range(16):
        for split in ("train", "val"):
            place = folder / "pictures" / split / "ab"[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(NOISE[i : i + 16, :16]).save(place / f"{i}.png")
        for kind, content in (("images", NOISE[i : i + 16, :16]), ("masks", NOISE[:16, i : i + 16, 0] % 2)):
            place = folder / "segmentation" / kind / ("train" if i % 4 else "val")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(content)).save(place / f"{i}.png")
    preprocess = Preprocess(resize=16, crop=16, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    encoder = make_encoder(EncoderConfig(name="vit_pico", image_size=16, patch_size=8), preprocess)
    save_encoder(encoder, folder / "encoder.safetensors")
    weight, bias = torch.zeros(2, 256), torch.zeros(2)
    layers = Layers(blocks=1, avgpool=False)
    head = Classifier(encoder=encoder, layers=layers, classes=("a", "b"), weight=weight, bias=bias)
    save_classifier(head, folder / "classifier.safetensors")
    (folder / "file").write_text("no folder")
    return {"folder": folder}


DATA, ENCODER = "{folder}/pictures", "{folder}/encoder.safetensors"
TO_A_FILE = {  # the words of a command, the option that names its file, how the name must end
    "embed": (f"embed {ENCODER} {DATA}", "--out", ".parquet"),
    "classify": (f"classify {{folder}}/classifier.safetensors {DATA}", "--out", ""),
    "linear": (f"evaluate linear {ENCODER} --data {DATA} --steps 1", "--out", ".safetensors"),
    "logistic": (f"evaluate logistic {ENCODER} --data {DATA} --grid 1", "--out", ".safetensors"),
    "finetune": (f"evaluate finetune {ENCODER} --data {DATA} --steps 1", "--out", ".safetensors"),
    "discover": (f"evaluate discover {ENCODER} --data {DATA} --method tokencut --limit 1", "--out", ""),
    "inspect": (f"inspect {DATA}", "--sheet", ".png"),
}
TO_A_FOLDER = {
    "pretrain": (f"pretrain {DATA} --steps 1 --batch 2 --encoder vit_pico", "--out"),
    "segment": (f"evaluate segment {ENCODER} --data {{folder}}/segmentation --steps 1 --batch 2 --size 16", "--out"),
    "attention": (f"show attention {ENCODER} {DATA}", "--out"),
    "pca": (f"show pca {ENCODER} {DATA}", "--out"),
    "masks": (f"show masks {ENCODER} {DATA}", "--out"),
    "neighbours": (f"show neighbours {ENCODER} {DATA} --bank {DATA}", "--out"),
}
NO_FILES = {
    "too long": ("{tmp}/" + 300 * "x", "File name too long"),
    "a folder": ("{tmp}/folder", "it is a folder"),
    "below a file": ("{folder}/file/x", "(Not a directory|File exists)"),
    "/proc": ("/proc/nothing/x", "No such file or directory"),
    "in /proc": ("/proc/x", "No such file or directory"),
    "a device": ("{tmp}/device", "it is not an ordinary file"),
}
NO_FOLDERS = {
    "too long": ("{tmp}/" + 300 * "x", "File name too long"),
    "a file": ("{folder}/file", "(Not a directory|File exists)"),
    "below a file": ("{folder}/file/x", "(Not a directory|File exists)"),
    "/proc": ("/proc/nothing/x", "No such file or directory"),
    "in /proc": ("/proc/x", "No such file or directory"),
    "a device": ("/dev/full", "(Not a directory|File exists)"),
}


def refused(words: list[str], option: str, place: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, option, place])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == ""
    (line,) = [line for line in said.err.splitlines() if line.startswith("simdino:")]
    assert line.startswith(f"simdino: {option} {place} cannot be written: "), line
    assert re.search(why, line), line


def needing(command: str) -> Any:
    """A command with the mark of the extra that it writes by."""
    return pytest.param(command, marks=pytest.mark.extra("pycocotools") if command == "discover" else ())


@pytest.mark.parametrize("place", NO_FILES)
@pytest.mark.parametrize("command", [needing(name) for name in TO_A_FILE])
def test_no_command_works_for_a_file_that_it_cannot_write(
    command: str, place: str, here: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, option, end = TO_A_FILE[command]
    where, why = NO_FILES[place]
    where = where.format(tmp=tmp_path, **here) + end
    (tmp_path / f"folder{end}").mkdir()
    (tmp_path / f"device{end}").symlink_to("/dev/full")
    refused(words.format(**here).split(), option, where, why, capsys)
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@pytest.mark.parametrize("place", NO_FOLDERS)
@pytest.mark.parametrize("command", TO_A_FOLDER)
def test_no_command_works_for_a_folder_that_it_cannot_write_to(
    command: str, place: str, here: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, option = TO_A_FOLDER[command]
    where, why = NO_FOLDERS[place]
    refused(words.format(**here).split(), option, where.format(tmp=tmp_path, **here), why, capsys)


def test_a_run_whose_disk_is_full_ends_in_one_line(
    here: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"{TO_A_FOLDER['pretrain'][0]} --out {tmp_path}/run".format(**here).split()
    with nearly_full(), pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "Traceback" not in said
    assert said.splitlines()[-1].startswith(f"simdino: {tmp_path}/run/")
    assert said.endswith(" cannot be written: File too large\n")
