"""A folder's listing is what a plain walk finds, its names take little memory, and its index notices what it says."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from simdino.data import index, listing
from simdino.data.names import Coded, Names, folders_in, selected
from simdino.data.sources import open_dataset, open_splits
from simdino.data.stores import FolderStore

NAMES = ["a/1.jpg", "a/22.jpg", "top.jpg", "b/c/ß.jpg", "b/\udcff.jpg", "a/3.jpg"]


def plainly(root: Path) -> list[str]:
    """Every file that ends like a JPEG, in the order of their names."""
    return sorted(os.path.relpath(Path(at) / name, root) for at, _, names in os.walk(root) for name in names)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images in folders that lie side by side, in one another and at the top, whose names sort otherwise than paths."""
    root = tmp_path / "photos"
    for name in (
        "a/1.jpg",
        "a-b/1.jpg",
        "a/b/1.jpg",
        "a/b.jpg",
        "a/c/2.jpg",
        "z.jpg",
        "b/ß.jpg",
        "b/10.jpg",
        "b/9.jpg",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * len(name))
    return root


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Indices are kept here, of small folders too and of those that changed a moment ago."""
    monkeypatch.setenv(index.VARIABLE, str(tmp_path / "indices"))
    monkeypatch.setattr(index, "SETTLED", 0)
    monkeypatch.setattr(listing, "SMALL", 1)
    return tmp_path / "indices"


def test_names_are_a_sequence_of_the_texts_they_were_given() -> None:
    names = Names.of(NAMES)
    assert (
        names == NAMES and list(names) == NAMES and len(names) == 6 and names != NAMES[:5] and names != [*NAMES[:5], ""]
    )
    assert [names[i] for i in range(-6, 6)] == NAMES * 2
    assert names[1:4] == NAMES[1:4] and names[::-2] == NAMES[::-2]
    some = names.select(np.array([4, 0, 0]))
    assert some == [NAMES[4], NAMES[0], NAMES[0]] and some.select(np.array([1])) == [NAMES[0]]
    assert pickle.loads(pickle.dumps(some)) == some and "ß.jpg" in names[3]
    assert selected(NAMES, np.array([2, 1])) == selected(names, np.array([2, 1])) == ["top.jpg", "a/22.jpg"]
    with pytest.raises(IndexError, match="name 6 of 6"):
        names[6]


def test_names_of_many_folders_take_half_of_a_list() -> None:
    names = [f"train/n{i // 1000:08d}/n{i // 1000:08d}_{i:08d}.jpg" for i in range(20_000)]
    packed = len(pickle.dumps(Names.of(names)))
    assert 2 * packed < sum(map(sys.getsizeof, names)) + 8 * len(names)


def test_coded_values_are_counted_mapped_and_replaced() -> None:
    coded = Coded.of(["b", "a", "b", "c"])
    assert coded.counts() == {"b": 2, "a": 1, "c": 1}
    upper = coded.chosen(np.array([0, 1])).mapped(str.upper)
    assert upper.counts() == {"B": 1, "A": 1} and upper.where("B").tolist() == [True, False]
    assert coded.replaced({1: "d"}).counts() == {"b": 2, "d": 1, "c": 1} and coded.counts()["a"] == 1
    assert folders_in(["x/y/1", "2"]).counts() == folders_in(Names.of(["x/y/1", "2"])).counts() == {"x/y": 1, "": 1}


@pytest.mark.parametrize("without", ["", "z.jpg a/b.jpg a/1.jpg"])
def test_a_listing_is_what_a_plain_walk_finds(photos: Path, without: str) -> None:
    for name in without.split():
        (photos / name).unlink()
    store = FolderStore.walk(photos)
    assert store.names == plainly(photos)
    assert store.sizes(store.names) == [(photos / name).stat().st_size for name in store.names]
    assert all(store.get(name) == (photos / name).read_bytes() for name in store.names)


def test_sizes_of_a_part_and_of_a_vanished_file(photos: Path) -> None:
    store = FolderStore.walk(photos)
    assert store.sizes(store.names[2:4]) == [len(name) for name in store.names[2:4]]
    assert store.sizes(["a/1.jpg", "gone.jpg"]) == [7, -1]


def test_a_second_look_reads_the_index(photos: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = FolderStore.walk(photos)
    assert [path.suffix for path in kept.iterdir()] == [".npz"] and not list(photos.rglob("*.npz"))
    monkeypatch.setattr(listing, "walked", None)  # whoever lists now fails
    again = FolderStore.walk(photos)
    assert again.names == first.names == plainly(photos) and again.skipped == first.skipped
    assert again.sizes(again.names) == first.sizes(first.names)
    assert open_dataset(photos).fingerprint() == open_dataset(photos).fingerprint()


CHANGES: dict[str, Callable[[Path], object]] = {
    "a new file": lambda root: (root / "a" / "9.jpg").write_bytes(b"x"),
    "a file less": lambda root: (root / "a" / "b" / "1.jpg").unlink(),
    "a file of another name": lambda root: (root / "z.jpg").rename(root / "y.jpg"),
    "a new folder": lambda root: (root / "a" / "new").mkdir(),
    "a folder of another name": lambda root: (root / "a" / "c").rename(root / "a" / "d"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_index_notices(change: str, photos: Path, kept: Path) -> None:
    FolderStore.walk(photos)
    assert index.read_index(photos, listing.KIND) is not None
    CHANGES[change](photos)
    assert index.read_index(photos, listing.KIND) is None
    assert FolderStore.walk(photos).names == plainly(photos)
    assert index.read_index(photos, listing.KIND) is not None


def test_an_index_does_not_notice_new_content_of_an_old_file(photos: Path, kept: Path) -> None:
    FolderStore.walk(photos)
    (photos / "z.jpg").write_bytes(b"longer than before")
    store = FolderStore.walk(photos)
    assert store.sizes(store.names)[-1] == 5 and store.get("z.jpg") == b"longer than before"


@pytest.mark.parametrize("damage", [b"", b"no index", None])
def test_a_damaged_index_is_told_of_and_made_again(
    damage: bytes | None, photos: Path, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FolderStore.walk(photos)
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert FolderStore.walk(photos).names == plainly(photos)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"the index {file} is damaged (" in said
    FolderStore.walk(photos)
    assert not capsys.readouterr().err


def test_no_index_of_what_changed_a_moment_ago_of_small_folders_or_where_it_is_off(
    photos: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(index, "SETTLED", 10**12)
        FolderStore.walk(photos)
    with monkeypatch.context() as patch:
        patch.setattr(listing, "SMALL", 10)
        FolderStore.walk(photos)
    with monkeypatch.context() as patch:
        patch.setenv(index.VARIABLE, "off")
        FolderStore.walk(photos)
    assert not kept.exists()


def test_where_no_index_can_be_written_there_is_none(photos: Path, kept: Path) -> None:
    kept.write_text("a file where the folder belongs")
    assert FolderStore.walk(photos).names == plainly(photos)


def test_both_splits_come_of_one_listing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen = listing.listing, []
    monkeypatch.setattr(listing, "listing", lambda root, **how: seen.append(root) or whole(root, **how))
    train, val = open_splits(photos)
    assert seen == [photos] and sorted([*train.names, *val.names]) == plainly(photos)
    assert open_dataset(photos, "val").names == val.names and open_dataset(photos, "train").names == train.names
