"""simdino evaluate retrieve ENCODER: layouts told apart, scores kept, one line for every mistake."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from run_metadata import write_metadata
from simdino.cli import main
from simdino.config import EncoderConfig
from simdino.contracts import Preprocess
from simdino.data.sources import open_dataset
from simdino.evaluate import retrieve
from simdino.evaluate.baselines import random_twin
from simdino.evaluate.retrieval.classes import rank_classes
from simdino.evaluate.retrieval.copies import copies
from simdino.evaluate.retrieval.landmarks import landmarks
from simdino.features.extract import extract
from simdino.models.catalogue import make_encoder
from simdino.models.weights import load_encoder, save_encoder
from simdino.runs.evaluations import FILE

PREPROCESS = Preprocess(resize=8, crop=8, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3)
COLOURS = {"red": (200, 60, 60), "blue": (60, 60, 200)}
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def paint(path: Path, colour: tuple[int, int, int], seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-30, 30, (9, 12, 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a small encoder that was trained on photos/."""
    torch.manual_seed(5)
    folder = tmp_path / "run"
    folder.mkdir()
    encoder = make_encoder(EncoderConfig(name="vit_nano", image_size=8, patch_size=4), PREPROCESS)
    save_encoder(encoder, folder / "encoder.safetensors")
    write_metadata(folder, str(tmp_path / "photos"))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for split, count in (("train", 6), ("val", 3)):
        for name, colour in COLOURS.items():
            for i in range(count):
                paint(tmp_path / "photos" / split / name / f"{i}.png", colour, seed=i + 10 * count)
    return tmp_path / "photos"


@pytest.fixture
def town(tmp_path: Path) -> Path:
    root = tmp_path / "rtown4"
    for i, name in enumerate(["a", "b", "c", "d", "q"]):
        paint(root / "jpg" / f"{name}.jpg", list(COLOURS.values())[i % 2], seed=i)
    truth = {"imlist": list("abcd"), "qimlist": ["q"], "gnd": [{"easy": [0], "hard": [2], "junk": [1], "bbx": []}]}
    (root / "gnd_rtown4.pkl").write_bytes(pickle.dumps(truth))
    return root


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    for i, name in enumerate(("red", "blue")):
        paint(tmp_path / "changed" / "originals" / f"{name}.png", COLOURS[name], seed=i)
        paint(tmp_path / "changed" / "copies" / f"{name}-1.png", COLOURS[name], seed=i + 7)
    return tmp_path / "changed"


def told(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / FILE).read_text().splitlines()]


def test_validation_images_are_queries_to_the_training_images(run: Path, photos: Path) -> None:
    table = retrieve(str(run), k=(1, 12), baselines=True)
    train, validation, trained = open_dataset(photos, "train"), open_dataset(photos, "val"), load_encoder(run)
    assert table.rows == {
        name: [rank_classes(extract(one, train), extract(one, validation), ks=[1, 12])]
        for name, one in (("encoder", trained), ("random initialisation", random_twin(trained)))
    }
    (row,) = told(run)
    assert (row["protocol"], row["data"], row["trained_on"]) == ("retrieve", "photos", True)
    assert row["settings"].items() >= {"layout": "classes", "k": [1, 12], "leave_one_out": False}.items()
    assert row["results"]["encoder"]["map"] == table.encoder.as_dict()["map"]


def test_a_plain_folder_is_scored_by_leaving_one_out_and_broken_pictures_are_named(run: Path, photos: Path) -> None:
    (photos / "train" / "red" / "0.png").write_bytes(b"half")
    said: list[str] = []
    table = retrieve(str(run), str(photos / "train"), k=(1,), leave_one_out=True, log=said.append)
    every = extract(load_encoder(run), open_dataset(photos / "train"))
    assert table.encoder == rank_classes(every, ks=[1])
    assert said == ["left out red/0.png: not an image in any format that Pillow can open"]


def test_layouts_are_told_apart(run: Path, town: Path, changed: Path) -> None:
    trained = load_encoder(run)
    assert retrieve(str(run), str(town), size=12).encoder == landmarks(trained, town, size=12)
    many = retrieve(str(run), str(town), size=12, multiscale=True)
    assert many.encoder == landmarks(trained, town, size=12, multiscale=True)
    assert retrieve(str(run), str(changed), size=16).encoder == copies(trained, changed, size=16)
    assert [tuple(row["settings"][name] for name in ("layout", "size", "multiscale")) for row in told(run)] == [
        ("landmarks", 12, False),
        ("landmarks", 12, True),
        ("copies", 16, False),
    ]


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0), *capsys.readouterr()
    return 0, *capsys.readouterr()


def test_the_command_answers_in_lines_and_in_json(
    run: Path, photos: Path, town: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, "evaluate", "retrieve", run, "--k", 1, "--k", 3, "--baselines")
    assert code == 0
    first, second = out.splitlines()
    assert first.startswith("encoder                 mAP ") and "P@3" in first and "P@5" not in first
    assert second.startswith("random initialisation   mAP ")
    code, out, _ = call(capsys, "evaluate", "retrieve", run, "--data", town, "--json", "--device", "cpu")
    assert code == 0 and json.loads(out)["encoder"]["medium"]["queries"] == 1


def test_mistakes_are_told_in_one_line(
    run: Path, photos: Path, town: Path, changed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paint(tmp_path / "flat" / "a.png", (1, 2, 3))
    paint(tmp_path / "flat" / "b.png", (1, 2, 3))
    for words, said in (
        (("--data", photos, "--layout", "clases"), "did you mean classes?"),
        (("--data", photos, "--k", 13), "--k 13 must be between 1 and the size of the bank, 12 images"),
        (("--data", photos, "--size", 64), "--size has no effect on data of the layout classes"),
        (("--data", town, "--leave-one-out"), "--leave-one-out has no effect on data of the layout landmarks"),
        (("--data", changed, "--multiscale"), "--multiscale has no effect on data of the layout copies"),
        (("--data", photos, "--layout", "landmarks"), "has no gnd_*.pkl"),
        (("--data", photos, "--layout", "copies"), "has no originals and copies"),
        (("--data", tmp_path / "flat", "--leave-one-out"), "needs labels"),
        (("--data", photos / "train" / "red", "--leave-one-out"), "needs labels"),
        (("--data", tmp_path / "nowhere"), "there is no file or folder"),
    ):
        code, out, err = call(capsys, "evaluate", "retrieve", run, *words)
        assert code == 2 and not out and said in err and len(err.splitlines()) == 1, (words, err)
    (town / "jpg" / "c.jpg").unlink()
    code, _, err = call(capsys, "evaluate", "retrieve", run, "--data", town)
    assert code == 2 and "lacks 1 of the 5 pictures" in err and "c.jpg" in err
