"""List files as people have them: headers, comments, separators, columns for labels and splits."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from simdino.contracts import InputError
from simdino.data.sources import Source, open_dataset

FILES = [f"im/{i:02d}.png" for i in range(10)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate([*FILES, "im/a,b.png", "im/a b.png", "#1.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / name)
    return tmp_path


def listed(folder: Path, name: str, lines: list[str], split: str = "all") -> Source:
    (folder / name).write_text("\n".join(lines) + "\n")
    return open_dataset(folder / name, split)  # type: ignore[arg-type]


def labels(source: Source) -> list[str]:
    assert source.labels is not None
    return [source.classes[i] for i in source.labels]


LABELS = [f"n{i % 3}" for i in range(10)]


@pytest.mark.parametrize(
    ("file", "header", "row"),
    [
        ("a.csv", "ImageId,Class", "{path},{label}"),
        ("a.csv", "bild;art", "{path};{label}"),  # as spreadsheets in much of Europe write
        ("a.csv", "", '"{path}","{label}"'),
        ("a.csv", ",path,label", "{i},{path},{label}"),  # as pandas writes with its index
        ("a.csv", "id,species,photo", "{i},{label},{path}"),
        ("a.csv", "label,path", "{label},{path}"),
        ("a.csv", "path,width,label", "{path},640,{label}"),
        ("a.txt", "", "{path} {label}"),
        ("a.txt", "", "{path}\t{label}"),
        ("a.txt", "file\tlabel", "{path}\t{label}"),
        ("a.lst", "", "{path}, {label}"),
        ("a.txt", "# made by hand\n# twice", "{path},{label}"),
    ],
)
def test_labels_are_found(folder: Path, file: str, header: str, row: str) -> None:
    rows = [row.format(i=i, path=path, label=LABELS[i]) for i, path in enumerate(FILES)]
    if header == "id,species,photo":  # a label before the path is found by its title alone
        header = "id,category,photo"
    source = listed(folder, file, ([header] if header else []) + rows)
    assert list(source.names) == FILES
    assert labels(source) == LABELS


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("path,label,split", "{path},{label},{split}"),
        ("path,split,label", "{path},{split},{label}"),
        ("", "{path},{label},{split}"),
        ("name,kind,subset", "{path},{label},{split}"),
    ],
)
def test_a_split_column_holds_out(folder: Path, header: str, row: str) -> None:
    parts = ["test" if i == 9 else "val" if i % 4 == 0 else "train" for i in range(10)]
    rows = [row.format(path=path, label=LABELS[i], split=parts[i]) for i, path in enumerate(FILES)]
    lines = ([header] if header else []) + rows
    for split in ("train", "val"):
        source = listed(folder, "a.csv", lines, split)
        assert list(source.names) == [path for path, part in zip(FILES, parts, strict=True) if part == split]
        assert labels(source) == [label for label, part in zip(LABELS, parts, strict=True) if part == split]
    assert len(listed(folder, "a.csv", lines)) == 10
    contents = listed(folder, "a.csv", lines).contents
    assert contents is not None and "the list's own column: 6 for training, 3 for validation" in contents.splits


def test_two_columns_of_splits_alone_name_no_class(folder: Path) -> None:
    lines = [f"{path},{'test' if i < 3 else 'training'}" for i, path in enumerate(FILES)]
    source = listed(folder, "a.txt", lines, "val")
    assert list(source.names) == FILES[:3] and source.labels is None


def test_separators_in_names_of_files_stay(folder: Path) -> None:
    source = listed(folder, "a.txt", ["im/a,b.png,x", "im/00.png,x", "im/01.png,y"])
    assert list(source.names) == ["im/a,b.png", "im/00.png", "im/01.png"] and labels(source) == ["x", "x", "y"]
    assert list(listed(folder, "b.txt", ["im/a b.png", "im/00.png"]).names) == ["im/a b.png", "im/00.png"]
    assert list(listed(folder, "c.txt", ["#1.png", "# a comment", "im/00.png"]).names) == ["#1.png", "im/00.png"]


def test_a_first_line_that_ends_like_an_image_is_no_header(folder: Path) -> None:
    assert list(listed(folder, "a.txt", ["im/gone.png", *FILES]).names) == ["im/gone.png", *FILES]


def test_columns_that_are_not_read_are_said(folder: Path) -> None:
    contents = listed(
        folder, "a.csv", ["path,label,fold", *(f"{path},{LABELS[i]},{i}" for i, path in enumerate(FILES))]
    )
    assert contents.contents is not None
    assert contents.contents.warnings == ("the list has 1 more columns than are read (fold)",)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["path,label,split", "im/00.png,x,train", "im/01.png,y,later"], ("line 3", "'later'", "train, val or test")),
        (["path,label,split", "im/00.png,x,train", "im/01.png,y"], ("line 3", "''")),
        (["gone/1.png x", "gone/2.png y"], ("line 1", "gone/1.png x", "a path ends at a tab or a comma")),
        (["# nothing", "  "], ("names no image",)),
        (["im/00.png,x", "im/01.png,", "im/02.png,x"], ("line 2", "no label")),
    ],
)
def test_mistakes_are_told_in_a_line(folder: Path, lines: list[str], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        listed(folder, "a.csv", lines)
    assert all(word in str(caught.value) for word in words), str(caught.value)
