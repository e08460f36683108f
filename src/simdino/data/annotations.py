"""Files that name the classes of validation images where their folders do not: those of Tiny ImageNet and ImageNet.

val/val_annotations.txt    Tiny ImageNet: file, class and a box in each line, separated by tabs
LOC_val_solution.csv       ImageNet as Kaggle packs it: image without extension, then class and box
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

TINY, KAGGLE = "val_annotations.txt", "LOC_val_solution.csv"


def names_classes(name: str) -> bool:
    """Return whether a file is one of those."""
    return name.rpartition("/")[2] in (TINY, KAGGLE)


def as_text(content: bytes) -> str:
    """Return a file's content; bytes that are not UTF-8 are replaced, since no class name has any."""
    return content.decode("utf-8", errors="replace")


def annotated(texts: Mapping[str, str], names: Sequence[str]) -> tuple[dict[int, str], str | None]:
    """Return the classes of validation images by their positions in `names`, and the name of the file that gives them.

    texts: the content of such files, by name. Empty and None where they name none of the images."""
    for file, text in texts.items():
        classes = by_stem(text, separator="\t" if file.endswith(TINY) else ",")
        stems = (PurePosixPath(name).stem for name in names)
        found = {i: classes[stem] for i, stem in enumerate(stems) if stem in classes}
        if found:
            return found, file.rpartition("/")[2]
    return {}, None


def by_stem(text: str, *, separator: str) -> dict[str, str]:
    """Return the class of each file, by its name without extension."""
    rows = (line.split(separator) for line in text.splitlines())
    return {PurePosixPath(row[0]).stem: row[1].split()[0] for row in rows if len(row) > 1 and row[1].strip()}
