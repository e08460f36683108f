"""List files: a path per line, perhaps with a label and a split, in the forms that people write them."""

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from simdino.contracts import InputError
from simdino.data.names import Coded
from simdino.data.opening import is_image_name
from simdino.data.splits import HELD_OUT, TRAIN, Part
from simdino.data.stores import FolderStore

SPLITS = frozenset({"split", "subset", "partition"})
LABELS = frozenset({"label", "labels", "class", "class_name", "label_name", "category", "target"})
SEPARATORS = ("\t", ",", ";", " ")
PROBES = 100  # lines whose files are looked for, to find out how a list is written


@dataclass(frozen=True)
class Row:
    """A line of a list: its number and its cells."""

    number: int
    cells: tuple[str, ...]
    separator: str

    def path(self, column: int) -> tuple[str, tuple[str, ...]]:
        """Return the path that begins in a column, and the cells after it.

        A separator may be part of a file's name: the path goes on to the first cell that ends like an image."""
        cells = self.cells[column:]
        starts = (self.separator.join(cells[:end]) for end in range(1, len(cells) + 1))
        end = next((end for end, start in enumerate(starts, start=1) if is_image_name(start.strip())), 1)
        return self.separator.join(cells[:end]).strip(), cells[end:]


def read_list(path: Path) -> FolderStore:
    """Return the images of a file with a path per line and perhaps a label and a split, after tabs, commas, semicolons
    or a space. Their names are relative to the list's folder where possible.

    Lines that begin with # are comments; a first line that names no file is a header, whose words name the columns.
    Raises InputError for a list that cannot be read, names no file that exists, or labels only some of its lines."""
    folder = path.resolve().parent
    rows, column = rows_of(path, folder)
    paths = [row.path(column) for row in rows]
    header: list[str] = []
    if not is_image_name(paths[0][0]) and not exists(folder, paths[0][0]):
        header = [cell.lower() for cell in rows[0].cells]
        rows, paths = rows[1:], paths[1:]
    beside = ([*row.cells[:column], *after] for row, (_, after) in zip(rows, paths, strict=True))
    columns = list(zip_longest(*beside, fillvalue=""))  # those beside the path
    titles = header[:column] + header[column + 1 :]
    split_at, label_at = split_and_label(titles, columns, after=column)
    numbers = [row.number for row in rows]
    store = FolderStore(folder, [relative(name, folder) for name, _ in paths])
    store.classes = None if label_at is None else labels_in(path, numbers, columns[label_at])
    store.splits = None if split_at is None else splits_in(path, numbers, columns[split_at])
    store.notes = unread(titles, [at for at in range(column, len(columns)) if at not in (split_at, label_at)])
    return store


def rows_of(path: Path, folder: Path) -> tuple[list[Row], int]:
    """Return the lines of a list, split so that most of the first ones name a file that exists, and the path's
    column."""
    lines = lines_of(path, folder)
    if not lines:
        raise InputError(f"data: the list '{path}' names no image; write one path per line")
    ways: list[tuple[int, str, int]] = []
    for separator in SEPARATORS:
        probes = [Row(number, cells_in(path, line, separator), separator) for number, line in lines[:PROBES]]
        for column in range(max(len(row.cells) for row in probes)):
            found = sum(exists(folder, row.path(column)[0]) for row in probes if len(row.cells) > column)
            ways.append((found, separator, column))
    found, separator, column = max(ways, key=lambda way: way[0])  # of equals the first
    if not found:
        number, line = lines[0]
        raise InputError(
            f"data: line {number} of '{path}' names '{line.strip()}', which does not exist, nor do the next lines' "
            f"files; relative paths start at '{folder}', and a path ends at a tab or a comma"
        )
    return [Row(number, cells_in(path, line, separator), separator) for number, line in lines], column


def lines_of(path: Path, folder: Path) -> list[tuple[int, str]]:
    """Return the lines that are neither empty nor comments, with their numbers."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data: cannot read the list '{path}' ({error}); give a text file in UTF-8") from error
    return [
        (number, line)
        for number, line in enumerate(lines, start=1)
        if line.strip() and not (line.startswith("#") and not exists(folder, line.strip()))
    ]


def cells_in(path: Path, line: str, separator: str) -> tuple[str, ...]:
    """Return the cells of a line. A space separates only the last one."""
    if separator == " ":
        cells = line.rsplit(maxsplit=1)
    elif path.suffix.lower() == ".csv":
        cells = next(csv.reader([line], delimiter=separator))
    else:
        cells = line.split(separator)
    return tuple(cell.strip() for cell in cells)


def split_and_label(
    titles: Sequence[str], columns: Sequence[Sequence[str]], *, after: int
) -> tuple[int | None, int | None]:
    """Return the columns of the split and of the label, of those beside the path.

    titles: the header's, empty without one. after: how many of the columns stand before the path."""

    def titled(words: Collection[str]) -> int | None:
        return next((at for at, title in enumerate(titles[: len(columns)]) if title in words), None)

    split, label = titled(SPLITS), titled(LABELS)
    if split is None:
        split = next((at for at in range(after, len(columns)) if only_splits(columns[at])), None)
    if label is None:
        label = next((at for at in range(after, len(columns)) if at != split), None)
    return split, label


def only_splits(cells: Sequence[str]) -> bool:
    """Return whether a column holds only names of splits, with both training and validation among them."""
    words = {cell.lower() for cell in cells}
    return words <= {*TRAIN, *HELD_OUT} and bool(words & {*TRAIN}) and bool(words & {*HELD_OUT})


def labels_in(path: Path, numbers: Sequence[int], cells: Sequence[str]) -> Coded[str] | None:
    """Return the labels of all lines, or None where no line has one. Raises InputError where only some have one."""
    labelled = sum(map(bool, cells))
    if 0 < labelled < len(cells):
        number = next(number for number, cell in zip(numbers, cells, strict=True) if not cell)
        raise InputError(
            f"data: line {number} of '{path}' has no label but {labelled} other lines have one; label all or none"
        )
    return Coded.of(cells) if labelled else None


def splits_in(path: Path, numbers: Sequence[int], cells: Sequence[str]) -> Coded[Part | None]:
    """Return the splits of all lines. Where a list has several words for validation, the first one in `HELD_OUT` is
    "val" and the others are left out."""
    words = [cell.lower() for cell in cells]
    for number, word in zip(numbers, words, strict=True):
        if word not in (*TRAIN, *HELD_OUT):
            raise InputError(f"data: line {number} of '{path}' has {word!r} for its split; give train, val or test")
    out = next((word for word in HELD_OUT if word in words), None)
    return Coded.of("train" if word in TRAIN else "val" if word == out else None for word in words)


def unread(titles: Sequence[str], columns: Sequence[int]) -> list[str]:
    """Return a line that counts the columns that are not read. Those before the path, such as an index, need none."""
    if not columns:
        return []
    named = [titles[at] for at in columns if at < len(titles)]
    return [f"the list has {len(columns)} more columns than are read ({', '.join(named) or 'without a header'})"]


def exists(folder: Path, name: str) -> bool:
    """Return whether a list's path leads to a file."""
    try:
        return bool(name) and (folder / Path(name).expanduser()).is_file()
    except (OSError, ValueError, RuntimeError):  # a line of text that is no path
        return False


def relative(name: str, folder: Path) -> str:
    """Return a path relative to the list's folder where possible, so that a moved data set keeps its names."""
    path = Path(name).expanduser()
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
