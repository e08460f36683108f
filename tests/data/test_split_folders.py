"""Which folders are splits, which name a class, and what is said of it: only names, no image is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from simdino.contracts import InputError
from simdino.data.sources import DataPath, open_dataset
from simdino.data.splits import Layout, folder_of, looks_like_split


def laid_out(*folders: str, **asked: object) -> Layout:
    return Layout.of(dict.fromkeys(folders, 10), DataPath(root="photos", **asked))  # type: ignore[arg-type]


def classes(layout: Layout, folders: Iterable[str]) -> list[str]:
    return [layout.class_of(folder) for folder in folders]


def write(root: Path, names: Iterable[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)


def warnings_of(root: Path) -> str:
    contents = open_dataset(root).contents
    assert contents is not None
    return "\n".join(contents.warnings)


@pytest.mark.parametrize(
    ("folders", "train", "val", "others"),
    [
        (["train/cat", "val/cat"], "train", "val", ()),
        (["Train/cat", "VALID/cat", "test/cat"], "Train", "VALID", ("test",)),
        (["train2017", "val2017"], "train2017", "val2017", ()),
        (["training/0", "training/1", "testing/0"], "training", "testing", ()),
        (["a/b/c/d/train/x", "a/b/c/d/val/x", "a"], "a/b/c/d/train", "a/b/c/d/val", ()),  # an image beside a wrapper
        (["seg_train/seg_train/sea", "seg_test/seg_test/sea", "seg_pred"], "seg_train", "seg_test", ()),
        (["images-train", "images-val", "readme"], "images-train", "images-val", ()),
        (["x/trainset", "x/testset"], "x/trainset", "x/testset", ()),
    ],
)
def test_partners_are_splits(folders: list[str], train: str, val: str, others: tuple[str, ...]) -> None:
    layout = laid_out(*folders)
    assert (layout.train, layout.val, layout.others) == (train, val, others)


@pytest.mark.parametrize(
    "folders",
    [
        ["valid", "invalid"],
        ["test", "control"],
        ["train", "car", "bus"],
        ["train2014", "val2017"],  # not of the same set
        ["train", "train2"],
        ["val", "test"],
        ["strain/a", "eval/a"],
        ["test"],
        ["train/cat", "train/dog"],
    ],
)
def test_without_a_partner_a_folder_is_no_split(folders: list[str]) -> None:
    layout = laid_out(*folders)
    assert layout.train is None and layout.val is None
    assert {layout.split_of(folder) for folder in folders} == {"either"}


def test_of_two_pairs_the_one_with_more_images_is_taken() -> None:
    layout = Layout.of({"train2014": 80, "val2014": 40, "train2017": 110, "val2017": 5})
    assert (layout.train, layout.val, layout.others) == ("train2017", "val2017", ("train2014", "val2014"))
    assert layout.split_of("train2014") is None


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["cat/2020", "cat/2021", "dog/2020"], ["cat", "cat", "dog"]),
        (["photos/cat", "photos/dog"], ["cat", "dog"]),  # below a folder that holds all of them
        (["a/alley", "c/church/indoor", "l/library/indoor"], ["alley", "church/indoor", "library/indoor"]),
        (["A/apple", "B/banana/ripe"], ["apple", "banana/ripe"]),
        (["a/cat", "b/dog"], ["a", "b"]),  # letters that are no first letters
        (["cat", ""], ["cat", "."]),
        (["one/two/cat", "one/two/dog/old", "one"], ["cat", "dog", "."]),
        (["train/n01/images", "train/n02/images", "val/images"], ["n01", "n02", "images"]),
        (["train/images/cat", "train/images/dog", "val/images/cat"], ["cat", "dog", "cat"]),
        (["train/good", "test/good", "test/broken"], ["good", "good", "broken"]),  # one class is no wrapper
        (["seg_train/seg_train/sea", "seg_train/seg_train/ice", "seg_test/seg_test/sea"], ["sea", "ice", "sea"]),
        (["train/a/attic", "train/b/beach", "val/b/beach"], ["attic", "beach", "beach"]),
        (["train/cat/x", "train/dog/x", "val/cat/x", "test/dog/x"], ["cat", "dog", "cat", "dog"]),
    ],
)
def test_the_class_is_the_first_folder_below_the_split(folders: list[str], expected: list[str]) -> None:
    assert classes(laid_out(*folders), folders) == expected


def test_class_depth_counts_folders_from_the_split_or_from_the_image() -> None:
    folders = ["train/2020/ant/a", "train/2021/ant/b", "train/2021", "val/2020/bee"]
    assert classes(laid_out(*folders), folders) == ["2020", "2021", "2021", "2020"]
    assert classes(laid_out(*folders, class_depth=2), folders) == ["2020/ant", "2021/ant", "2021", "2020/bee"]
    assert classes(laid_out(*folders, class_depth=-1), folders) == ["a", "b", "2021", "bee"]
    assert classes(laid_out(*folders, class_depth=-2), folders) == ["ant", "ant", "2021", "2020"]
    with pytest.raises(InputError, match="--class-depth 0 names no folder"):
        laid_out(*folders, class_depth=0)


def test_asked_folders_are_the_splits() -> None:
    layout = laid_out("data_256/a/attic", "data_256/b/bath", "val_256", val="val_256/")
    assert (layout.train, layout.val) == (None, "val_256")
    assert layout.class_of("data_256/b/bath") == "bath" and layout.split_of("data_256/b/bath") == "train"
    layout = laid_out("train/cat", "val/cat", "more/cat", train="more")
    assert [layout.split_of(name) for name in ("train/cat", "val/cat", "more/cat")] == [None, None, "either"]
    layout = laid_out("x/one", "x/one/two", train="x/one", val="x/one/two")
    assert (layout.split_of("x/one"), layout.split_of("x/one/two")) == ("train", "val")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"train": "trian"}, "--train trian: 'photos' has no folder of this name with images; it has train/, val/"),
        ({"val": "val/dog"}, "--val val/dog"),
        ({"val": "."}, "--val ."),
        ({"train": "val", "val": "val"}, "nothing would be left"),
        ({"train": "val/cat", "val": "val"}, "nothing would be left"),
    ],
)
def test_asked_folders_that_are_none(asked: dict[str, str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        laid_out("train/cat", "val/cat", **asked)
    assert words in str(caught.value)


def test_a_folder_may_be_named_as_it_lies_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "set", [f"{folder}/{i}.png" for folder in ("old", "new") for i in range(3)])
    monkeypatch.chdir(tmp_path)
    for val in ("new", "set/new/", str(tmp_path / "set" / "new")):
        assert list(open_dataset(DataPath(root="set", val=val), "val").names) == [f"new/{i}.png" for i in range(3)]


@pytest.mark.parametrize("name", ["train", "Val2017", "val_256", "test-images", "img_train", "validation"])
def test_names_that_look_like_splits(name: str) -> None:
    assert looks_like_split(name)


@pytest.mark.parametrize("name", ["strain", "invalid", "test-tube", "contest", "crash test", "training shoes", "2017"])
def test_names_that_do_not(name: str) -> None:
    assert not looks_like_split(name)


def test_what_was_guessed_is_said(tmp_path: Path) -> None:
    write(tmp_path / "a", [f"{folder}/{i}.png" for folder in ("valid", "invalid") for i in range(6)])
    assert "valid/ (6 images) looks like a split and was not taken for one" in warnings_of(tmp_path / "a")
    write(tmp_path / "b", [f"{c}/{s}/{i}.png" for c in ("cat", "dog") for s in ("train", "test") for i in range(3)])
    assert "cat/test/ (3 images), cat/train/ (3 images), dog/test/ (3 images)" in warnings_of(tmp_path / "b")
    write(
        tmp_path / "c", [f"{s}/{c}/{i}.png" for c in ("cat", "dog") for s in ("train", "val", "test") for i in (1, 2)]
    )
    contents = open_dataset(tmp_path / "c", "train").contents
    assert contents is not None and contents.warnings == ()
    assert contents.lines() == [
        "splits    train/ is for training, val/ for validation; left out: 4 in test/",
        "classes   named by the first folder below each split: cat, dog",
    ]
    write(tmp_path / "d", [f"{c}/{year}/{i}.png" for c in ("cat", "dog") for year in (2020, 2021) for i in range(3)])
    contents = open_dataset(tmp_path / "d").contents
    assert contents is not None and "(2020, 2021): --class-depth 2 or -1 counts them" in contents.classes


def test_labels_follow_the_asked_depth(tmp_path: Path) -> None:
    names = [f"{year}/{c}/{i}.png" for year in (2020, 2021) for c in ("ant", "bee") for i in range(3)]
    write(tmp_path, names)
    assert open_dataset(tmp_path).classes == ("2020", "2021")
    source = open_dataset(DataPath(root=str(tmp_path), class_depth=-1))
    assert source.labels is not None and source.classes == ("ant", "bee")
    assert Counter(source.labels.tolist()) == {0: 6, 1: 6}
    assert [source.classes[i] for i in source.labels] == [folder_of(name).split("/")[1] for name in source.names]


def test_built_in_sets_have_splits_of_their_own() -> None:
    with pytest.raises(InputError, match="'digits' has splits and classes of its own"):
        open_dataset(DataPath(root="digits", class_depth=2))
