"""Labels are given where validation images can be scored by them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from simdino.data.sources import open_dataset
from simdino.data.splits import in_validation


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def test_a_validation_folder_without_the_classes_of_training_has_no_labels(tmp_path: Path) -> None:
    for name in ("train/cat/1", "train/cat/2", "train/dog/3", "train/dog/4", "test/5", "test/6"):
        write(tmp_path / f"{name}.png")
    train, val = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert (len(train), len(val)) == (4, 2)
    assert train.classes == ("cat", "dog") and train.labels is not None and train.labels.tolist() == [0, 0, 1, 1]
    assert val.labels is None and val.classes == ()
    assert open_dataset(tmp_path).classes == (".", "cat", "dog")


def test_one_class_in_common_is_enough(tmp_path: Path) -> None:
    for name in ("train/cat/1", "train/cat/2", "train/dog/3", "test/cat/4", "test/5"):
        write(tmp_path / f"{name}.png")
    assert open_dataset(tmp_path, "train").labels is not None
    assert open_dataset(tmp_path, "val").labels is not None


def test_without_a_validation_image_labels_stay(tmp_path: Path) -> None:
    names = [f"{folder}/{i}.png" for folder in "ab" for i in range(5)]
    for name in names:
        if not in_validation(name):
            write(tmp_path / name)
    assert len(open_dataset(tmp_path, "val")) == 0
    assert open_dataset(tmp_path, "train").labels is not None
