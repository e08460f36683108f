"""Images of many bands and bits, from a folder to an encoder, its features, its pictures and a program elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import simdino as sd
from conftest import Start
from simdino.assembly import build
from simdino.data.sources import open_dataset
from simdino.data.views import centre
from simdino.defaults import KINDS
from simdino.features.extract import prepared
from simdino.train.parallel import Processes

pytestmark = pytest.mark.slow

WORDS = "--batch 16 --steps 4 --image-size 16 --patch-size 8 --local-views 2 --encoder vit_toy --threads 1"
SIDE = 24


def write_bands(folder: Path, *, count: int = 40, classes: int = 2) -> None:
    """TIFF of 5 bands of 16 bits, tiled: a texture for each class, at the same mean and spread."""
    for i in range(count):
        rng, kind = np.random.default_rng(i), i % classes
        noise = rng.integers(0, 60_000, (SIDE, SIDE, 5), dtype=np.uint16)
        values = noise.repeat(2, axis=kind)[:SIDE, :SIDE]  # stripes that lie or stand
        place = folder / f"class{kind}" / f"{i:03d}.tif"
        place.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(place, values, photometric="minisblack", planarconfig="contig", tile=(16, 16))


def write_low_bytes(folder: Path, *, cut: bool, count: int = 120) -> None:
    """Stripes that lie or stand, in the low byte of 16 bits alone; `cut`: in 8 bits, which lose it."""
    for i in range(count):
        rng, kind = np.random.default_rng(i), i % 2
        stripes = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint16).repeat(3, axis=kind)[:SIDE, :SIDE]
        values = np.uint16(0x4000) + stripes
        place = folder / f"class{kind}" / f"{i:03d}.npy"
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, (values >> 8).astype(np.uint8) if cut else values)


@pytest.fixture(scope="module")
def bands(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images in `photos` and a run in `run`."""
    top = tmp_path_factory.mktemp("bands")
    write_bands(top / "photos")
    command = start("pretrain", top / "photos", *WORDS.split(), "--out", top / "run")
    assert command.ends() == 0, command.errors
    assert "5 channels, values 0 to 65,535 as black to white" in command.errors
    return top


def test_inspect_says_what_they_are(start: Start, bands: Path, tmp_path: Path) -> None:
    command = start("inspect", bands / "photos", "--sheet", tmp_path / "views.png")
    assert command.ends() == 0, command.errors
    assert "5 channels" in command.answer and "values 0 to 65,535" in command.answer
    with Image.open(tmp_path / "views.png") as sheet:
        assert sheet.mode == "RGB" and np.asarray(sheet).std() > 20


@pytest.mark.parametrize(
    "words",
    [
        "evaluate knn {run} --k 3", "evaluate linear {run} --epochs 2", "evaluate logistic {run}",
        "evaluate health {run}", "evaluate retrieve {run}", "evaluate finetune {run} --epochs 1",
        "embed {run} {photos} --out {out}/x.parquet", "show attention {run} {photos} --out {out}/a --count 2",
        "show pca {run} {photos} --out {out}/p --count 2", "show masks {run} {photos} --out {out}/m --count 2",
        "show neighbours {run} {photos} --out {out}/n --count 2", "export {run} --to torch --out {out}/t",
        "export {run} --to hf --out {out}/h", "report {run} --out {out}/r.html", "pretrain --resume {run}",
        "pretrain {photos} " + WORDS.replace(" --encoder vit_toy", "") + " --init {run} --out {out}/again",
    ],
)  # fmt: skip
def test_every_command_takes_them(words: str, start: Start, bands: Path, tmp_path: Path) -> None:
    given = words.format(run=bands / "run", photos=bands / "photos", out=tmp_path).split()
    command = start(*given)
    assert command.ends() == 0, command.errors


def test_a_value_above_255_and_its_low_byte_arrive_everywhere(bands: Path) -> None:
    config = sd.recipes.auto(str(bands / "photos"), image_size=24, patch_size=8, local_views=0, batch=2, steps=1)
    training = build(config, Processes())
    source = open_dataset(bands / "photos")
    stored = tifffile.imread(bands / "photos" / source.names[0]).astype(np.float64) / 65535
    read = source.read(0, 5)
    torch.testing.assert_close(read, torch.from_numpy(stored).permute(2, 0, 1).float(), atol=1e-7, rtol=0)
    encoder = training.state.teacher.encoder
    _, images, _ = next(iter(prepared(source, encoder.preprocess)))
    torch.testing.assert_close(images[0], centre(read, encoder.preprocess))
    torch.testing.assert_close(encoder.transform(bands / "photos" / source.names[0]),
                               (read - torch.tensor(config.data.mean).view(-1, 1, 1))
                               / torch.tensor(config.data.std).view(-1, 1, 1))  # fmt: skip
    views, _ = training.loader.batches[0]
    assert views.global_views.dtype == torch.float32 and views.global_views.shape[2] == 5
    levels = (views.global_views * 255).frac().abs()
    assert float(levels.min()) < 1e-3 and 0.3 < float(levels.mean()) < 0.7  # no step of 8 bits


def test_what_differs_in_the_low_byte_alone_is_learned(tmp_path: Path) -> None:
    scores = {}
    for cut in (False, True):
        write_low_bytes(tmp_path / str(cut), cut=cut)
        run = sd.pretrain(
            str(tmp_path / str(cut)), tmp_path / f"run-{cut}", encoder="conv_pico", batch=32, steps=30, image_size=24,
            threads=1, log=lambda _: None,
        )  # fmt: skip
        scores[cut] = sd.evaluate.knn(run.folder, str(tmp_path / str(cut)), k=5, baselines=False).encoder.top1
    assert scores[False] > 85 and scores[True] < 75, scores


def test_a_float_array_of_one_channel_and_photographs_beside_it(start: Start, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    for i in range(24):
        np.save(tmp_path / "maps" / f"{i}.npy", np.random.default_rng(i).normal(size=(SIDE, SIDE)).astype(np.float32))
    command = start("pretrain", tmp_path / "maps", *WORDS.split(), "--out", tmp_path / "run")
    assert command.ends() == 0, command.errors
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["data"]
    assert config["channels"] == 1 and config["values"][0] < -2 and config["values"][1] > 2
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    vectors = sd.load_encoder(tmp_path / "run").embed(tmp_path / "x.png")  # 8 bits stay what they are
    assert torch.isfinite(vectors).all()


@pytest.mark.extra("pydicom")
def test_scans_of_12_bits_from_inspect_to_a_program(start: Start, tmp_path: Path) -> None:
    from dicom_files import dicom

    for i in range(40):
        kind = i % 2
        values = np.random.default_rng(i).integers(0, 4096, (60, 60), dtype=np.uint16)
        values = values.repeat(2, axis=kind)[:60, :60]
        place = tmp_path / "scans" / f"class{kind}" / f"{i}.dcm"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(dicom(values, RescaleSlope=1, RescaleIntercept=-1024))
    run, scans = tmp_path / "run", tmp_path / "scans"
    for words, told in (
        (f"inspect {scans}", "kind      these images may want --kind grey-medical"),
        (f"pretrain {scans} {WORDS} --kind grey-medical --out {run}", "grey, values "),
        (f"evaluate knn {run} --k 3", "encoder"),
        (f"embed {run} {scans} --out {tmp_path}/x.parquet", "40 vectors"),
        (f"show attention {run} {scans} --out {tmp_path}/a --count 2", ""),
        (f"export {run} --to torch --out {tmp_path}/t", "largest difference"),
    ):
        command = start(*words.split())
        assert command.ends() == 0, command.errors
        assert told in command.answer + command.errors, command.answer
    values = json.loads((run / "config.json").read_text())["config"]["data"]["values"]
    assert -1024 <= values[0] < -1000 and 3040 < values[1] <= 3071  # the units of the modality


def test_every_kind_of_images_is_in_the_docs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    assert all(f"| `{kind}` |" in page for kind in KINDS)


def test_a_person_may_give_channels_and_scale(start: Start, bands: Path, tmp_path: Path) -> None:
    command = start("pretrain", bands / "photos", *WORDS.split(), "--values", "0,30000", "--out", tmp_path / "run")
    assert command.ends() == 0, command.errors
    assert "values 0 to 30,000" in command.errors and "are clipped" in command.errors
    wrong = start("pretrain", bands / "photos", *WORDS.split(), "--values", "5,5", "--out", tmp_path / "other")
    assert wrong.ends() == 2 and wrong.errors == "simdino: --values 5,5 must be a lower and a higher number\n"
    three = start("pretrain", bands / "photos", *WORDS.split(), "--channels", 3, "--out", tmp_path / "other")
    assert three.ends() == 2 and "it has 5 channels, and 3 are wanted" in three.errors


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_images_changes_views_alone_and_what_is_given_wins(kind: str, bands: Path) -> None:
    plain = sd.recipes.auto(str(bands / "photos"))
    found = sd.recipes.auto(str(bands / "photos"), kind=kind)
    assert replace(found, views=plain.views) == plain
    assert found.views == replace(plain.views, **KINDS[kind].views)
    assert sd.recipes.auto(str(bands / "photos"), {"views.turns": False}, kind=kind).views.turns is False
    assert KINDS[kind].reason


def test_named_recipes_and_trained_weights_take_the_channels_of_the_images(bands: Path, tmp_path: Path) -> None:
    named = sd.recipes.auto(str(bands / "photos"), recipe="simdino_vits16", batch=8)
    assert named.data.channels == 5 and len(named.data.mean) == 5
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    colours = sd.recipes.auto(str(tmp_path), init=str(bands / "run"), batch=8, steps=1)
    assert colours.data.channels == 3 and len(colours.data.mean) == 3


def test_an_unknown_kind_names_the_nearest_and_inspect_recommends_one(start: Start, tmp_path: Path) -> None:
    for i in range(20):
        values = np.random.default_rng(i).integers(0, 4096, (60, 60, 6), dtype=np.uint16)
        np.save(tmp_path / f"{i}.npy", values)
    command = start("inspect", tmp_path)
    assert command.ends() == 0, command.errors
    assert "kind      these images may want --kind satellite (" in command.answer
    assert "channel 6  mean 0.5" in command.answer
    given = start("inspect", tmp_path, "--kind", "satellite")
    assert given.ends() == 0, given.errors
    assert "may want" not in given.answer
    with pytest.raises(sd.InputError, match=r"unknown --kind 'satelite': .*did you mean satellite\?"):
        sd.recipes.auto(str(tmp_path), kind="satelite")
