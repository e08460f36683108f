"""Values of images from the plan of a run to another folder's features: depth, equal images, transparency, strips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Start
from simdino.data.sources import open_dataset
from simdino.features.extract import embed, extract
from simdino.models.weights import load_encoder

pytestmark = pytest.mark.slow

WORDS = "--batch 8 --steps 3 --image-size 16 --patch-size 8 --local-views 0 --encoder vit_toy --threads 1 --no-labels"
SIDE = 20


def write(folder: Path, top: int, *, times: float = 1.0, count: int = 24) -> None:
    """Grey pictures of values up to `top` in files of 16 bits, all of them `times` as bright."""
    folder.mkdir()
    for i in range(count):
        coarse = np.random.default_rng(i).integers(0, 256, (4, 4), dtype=np.uint8)
        coarse[0, 0] = 255
        grey = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.NEAREST)) / 255
        Image.fromarray((grey * top * times).astype(np.uint16)).save(folder / f"{i:02d}.png")


@pytest.fixture(scope="module")
def run(start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Trained on pictures of 12 bits."""
    top = tmp_path_factory.mktemp("deep")
    write(top / "photos", 4095)
    command = start("pretrain", top / "photos", *WORDS.split(), "--out", top / "run")
    assert command.ends() == 0, command.errors
    return top / "run", command.errors


def test_the_scale_is_said_and_kept_with_the_run_and_the_encoder(run: tuple[Path, str]) -> None:
    folder, said = run
    assert "values 0 to 4,095 as black to white" in said
    config = json.loads((folder / "config.json").read_text())["config"]
    assert config["data"]["values"] == [0, 4095] and 0.4 < config["data"]["mean"][0] < 0.6
    assert load_encoder(folder).preprocess.values == (0, 4095)
    assert load_encoder(folder, image_size=32, channels=3).preprocess.values == (0, 4095)


def test_inspect_says_it_too(start: Start, run: tuple[Path, str]) -> None:
    inspection = start("inspect", run[0].parent / "photos")
    assert inspection.ends() == 0, inspection.errors
    assert "values 0 to 4,095 as black to white" in inspection.answer
    assert "warning" not in inspection.answer


def test_another_folder_is_scaled_as_the_training_images_were(run: tuple[Path, str], tmp_path: Path) -> None:
    encoder = load_encoder(run[0])
    write(tmp_path / "dark", 4095, times=0.2)  # by itself it would be of 10 bits
    dark = open_dataset(tmp_path / "dark")
    trained = dark.with_values((0, 4095))
    assert float(dark.read(0).max()) > 0.75 and float(trained.read(0).max()) == pytest.approx(0.2, abs=1e-3)
    expected = extract(encoder, trained).vectors
    assert torch.equal(embed(encoder, tmp_path / "dark").vectors, expected)
    for i in range(24):  # the same pictures in 8 bits, which no scale touches
        grey = (255 * trained.read(i)[0]).round().to(torch.uint8)
        Image.fromarray(grey.numpy()).save(tmp_path / "dark" / f"{i:02d}.png")
    assert (embed(encoder, tmp_path / "dark").vectors - expected).norm() < 0.05 * expected.norm()


def test_a_resumed_run_has_the_scale_that_it_began_with(start: Start, tmp_path: Path) -> None:
    write(tmp_path / "photos", 4095)
    words = [*WORDS.split(), "--checkpoint-every", 1, "--out", tmp_path / "run"]
    begun = start("pretrain", tmp_path / "photos", *words)
    assert begun.ends() == 0, begun.errors
    whole = (tmp_path / "run" / "encoder.safetensors").read_bytes()
    for path in (tmp_path / "run" / "checkpoints").glob("step-*3"):
        path.rename(tmp_path / path.name)
    resumed = start("pretrain", "--resume", tmp_path / "run")
    assert resumed.ends() == 0, resumed.errors
    assert (tmp_path / "run" / "encoder.safetensors").read_bytes() == whole


def test_equal_images_are_named_before_training_and_by_the_verdict(start: Start, tmp_path: Path) -> None:
    (tmp_path / "same").mkdir()
    for i in range(24):
        Image.new("RGB", (SIDE, SIDE), (90, 80, 70)).save(tmp_path / "same" / f"{i:02d}.png")
    words = [word if word != "3" else "40" for word in WORDS.split()]
    command = start("pretrain", tmp_path / "same", *words, "--out", tmp_path / "run")
    assert command.ends() in (0, 1), command.errors
    assert "images looked at are alike" in command.errors.split("step ")[0]
    assert "Raise --rho" not in command.answer + command.errors


def test_transparency_is_said_before_training(start: Start, tmp_path: Path) -> None:
    (tmp_path / "four").mkdir()
    for i in range(16):
        bands = np.random.default_rng(i).integers(0, 200, (SIDE, SIDE, 4), dtype=np.uint8)
        Image.fromarray(bands).save(tmp_path / "four" / f"{i:02d}.tif")
    inspection = start("inspect", tmp_path / "four")
    assert inspection.ends() == 0, inspection.errors
    assert "are partly transparent and lie on white, first " in inspection.answer
    planned = start("pretrain", tmp_path / "four", *WORDS.split(), "--out", tmp_path / "run")
    assert planned.ends() == 0, planned.errors
    assert "are partly transparent and lie on white, first " in planned.errors
