"""A folder and its archives have the same images: links, each file once, backslashes; and every file is counted."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from simdino.data.contents import Contents
from simdino.data.files import Skipped
from simdino.data.listing import Entry, each_file_once
from simdino.data.sources import DataPath, Source, open_dataset
from simdino.data.stores import FolderStore


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (seed % 256, seed // 256, 7)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes, hard links and symbolic ones to them, links to nowhere, to a folder and to hidden files."""
    root = tmp_path / "photos"
    for c, name in enumerate(("cat", "dog")):
        for i in range(10):
            write(root / name / f"{i:03d}.png", 100 * c + i)
    for i in range(10):
        for name in ("owl", "fox", "gone", "kept"):
            (root / name).mkdir(exist_ok=True)
        os.link(root / "cat" / f"{i:03d}.png", root / "owl" / f"{i:03d}.png")
        (root / "fox" / f"{i:03d}.png").symlink_to(f"../dog/{i:03d}.png")
        (root / "gone" / f"{i:03d}.png").symlink_to(f"/nowhere/{i:03d}.png")
        (root / ".store").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (i, 200, 9)).save(root / ".store" / f"key{i}", "PNG")
        (root / "kept" / f"{i:03d}.png").symlink_to(f"../.store/key{i}")  # as git-annex has it
    (root / "again").symlink_to("cat")
    (root / "notes.md").write_text("no image")
    (root / "photo.cr2").write_bytes(b"x")
    return root


def tarred(root: Path, mode: str, ending: str) -> Path:
    out = root.parent / "out" / f"photos{ending}"
    out.parent.mkdir()
    with tarfile.open(out, mode) as archive:  # type: ignore[call-overload]
        archive.add(root, "photos")
    return out


def tar(root: Path) -> Path:
    return tarred(root, "w", ".tar")


def tar_gz(root: Path) -> Path:
    return tarred(root, "w:gz", ".tar.gz")


def zip_with_links(root: Path) -> Path:
    """As `zip -y` does it; a zip has no hard links."""
    out = root.parent / "photos.zip"
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(root.parent))
            if path.is_symlink():
                info = zipfile.ZipInfo(name)
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(info, str(path.readlink()))
            elif path.is_file():
                archive.write(path, name)
    return out


def found(data: Path) -> tuple[Source, Contents]:
    source = open_dataset(data)
    assert source.contents is not None
    return source, source.contents


@pytest.mark.parametrize("pack", [tar, tar_gz, zip_with_links])
def test_links_are_followed_and_each_file_is_one_image(photos: Path, pack: Callable[[Path], Path]) -> None:
    source, contents = found(photos)
    assert source.classes == ("cat", "dog", "kept") and len(source) == 30
    assert len(contents.skipped.repeated) == 20 and len(contents.skipped.dangling) == 10
    archive = pack(photos)
    other, counted = found(archive)
    if archive.suffix == ".zip":
        assert other.classes == ("cat", "dog", "kept", "owl") and len(other) == 40
    else:
        assert list(other.names) == list(source.names) and other.classes == source.classes
        assert len(counted.skipped.repeated) == 20
    assert len(counted.skipped.dangling) == 10 and len(counted.skipped.repeated_folders) == 1
    position = list(other.names).index("kept/003.png")
    assert other.read(position)[:, 0, 0].tolist() == [3, 200, 9]


def test_no_file_trains_and_is_held_out(photos: Path) -> None:
    inodes = {
        split: {(photos / name).stat().st_ino for name in open_dataset(photos, split).names}  # type: ignore[arg-type]
        for split in ("train", "val")
    }
    assert inodes["train"].isdisjoint(inodes["val"])


def test_links_from_outside_are_images_of_their_own_but_once(tmp_path: Path) -> None:
    write(tmp_path / "pool" / "1.png", 1)
    (tmp_path / "set").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "pool" / "1.png")
    assert list(open_dataset(tmp_path / "set").names) == ["a.png"]
    assert FolderStore.walk(tmp_path / "set", every_name=True).names == ["a.png", "b.png"]


def test_a_file_system_that_numbers_all_files_alike_loses_none(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.png", i)
    entries = [Entry(False, f"{i}.png", 0xFFFFFFFF) for i in range(3)]
    assert list(each_file_once(tmp_path, entries, Skipped())) == entries


def test_links_in_circles_end(tmp_path: Path) -> None:
    write(tmp_path / "x" / "1.png", 1)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "x" / "1.png", "1.png")
        for name, target in (("a.png", "b.png"), ("b.png", "a.png"), ("c.png", "way/1.png"), ("way", ".")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    source, contents = found(tmp_path / "x.tar")
    assert list(source.names) == ["1.png"]
    assert sorted(contents.skipped.dangling) == ["a.png", "b.png", "way"] and contents.skipped.repeated == ["c.png"]


def test_backslashes_are_slashes_in_a_zip(tmp_path: Path) -> None:
    write(tmp_path / "1.png", 1)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in (
            "set\\train\\cat\\1.png",
            "set\\train\\dog\\2.png",
            "set\\val\\cat\\3.png",
            "set\\__MACOSX\\4.png",
        ):
            info = zipfile.ZipInfo("x")
            info.filename = name
            archive.writestr(info, (tmp_path / "1.png").read_bytes())
    train, val = (open_dataset(tmp_path / "set.zip", split) for split in ("train", "val"))
    assert list(train.names) == ["train/cat/1.png", "train/dog/2.png"] and list(val.names) == ["val/cat/3.png"]
    assert train.read(1).shape == (3, 8, 8)


def test_every_file_is_counted(photos: Path) -> None:
    (photos / "more.CR2").write_bytes(b"x")
    (photos / "LICENSE").write_text("x")
    (photos / "x.txt").write_text("x")
    os.mkfifo(photos / "pipe.png")
    _, contents = found(photos)
    skipped = contents.skipped
    assert skipped.other == {".md": 1, "": 1, ".txt": 1} and skipped.not_opened == {".cr2": 2}
    assert (skipped.hidden, skipped.no_files) == (1, 1)
    said = "\n".join(contents.lines())
    assert "3 non-images (1 " in said and "1 hidden" in said and "1 devices or pipes" in said
    assert "warning: 2 images (2 .cr2) are left out: raw cannot be opened here; convert them" in said
    assert "warning: 10 links lead nowhere and are left out, first gone/000.png" in said
    assert "20 further names of an image (links), first owl/000.png" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_closed_folder_is_said(photos: Path) -> None:
    (photos / "dog").chmod(0)
    try:
        assert "1 folders cannot be listed" in "\n".join(found(photos)[1].lines())
    finally:
        (photos / "dog").chmod(0o755)


def test_a_folder_that_cannot_be_listed_is_counted(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert found(photos)[1].skipped.closed == {"dog/": "Permission denied"}


TINY = [f"train/{c}/images/{i}.png" for c in ("n01", "n02", "n03") for i in range(4)]


@pytest.mark.parametrize("pack", [None, "zip", "tar", "gztar"])
def test_tiny_imagenet_with_its_annotations(tmp_path: Path, pack: str | None) -> None:
    root = tmp_path / "tiny"
    for i, name in enumerate([*TINY, *(f"val/images/val_{i}.png" for i in range(6)), "test/images/test_0.png"]):
        write(root / name, i)
    rows = "".join(f"val_{i}.png\tn0{i % 3 + 1}\t0\t0\t62\t62\n" for i in range(6))
    (root / "val" / "val_annotations.txt").write_text(rows)
    data = root
    if pack:
        out = tmp_path / "packed" / "tiny"
        out.parent.mkdir()
        data = Path(shutil.make_archive(str(out), pack, root.parent, "tiny"))
    train, val = open_dataset(data, "train"), open_dataset(data, "val")
    assert train.classes == val.classes == ("n01", "n02", "n03") and (len(train), len(val)) == (12, 6)
    assert val.labels is not None and val.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert val.contents is not None and "of validation images by val_annotations.txt" in val.contents.classes


def test_imagenet_as_kaggle_packs_it(tmp_path: Path) -> None:
    base = "ILSVRC/Data/CLS-LOC"
    names = [f"{base}/train/{c}/{c}_{i}.png" for c in ("n01", "n02") for i in range(3)]
    names += [f"{base}/val/ILSVRC2012_val_0000000{i}.png" for i in range(4)]
    for i, name in enumerate([*names, f"{base}/test/ILSVRC2012_test_0.png"]):
        write(tmp_path / name, i)
    rows = "".join(f"ILSVRC2012_val_0000000{i},n0{i % 2 + 1} 85 1 499 272 \n" for i in range(4))
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
    val = open_dataset(tmp_path, "val")
    assert val.classes == ("n01", "n02") and val.labels is not None and val.labels.tolist() == [0, 1, 0, 1]
    asked = DataPath(root=str(tmp_path), train=f"{base}/train", val=f"{base}/val")
    assert open_dataset(asked, "val").classes == val.classes
