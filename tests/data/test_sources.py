"""Images from folders, archives and lists: names, labels, splits, errors, worker processes."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simdino.contracts import InputError
from simdino.data import stores
from simdino.data.opening import BrokenImage, extensions
from simdino.data.sources import Source, Split, open_dataset
from simdino.data.splits import in_validation

Pack = Callable[[Path, Path], Path]


def pixels(height: int = 6, width: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, seed: int = 0, channels: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(channels=channels, seed=seed)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of twelve, and things that are not for us."""
    root = tmp_path / "photos"
    for c, name in enumerate(("ant", "bee", "cat")):
        for i in range(12):
            write(root / name / f"{i:02}.png", seed=100 * c + i)
    write(root / ".hidden" / "x.png")
    write(root / "__MACOSX" / "ant" / "x.png")
    (root / "ant" / "._00.png").write_bytes(b"finder")
    (root / "notes.md").write_text("no image")
    return root


def splits(data: Path) -> tuple[Source, Source, Source]:
    return open_dataset(data, "train"), open_dataset(data, "val"), open_dataset(data, "all")


def same(a: Source, b: Source) -> bool:
    return (
        list(a.names) == list(b.names)
        and a.classes == b.classes
        and np.array_equal(a.labels, b.labels)  # type: ignore[arg-type]
        and all(torch.equal(a.read(i), b.read(i)) for i in range(len(a)))
    )


def message(run: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        run()
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and len(text) > 20
    return text


# -- folders, classes, splits ------------------------------------------------------------------------------------


def test_a_folder_is_sorted_and_skips_what_is_hidden(photos: Path) -> None:
    source = open_dataset(photos)
    assert source.name == "photos"
    assert list(source.names) == [f"{c}/{i:02}.png" for c in ("ant", "bee", "cat") for i in range(12)]
    assert source.classes == ("ant", "bee", "cat")
    assert source.labels is not None and source.labels.dtype == np.int64
    assert source.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert torch.equal(source.read(13), torch.from_numpy(pixels(seed=101)).permute(2, 0, 1))


def test_the_validation_share_is_a_tenth() -> None:
    share = np.mean([in_validation(f"class{i % 7}/image_{i}.jpg") for i in range(5000)])
    assert 0.085 < share < 0.115
    assert in_validation("caf\u00e9/1.png") == in_validation("cafe\u0301/1.png")


def test_validation_images_are_the_same_on_every_machine() -> None:
    # 6.png: `printf 6.png | b2sum -l 64` modulo 10 is 0.
    assert [i for i in range(60) if in_validation(f"{i}.png")] == [6, 12, 38, 41, 46, 50, 54, 59]


def test_splits_are_disjoint_complete_and_stable_under_new_files(photos: Path) -> None:
    train, val, everything = splits(photos)
    assert set(train.names).isdisjoint(val.names)
    assert sorted([*train.names, *val.names]) == list(everything.names)
    for i in range(50):
        write(photos / "ant" / f"new{i}.png")
    write(photos / "dog" / "1.png")
    more_train, more_val, _ = splits(photos)
    assert set(train.names) <= set(more_train.names)
    assert set(val.names) <= set(more_val.names)
    assert more_train.classes == more_val.classes == ("ant", "bee", "cat", "dog")


@pytest.mark.parametrize("wrapper", ["", "imagenette128/"])
@pytest.mark.parametrize("val_name", ["val", "test", "validation", "valid", "Val"])
def test_split_folders(tmp_path: Path, wrapper: str, val_name: str) -> None:
    root = tmp_path / "data"
    for i in range(4):
        write(root / f"{wrapper}train" / "ab"[i % 2] / f"{i}.png")
        write(root / f"{wrapper}{val_name}" / "bc"[i % 2] / f"{i}.png")
    train, val, everything = splits(root)
    assert all(name.startswith(f"{wrapper}train/") for name in train.names)
    assert all(name.startswith(f"{wrapper}{val_name}/") for name in val.names)
    assert (len(train), len(val), len(everything)) == (4, 4, 8)
    assert train.classes == val.classes == everything.classes == ("a", "b", "c")
    assert train.labels is not None and train.labels.tolist() == [0, 0, 1, 1]
    assert val.labels is not None and val.labels.tolist() == [1, 1, 2, 2]


def test_val_is_preferred_to_test(tmp_path: Path) -> None:
    for folder in ("train", "val", "test"):
        write(tmp_path / folder / "a" / "1.png")
        write(tmp_path / folder / "b" / "2.png")
    train, val, everything = splits(tmp_path)
    assert list(train.names) == ["train/a/1.png", "train/b/2.png"]
    assert list(val.names) == ["val/a/1.png", "val/b/2.png"]
    assert len(everything) == 6


def test_only_a_training_folder_holds_out_by_hash(tmp_path: Path) -> None:
    for i in range(60):
        write(tmp_path / "train" / "ab"[i % 2] / f"{i}.png")
    train, val, _ = splits(tmp_path)
    assert len(train) + len(val) == 60 and 0 < len(val) < 15
    assert train.classes == ("a", "b")


def test_train_may_be_a_class(tmp_path: Path) -> None:
    for i in range(20):
        for vehicle in ("train", "car", "bus"):
            write(tmp_path / vehicle / f"{i}.png")
    assert open_dataset(tmp_path).classes == ("bus", "car", "train")
    assert len({name.split("/")[0] for name in open_dataset(tmp_path, "train").names}) == 3


def test_a_training_folder_itself_is_a_folder_of_images(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path / "train" / "ab"[i % 2] / f"{i}.png")
        write(tmp_path / "val" / "ab"[i % 2] / f"{i}.png")
    source = open_dataset(tmp_path / "train", "all")
    assert list(source.names) == ["a/0.png", "a/2.png", "b/1.png", "b/3.png"]


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png", "3.png"],  # flat
        ["train/1.png", "val/2.png"],  # flat splits
        ["cat/1.png", "cat/2.png"],  # one class
        ["a/1.png", "b/2.png", "c/3.png"],  # a folder for every image
    ],
)
def test_no_labels(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write(tmp_path / name)
    source = open_dataset(tmp_path)
    assert source.labels is None and source.classes == () and len(source) == len(names)


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root / "z" / "1.png")
    write(tmp_path / "elsewhere" / "2.png")
    (root / "z" / "loop").symlink_to(root)
    (root / "a").symlink_to(root / "z")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "dangling.png").symlink_to(tmp_path / "nothing.png")
    assert list(open_dataset(root).names) == ["b/2.png", "z/1.png"]


def test_every_extension_of_pillow_but_programs_and_stubs() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".gif", ".bmp", ".jp2", ".ppm", ".mpo", ".tga"} <= extensions()
    assert extensions().isdisjoint({".eps", ".ps", ".pdf", ".h5", ".mpg", ".txt"})


def test_select_keeps_order_and_classes(photos: Path) -> None:
    part = open_dataset(photos).select([30, 2])
    assert list(part.names) == ["cat/06.png", "ant/02.png"]
    assert part.labels is not None and part.labels.tolist() == [2, 0] and part.classes == ("ant", "bee", "cat")
    assert torch.equal(part.read(1), torch.from_numpy(pixels(seed=2)).permute(2, 0, 1))


# -- archives and lists ------------------------------------------------------------------------------------------


def zipped(root: Path, target: Path) -> Path:
    return Path(shutil.make_archive(str(target / "flat"), "zip", root))


def zipped_with_folder(root: Path, target: Path) -> Path:
    return Path(shutil.make_archive(str(target / root.name), "zip", root.parent, root.name))


def tarred(root: Path, target: Path) -> Path:
    return Path(shutil.make_archive(str(target / "flat"), "tar", root))


def tarred_with_folder(root: Path, target: Path) -> Path:
    return Path(shutil.make_archive(str(target / root.name), "gztar", root.parent, root.name))


def misnamed(root: Path, target: Path) -> Path:
    return Path(shutil.make_archive(str(target / "flat"), "xztar", root)).rename(target / "x.tar")


@pytest.mark.parametrize("pack", [zipped, zipped_with_folder, tarred, tarred_with_folder, misnamed])
def test_an_archive_equals_its_folder(photos: Path, tmp_path: Path, pack: Pack) -> None:
    (tmp_path / "out").mkdir()
    archive = pack(photos, tmp_path / "out")
    for split in ("train", "val", "all"):
        assert same(open_dataset(photos, split), open_dataset(archive, split))


def test_splits_in_an_archive(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path / "x" / "set" / "train" / "ab"[i % 2] / f"{i}.png")
        write(tmp_path / "x" / "set" / "test" / "ab"[i % 2] / f"{i}.png")
    for kind in ("zip", "tar"):
        archive = Path(shutil.make_archive(str(tmp_path / "y"), kind, tmp_path / "x"))
        for split in ("train", "val"):
            assert same(open_dataset(tmp_path / "x", split), open_dataset(archive, split))


def test_a_large_compressed_tar_is_refused(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_UNPACKED", 1000)
    archive = tarred_with_folder(photos, tmp_path)
    assert "unpack" in message(lambda: open_dataset(archive))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("l.txt", "ant/00.png\tx\nbee/01.png\ty\nant/02.png\tx\n"),
        ("l.lst", "ant/00.png,x\nbee/01.png, y\n\nant/02.png,x"),
        ("l.csv", 'path,label\n"ant/00.png",x\nbee/01.png,"y"\nant/02.png,x,more\n'),
    ],
)
def test_list_files(photos: Path, file: str, text: str) -> None:
    (photos / file).write_text(text)
    source = open_dataset(photos / file)
    assert list(source.names) == ["ant/00.png", "bee/01.png", "ant/02.png"]
    assert source.classes == ("x", "y")
    assert source.labels is not None and source.labels.tolist() == [0, 1, 0]
    assert torch.equal(source.read(1), torch.from_numpy(pixels(seed=101)).permute(2, 0, 1))


def test_list_paths_without_labels(photos: Path, tmp_path: Path) -> None:
    write(photos / "ant" / "a,b.png")
    write(tmp_path / "away" / "1.png")
    (photos / "list.txt").write_text(
        f"{photos}/ant/00.png\nant/a,b.png\nbee/01.png\n../away/1.png\nbee/missing.png\n{tmp_path}/away/1.png\n"
    )
    source = open_dataset(photos / "list.txt")
    assert list(source.names)[:4] == ["ant/00.png", "ant/a,b.png", "bee/01.png", "../away/1.png"]
    assert source.classes == ("away", "photos")  # the first folders below the one that holds all
    with pytest.raises(BrokenImage, match=r"bee/missing\.png: No such file"):
        source.read(4)
    assert torch.equal(source.read(3), source.read(5))


# -- errors ------------------------------------------------------------------------------------------------------


def test_errors_say_what_and_where(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.md").write_text("x")
    for name in ("bad.zip", "bad.tar", "bad.tar.gz", "x.rar", "half.txt", "none.txt", "gone.txt"):
        (tmp_path / name).write_bytes(b"nothing that we know")
    (tmp_path / "half.txt").write_text("photos/ant/00.png\tx\nphotos/ant/01.png\n")
    (tmp_path / "none.txt").write_text("\n\n")
    (tmp_path / "gone.txt").write_text("nowhere/1.png\n")
    expected = {
        "nowhere": ("nowhere", "no file or folder", "fashion-mnist"),
        "empty": ("is empty",),
        "texts": ("no image file",),
        "bad.zip": ("cannot read the archive", "bad.zip"),
        "bad.tar": ("cannot read the archive", "bad.tar"),
        "bad.tar.gz": ("cannot read the archive", "bad.tar.gz"),
        "x.rar": ("x.rar", "no file of a known kind", "unpacked"),
        "half.txt": ("line 2", "no label"),
        "none.txt": ("names no image",),
        "gone.txt": ("line 1", "nowhere/1.png", str(tmp_path)),
    }
    for name, words in expected.items():
        text = message(lambda name=name: open_dataset(tmp_path / name))
        assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("typed", "meant"), [("fashion_mnist", "fashion-mnist"), ("digit", "digits"), ("CIFAR-10", "cifar10")]
)
def test_a_mistyped_name_is_told_the_nearest(typed: str, meant: str) -> None:
    assert f"did you mean the built-in set '{meant}'" in message(lambda: open_dataset(typed))


def test_nothing_left_for_training(tmp_path: Path) -> None:
    write(tmp_path / "6.png")  # held out by its hash
    assert "none is left for training" in message(lambda: open_dataset(tmp_path, "train"))
    assert len(open_dataset(tmp_path, "val")) == 1


def test_wrong_split_and_empty_name(photos: Path) -> None:
    wrong: Split = "valid"  # type: ignore[assignment]
    assert "train, val, all" in message(lambda: open_dataset(photos, wrong))
    assert "empty name" in message(lambda: open_dataset(""))


# -- worker processes --------------------------------------------------------------------------------------------


def sums(source: Source, results: multiprocessing.Queue) -> None:
    results.put([int(source.read(i).sum()) for i in range(len(source))])


def test_forked_workers_share_a_zip(photos: Path, tmp_path: Path) -> None:
    source = open_dataset(zipped(photos, tmp_path))
    expected = [int(source.read(i).sum()) for i in range(len(source))]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=sums, args=(source, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    got = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert got == [expected] * 3


@pytest.mark.slow
def test_another_python_reads_a_pickled_source(photos: Path, tmp_path: Path) -> None:
    source = open_dataset(zipped(photos, tmp_path)).select([5, 1])
    source.read(0)
    code = "import pickle, sys; s = pickle.load(sys.stdin.buffer); print([int(s.read(i).sum()) for i in range(len(s))])"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(source), capture_output=True, check=True)
    assert done.stdout.decode().strip() == str([int(source.read(i).sum()) for i in range(2)])


@pytest.mark.parametrize("pack", [zipped, tarred, tarred_with_folder, None])
def test_pickled_sources_are_the_same(photos: Path, tmp_path: Path, pack: Pack | None) -> None:
    source = open_dataset(photos if pack is None else pack(photos, tmp_path))
    source.read(0)
    assert same(source, pickle.loads(pickle.dumps(source)))
