"""One picture, one table of features, classes of one side only: what people try first, said or done."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from simdino.cli import main
from simdino.config import EncoderConfig
from simdino.contracts import Preprocess
from simdino.data.base import ArraySource
from simdino.data.sources import open_dataset
from simdino.evaluate.classification.classifier import Classifier, save_classifier
from simdino.evaluate.labels import warn_of_unseen
from simdino.features.extract import embed
from simdino.features.readout import Layers
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder
from simdino.models.weights import load_encoder, save_encoder

pytestmark = pytest.mark.usefixtures("one_thread")
PREPROCESS = Preprocess(resize=8, crop=8, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3)


def encoder() -> Encoder:
    torch.manual_seed(5)
    return make_encoder(EncoderConfig(name="vit_nano", image_size=8, patch_size=4), PREPROCESS).eval()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.safetensors"
    save_encoder(encoder(), path)
    return path


def photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 12, 3), np.uint8)).save(path)
    return path


def photos(root: Path, counts: dict[str, int]) -> Path:
    """So many images in each folder, such as train/cat."""
    for name, count in counts.items():
        for i in range(count):
            photo(root / name / f"{i}.png", seed=i)
    return root


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["f.csv", "F.CSV", "f.parquet"])
def test_features_are_written_as_the_ending_says(weights: Path, tmp_path: Path, name: str) -> None:
    root = photos(tmp_path / "photos", {"cat": 2, "dog": 2})
    main(["embed", str(weights), str(root), "--out", str(tmp_path / name)])
    expected = embed(load_encoder(weights), root)
    if name.endswith("parquet"):
        table = pq.read_table(tmp_path / name)
        paths, labels, vectors = (table[column].to_pylist() for column in ("path", "label", "vector"))
    else:
        rows = list(csv.reader((tmp_path / name).read_text().splitlines()))
        assert rows[0][:4] == ["path", "label", "v0", "v1"]
        paths, labels, vectors = zip(*((row[0], row[1], list(map(float, row[2:]))) for row in rows[1:]), strict=True)
    assert list(paths) == expected.names and list(labels) == ["cat", "cat", "dog", "dog"]
    assert np.array_equal(np.array(vectors, dtype=np.float32), expected.vectors.numpy())


@pytest.mark.parametrize("name", ["f.npy", "f", "f.csv.gz", "f.xlsx"])
def test_other_endings_are_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    line = refused(capsys, "embed", tmp_path / "no encoder", tmp_path, "--out", tmp_path / name)
    assert f"{name} must end in .parquet or .csv" in line


def test_a_single_picture_is_embedded(weights: Path, tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", {"cat": 2})
    main(["embed", str(weights), str(root / "cat" / "1.png"), "--out", str(tmp_path / "one.parquet")])
    table = pq.read_table(tmp_path / "one.parquet")
    assert table["path"].to_pylist() == ["1.png"] and table["label"].to_pylist() == [None]
    both = embed(load_encoder(weights), root).vectors
    torch.testing.assert_close(torch.tensor(table["vector"].to_pylist()), both[1:], atol=1e-5, rtol=1e-5)


def test_a_single_picture_is_classified(tmp_path: Path) -> None:
    model = encoder()
    head = Classifier(
        encoder=model, layers=Layers(), classes=("cat", "dog"), weight=torch.zeros(2, 192),
        bias=torch.tensor([0.0, 1.0]),
    )  # fmt: skip
    save_classifier(head, tmp_path / "head.safetensors")
    picture = photo(tmp_path / "it is a dog.PNG")
    main(["classify", str(tmp_path / "head.safetensors"), str(picture), "--out", str(tmp_path / "found.csv")])
    (row,) = list(csv.DictReader((tmp_path / "found.csv").read_text().splitlines()))
    assert (row["path"], row["class"]) == ("it is a dog.PNG", "dog")


def test_a_single_file_that_is_no_picture_is_still_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.doc").write_text("")
    assert "no file of a known kind" in refused(capsys, "inspect", tmp_path / "a.doc")


def test_one_image_to_train_on_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "photos", {"train/cat": 1, "val/cat": 1})
    line = refused(capsys, "pretrain", root, "--out", tmp_path / "run")
    assert "has one training image" in line and "--batch" not in line


def test_knn_says_which_validation_classes_have_no_training_image(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(tmp_path / "photos", {"train/cat": 3, "train/dog": 3, "val/cat": 2, "val/emu": 3})
    main(["evaluate", "knn", str(weights), "--data", str(root), "--k", "2", "--no-baselines"])
    captured = capsys.readouterr()
    assert "3 of 5 images count as wrong, as 1 of the classes have no training image: emu" in captured.err
    main(["evaluate", "knn", str(weights), "--data", str(root), "--k", "2", "--no-baselines", "--leave-one-out"])
    assert "count as wrong" not in capsys.readouterr().err


def labelled(labels: list[int]) -> ArraySource:
    names, classes = list(map(str, range(len(labels)))), [f"c{i}" for i in range(9)]
    return ArraySource("a", np.zeros((len(labels), 4, 4), np.uint8), names, np.array(labels), classes)


def test_unseen_classes_are_counted_and_a_few_are_named() -> None:
    said: list[str] = []
    warn_of_unseen(labelled([0, 0, 1]), labelled([0, 1, 1]), said.append)
    assert not said
    warn_of_unseen(labelled([0]), labelled([0, 2, 2, 3, 4, 5, 6, 7]), said.append)
    (line,) = said
    assert "7 of 8 images" in line and "6 of the classes" in line and line.endswith("c2, c3, c4, c5, c6, ...")


def test_without_the_one_itself_a_class_of_one_image_has_none() -> None:
    said: list[str] = []
    source = labelled([0, 0, 1, 2, 2])
    warn_of_unseen(source, source, said.append)
    (line,) = said
    assert "1 of 5 images" in line and line.endswith("no other image: c1")


def test_logistic_regression_says_so_too(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "photos", {"train/cat": 3, "train/dog": 3, "val/cat": 2, "val/emu": 1})
    assert open_dataset(root, "train").classes == ("cat", "dog", "emu")
    main(["evaluate", "logistic", str(weights), "--data", str(root), "--grid", "1"])
    assert "1 of 3 images count as wrong" in capsys.readouterr().err
