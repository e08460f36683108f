"""Shards give the images, splits, labels and order that the same files have in folders; damage is one clear line."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from simdino.cli import cli
from simdino.config import ViewsConfig
from simdino.contracts import InputError
from simdino.data import index, shards
from simdino.data.loader import Batches
from simdino.data.opening import BrokenImage
from simdino.data.sources import DataPath, open_dataset, open_splits
from simdino.data.survey import broken_images
from simdino.data.workers import in_order

COUNT = {"train": 12, "val": 5}
CLASSES = ("cat", "dog", "owl")


def picture(i: int, split: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8 + i % 3, 9), (20 * i, 7, 0 if split == "train" else 255)).save(out, "PNG")
    return out.getvalue()


def images(split: str) -> list[tuple[int, bytes, str]]:
    """Number, file and class of each image."""
    return [(i, picture(i, split), CLASSES[i % 3]) for i in range(COUNT[split])]


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def tars(root: Path, *, label: str = "cls", per: int = 5) -> Path:
    """`train-000000.tar`, ...: samples of an image and its class as WebDataset has them."""
    root.mkdir()
    for split, count in COUNT.items():
        for k in range(0, count, per):
            with tarfile.open(root / f"{split}-{k // per:06d}.tar", "w") as archive:
                for i, data, name in images(split)[k : k + per]:
                    if label == "cls":
                        add(archive, f"{i:04d}.cls", str(CLASSES.index(name)).encode())
                    if label == "json":
                        add(archive, f"{i:04d}.json", json.dumps({"width": 8, "label": name}).encode())
                    add(archive, f"{name}/{i:04d}.png" if label == "folders" else f"{i:04d}.png", data)
    return root


def parquet(root: Path, *, struct: bool = True, named: bool = True) -> Path:
    """`data/train-00000-of-00003.parquet`, ... as the hub has them."""
    (root / "data").mkdir(parents=True)
    names = {"info": {"features": {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}}}
    for split, count in COUNT.items():
        for k in range(0, count, 5):
            table = rows(images(split)[k : k + 5], struct=struct)
            table = table.replace_schema_metadata({"huggingface": json.dumps(names)}) if named else table
            path = root / "data" / f"{split.replace('val', 'validation')}-{k // 5:05d}-of-00003.parquet"
            pq.write_table(table, path, row_group_size=2)
    return root


def rows(found: list[tuple[int, bytes, str]], *, struct: bool = True) -> pa.Table:
    files = [data for _, data, _ in found]
    pictures = pa.array([{"bytes": data, "path": f"{i}.png"} for i, data, _ in found]) if struct else pa.array(files)
    return pa.table({"image": pictures, "label": [CLASSES.index(name) for *_, name in found]})


def saved(root: Path) -> Path:
    """As `DatasetDict.save_to_disk` leaves them: a folder a split, streams of Arrow, their list in state.json."""
    for split, count in COUNT.items():
        folder = root / split
        folder.mkdir(parents=True)
        files = [f"data-{k:05d}-of-00002.arrow" for k in range(2)]
        for k, name in enumerate(files):
            half = (count + 1) // 2
            table = rows(images(split)[half * k : half * (k + 1)])
            with pa.OSFile(str(folder / name), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
                writer.write_table(table, max_chunksize=4)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files]}))
        (folder / "dataset_info.json").write_text("{}")
        (folder / "cache-1.arrow").write_bytes(b"what was computed")
    return root


FORMS: dict[str, Callable[[Path], Path]] = {
    "tars with .cls": tars,
    "tars with .json": lambda root: tars(root, label="json"),
    "tars with folders": lambda root: tars(root, label="folders"),
    "parquet of structs": parquet,
    "parquet of bytes": lambda root: parquet(root, struct=False, named=False),
    "saved to disk": saved,
}


@pytest.mark.parametrize("form", FORMS)
def test_shards_have_the_images_splits_and_labels_of_their_files(form: str, tmp_path: Path) -> None:
    data = open_splits(FORMS[form](tmp_path / "set"))
    for split, source in zip(COUNT, data, strict=True):
        found = {}
        for i, name in enumerate(source.names):
            assert source.labels is not None and source.classes
            found[int(source.read(i)[0, 0, 0]) // 20] = source.labels[i]
            assert source.sides(i) == (9, 8 + int(source.read(i)[0, 0, 0]) // 20 % 3), name
            assert source.read(i)[2].unique().tolist() == [0 if split == "train" else 255]
        assert found == {i: i % 3 for i in range(COUNT[split])} and len(source) == COUNT[split]
        assert source.names == sorted(source.names) and len(set(source.names)) == len(source)
    assert data.train.classes in (CLASSES, ("0", "1", "2"))
    again = pickle.loads(pickle.dumps(data.train))
    assert torch.equal(again.read(7), data.train.read(7)) and again.select([3, 7]).names == [
        again.names[i] for i in (3, 7)
    ]
    assert open_dataset(tmp_path / "set").fingerprint() == open_dataset(tmp_path / "set").fingerprint()


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_workers_read_shards_as_this_process_does(form: str, tmp_path: Path) -> None:
    views = ViewsConfig(global_size=8, local_size=4, local_views=1)
    batches = Batches(open_dataset(FORMS[form](tmp_path / "set"), "train"), views, batch=4, channels=3, seed=3)
    for (ours, _), (theirs, _) in zip(
        (batches[t] for t in range(4)), in_order(batches, range(4), workers=2), strict=True
    ):
        assert torch.equal(ours.global_views, theirs.global_views) and torch.equal(ours.ids, theirs.ids)


def test_what_is_said_of_shards(tmp_path: Path) -> None:
    root = tars(tmp_path / "set")
    with tarfile.open(root / "train-000004.tar", "w") as archive:
        for name in ("x.png", "x.seg.png", "x.txt", ".hidden.png", "y.gif"):
            add(archive, name, picture(1, "train"))
        for name in ("x.cls", "y.cls"):
            add(archive, name, b"1")
    source = open_dataset(root)
    assert source.contents is not None
    said = "\n".join(source.contents.lines())
    assert "splits    train/ is for training, val/ for validation" in said
    assert "named by .cls files: 0, 1, 2" in said
    assert "left out  1 non-images (1 .txt), 1 hidden" in said
    assert "train-000004.tar has 1 further images of samples" in said
    assert "of the shards train 1 numbers between the first and the last are missing" in said
    assert "train-000004/x.png" in source.names and "train-000004/x.seg.png" not in source.names


def test_splits_of_shards_can_be_named(tmp_path: Path) -> None:
    root = tars(tmp_path / "set")
    for path in root.glob("val-*"):
        path.rename(path.with_name(path.name.replace("val", "kept")))
    assert len(open_dataset(DataPath(root=str(root), val="kept"), "val")) == COUNT["val"]
    assert 0 < len(open_dataset(root, "val")) < 12


def test_labels_of_some_are_no_labels(tmp_path: Path) -> None:
    root = tars(tmp_path / "set")
    with tarfile.open(root / "train-000003.tar", "w") as archive:
        add(archive, "z.png", picture(1, "train"))
    source = open_dataset(root)
    assert source.labels is None and source.contents is not None
    assert "1 of the 18 images have no label, first in train-000003.tar" in "\n".join(source.contents.lines())


def test_one_table_is_a_set_of_its_own(tmp_path: Path) -> None:
    path = next(iter(sorted((parquet(tmp_path / "set") / "data").iterdir())))
    source = open_dataset(path)
    assert len(source) == 5 and source.name == path.stem and source.classes == CLASSES


def test_broken_images_in_shards_are_named(tmp_path: Path) -> None:
    root = tars(tmp_path / "set")
    with tarfile.open(root / "train-000001.tar", "a") as archive:
        add(archive, "9999.png", picture(1, "train")[:40])
        add(archive, "9999.cls", b"1")
    pq.write_table(
        pa.table({"image": pa.array([picture(1, "train"), None, b""]), "label": [0, 1, 0]}), tmp_path / "some.parquet"
    )
    assert list(broken_images(open_dataset(root))) == ["train-000001/9999.png"]
    found = broken_images(open_dataset(tmp_path / "some.parquet"))
    assert found == {
        "some/00000001": "the row holds no bytes, only perhaps a path",
        "some/00000002": "the file is empty (0 bytes)",
    }


def test_a_shard_that_vanishes_or_is_cut_breaks_its_images(tmp_path: Path) -> None:
    root = tars(tmp_path / "set")
    source = open_dataset(root, "train")
    (root / "train-000000.tar").unlink()
    whole = (root / "train-000001.tar").read_bytes()
    (root / "train-000001.tar").write_bytes(whole[:1700])
    with pytest.raises(BrokenImage, match=r"train-000000/0000.png: shard train-000000.tar: No such file"):
        source.read(0)
    with pytest.raises(BrokenImage, match=r"shard train-000001.tar: it ends before the image does"):
        source.read(9)
    assert source.read(11).shape[0] == 3


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def cut_tar(path: Path) -> None:
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset_data + 20])


def without_images(path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), path)


def two_columns(path: Path) -> None:
    pq.write_table(pa.table({"left": [b"a"], "right": [b"b"]}), path)


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a cut tar": (
        "tars with .cls",
        cut_tar,
        r"cannot read the shard '.*val-000000.tar' \(unexpected end of data\); fetch",
    ),
    "no tar": (
        "tars with .cls",
        lambda path: path.write_bytes(b"x" * 2000),
        r"cannot read the shard '.*tar' \(.*\); fetch",
    ),
    "a cut table": ("parquet of bytes", cut, r"cannot read the shard '.*parquet' \(.*\); fetch"),
    "no image column": ("parquet of bytes", without_images, r"no column holds images: it has text \(string\), label"),
    "two columns": ("parquet of bytes", two_columns, "left and right hold bytes: it has left"),
    "a cut stream": ("saved to disk", cut, r"cannot read the shard '.*arrow' \(.*\); fetch"),
    "a missing stream": ("saved to disk", Path.unlink, "state.json' names 1 shards that are missing, first data-00001"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_shards_are_one_line(damage: str, tmp_path: Path) -> None:
    form, do, said = DAMAGE[damage]
    root = FORMS[form](tmp_path / "set")
    do(sorted(path for path in root.rglob("*.*") if shards.ending_of(path.name) and "cache" not in path.name)[-1])
    with pytest.raises(InputError, match=said) as error:
        open_dataset(root)
    assert "\n" not in str(error.value)


def test_shards_without_images_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / "a.tar", "w") as archive:
        add(archive, "x.txt", b"text")
    with pytest.raises(
        InputError, match=r"none of the 1 shards in '.*set' has an image, first a.tar \(left out  1 non-im"
    ):
        open_dataset(tmp_path / "set")


def test_what_is_where_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tars(tmp_path / "set")
    monkeypatch.setenv(index.VARIABLE, str(tmp_path / "indices"))
    monkeypatch.setattr(index, "SETTLED", 0)
    first = open_dataset(root, "train")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "gathered", None)  # whoever reads shards now fails
        again = open_dataset(root, "train")
    assert again.names == first.names and again.classes == first.classes and again.contents == first.contents
    assert np.array_equal(again.labels, first.labels) and torch.equal(again.read(3), first.read(3))  # type: ignore[arg-type]
    assert again.fingerprint() == first.fingerprint()
    (root / "train-000002.tar").unlink()
    assert len(open_dataset(root, "train")) == 10
    (root / "train-000001.tar").write_bytes((root / "val-000000.tar").read_bytes())
    assert open_dataset(root, "train").read(6)[2, 0, 0] == 255


@pytest.mark.slow
@pytest.mark.parametrize("form", ["tars with .cls", "parquet of structs", "saved to disk"])
def test_every_command_takes_shards(form: str, tmp_path: Path, one_thread: None) -> None:
    data, run = str(FORMS[form](tmp_path / "set")), str(tmp_path / "run")
    table = str(tmp_path / "features.parquet")
    short = (
        "--steps 2 --batch 4 --encoder vit_toy --threads 1 --local-views 0 --image-size 8 --patch-size 4 --shuffle 32"
    )
    for words in (
        ["inspect", data],
        ["pretrain", data, "--out", run, *short.split(), "--shuffle", "32"],
        ["evaluate", "knn", run, "--k", "1", "--no-baselines"],
        ["embed", run, data, "--out", table],
    ):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, (words, done.output)
    assert pq.read_table(table).num_rows == sum(COUNT.values())
    assert set(pq.read_table(table)["label"].to_pylist()) == set(open_dataset(data).classes)
