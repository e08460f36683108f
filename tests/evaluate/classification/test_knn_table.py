"""The k-NN table of a saved encoder on a folder, and the table of features on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from run_metadata import write_metadata
from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.data.sources import DataPath, open_dataset
from simdino.evaluate import knn
from simdino.evaluate.baselines import random_twin
from simdino.evaluate.classification.neighbours import knn_each
from simdino.features.extract import extract, pixel_size, pixels
from simdino.models.catalogue import make_encoder
from simdino.models.weights import load_encoder, save_encoder
from simdino.runs.evaluations import FILE, trained_on

pytestmark = pytest.mark.slow

SETTINGS = {"temperature": 0.07, "leave_one_out": False, "precision": "float32", "reduced": False}
PREPROCESS = Preprocess(resize=8, crop=8, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a small encoder."""
    torch.manual_seed(5)
    folder = tmp_path / "run"
    folder.mkdir()
    save_encoder(
        make_encoder(EncoderConfig(name="vit_nano", image_size=8, patch_size=4), PREPROCESS),
        folder / "encoder.safetensors",
    )
    return folder


def write_images(folder: Path, count: int, colour: tuple[int, int, int], seed: int) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for i in range(count):
        image = (np.array(colour) + random.integers(-30, 30, (9, 12, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{i}.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Red and blue images: 12 of each for training, 4 held out."""
    root = tmp_path / "photos"
    for split, count, seed in (("train", 12, 0), ("val", 4, 1)):
        write_images(root / split / "red", count, (200, 60, 60), seed)
        write_images(root / split / "blue", count, (60, 60, 200), seed + 2)
    return root


def test_the_table_holds_the_encoder_its_random_twin_and_raw_pixels(run: Path, photos: Path) -> None:
    table = knn(str(run), str(photos), k=(5, 2))
    trained, train, validation = load_encoder(run), open_dataset(photos, "train"), open_dataset(photos, "val")
    twin = random_twin(trained)
    assert table.rows == {
        "encoder": knn_each(extract(trained, train), extract(trained, validation), ks=[5, 2]),
        "random initialisation": knn_each(extract(twin, train), extract(twin, validation), ks=[5, 2]),
        "raw pixels": knn_each(
            pixels(train, PREPROCESS, size=pixel_size(train)),
            pixels(validation, PREPROCESS, size=pixel_size(train)),
            ks=[5, 2],
        ),
    }
    assert [(result.k, result.bank, result.queries) for result in table.rows["encoder"]] == [(5, 24, 8), (2, 24, 8)]
    assert table.rows["raw pixels"][0].top1 == 100  # red and blue


def test_without_baselines_the_table_holds_the_encoder_alone(run: Path, photos: Path) -> None:
    with_them = knn(str(run), str(photos), k=5)
    assert knn(str(run), str(photos), k=5, baselines=False).rows == {"encoder": with_them.rows["encoder"]}


def test_the_data_are_those_of_the_run_unless_given(run: Path, photos: Path) -> None:
    write_metadata(run, str(photos))
    expected = knn(str(run), str(photos), k=3, baselines=False)
    assert knn(str(run), None, k=3, baselines=False) == expected
    assert knn(str(run / "encoder.safetensors"), None, k=3, baselines=False) == expected
    assert trained_on(run) == trained_on(run / "encoder.safetensors") == DataPath(root=str(photos))


def test_an_encoder_outside_a_run_needs_its_data_given(run: Path) -> None:
    with pytest.raises(InputError, match="--data"):
        knn(str(run), None)
    (run / "config.json").write_text('{"model_type": "dinov2"}')  # a folder of transformers has one too
    with pytest.raises(InputError, match="--data DIR"):
        knn(str(run), None)


def test_no_validation_images_are_refused(run: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "few" / "red", 1, (200, 60, 60), 0)
    with pytest.raises(InputError, match="validation"):
        knn(str(run), str(tmp_path / "few"))


def test_data_without_labels_are_refused(run: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "plain" / "train", 5, (200, 60, 60), 0)
    write_images(tmp_path / "plain" / "val", 5, (200, 60, 60), 1)
    with pytest.raises(InputError, match="labels"):
        knn(str(run), str(tmp_path / "plain"))


def test_more_neighbours_than_training_images_are_refused(run: Path, photos: Path) -> None:
    with pytest.raises(InputError, match=r"--k 25 .*24"):
        knn(str(run), str(photos), k=25)


def told(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / FILE).read_text().splitlines()]


def test_the_scores_of_a_run_are_kept_and_say_what_it_was_trained_on(run: Path, photos: Path, tmp_path: Path) -> None:
    statistics = {"name": "photos", "train_images": 24, "validation_images": 8}
    write_metadata(run, str(photos), **statistics)
    other = shutil.copytree(photos, tmp_path / "others" / "photos")  # of the same name and numbers
    tables = [knn(str(run), where, k=5) for where in (None, str(other))]
    knn(str(run), f"{photos}/", k=5)  # the same data: replaces the first line
    elsewhere, own = told(run)
    for row, table, where in ((own, tables[0], photos), (elsewhere, tables[1], other)):
        assert row["protocol"] == "knn"
        assert (row["data"], row["root"], row["trained_on"]) == (where.name, str(where), where == photos)
        assert row["settings"] == SETTINGS | {"k": 5}
        assert row["results"] == table.as_dict()


def test_one_labelled_folder_is_scored_by_leaving_one_out(run: Path, tmp_path: Path) -> None:
    for name, colour in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
        write_images(tmp_path / "photos" / name, 6, colour, 3)
    write_metadata(run, "elsewhere")
    table = knn(str(run), str(tmp_path / "photos"), k=(1, 5), leave_one_out=True)
    every = extract(load_encoder(run), open_dataset(tmp_path / "photos", "all"))
    assert table.rows["encoder"] == knn_each(every, None, ks=[1, 5])
    assert (table.encoder.bank, table.encoder.queries) == (11, 12)
    assert [row["settings"] for row in told(run)] == [SETTINGS | {"k": k, "leave_one_out": True} for k in (1, 5)]


def test_one_class_is_refused(run: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_images(tmp_path / "photos" / split / "red", 6, (200, 60, 60), 3)
    with pytest.raises(InputError, match="knn needs labels of at least two classes"):
        knn(str(run), str(tmp_path / "photos"))


def test_data_that_moved_are_still_what_the_run_was_trained_on(run: Path, photos: Path, tmp_path: Path) -> None:
    statistics = {"name": "photos", "train_images": 24, "validation_images": 8, "classes": 2}
    write_metadata(run, "photos", **statistics)
    moved = photos.rename(tmp_path / "run" / "photos")
    knn(str(run), str(moved), k=5, baselines=False)
    assert told(run)[0]["trained_on"] is True


def test_nothing_is_kept_outside_a_run_folder(run: Path, photos: Path) -> None:
    for encoder in (run, run / "encoder.safetensors"):  # no configuration of ours beside it
        knn(str(encoder), str(photos), k=5, baselines=False)
    assert not (run / FILE).exists()


def test_a_run_folder_that_cannot_be_written_to_costs_a_line_not_the_score(run: Path, photos: Path) -> None:
    write_metadata(run, str(photos))
    (run / FILE).mkdir()
    said: list[str] = []
    assert knn(str(run), None, k=5, log=said.append) == knn(str(run), None, k=5)
    assert said == [f"the scores are not kept: {run / FILE} cannot be written: Is a directory"]
