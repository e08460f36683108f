"""Which files are images, which name classes, and what becomes of all others: every file of a data set is counted
once.

Two files name the classes of validation images where their folders do not:

val/val_annotations.txt    Tiny ImageNet: file, class and a box in each line, separated by tabs
LOC_val_solution.csv       ImageNet as Kaggle packs it: image without extension, then class and box
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from simdino.data.opening import is_image_name
from simdino.text import readable

LISTS = (".txt", ".lst", ".csv")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
TABLES = (".parquet", ".arrow")
MIXTURE = ".mix"

PICTURES_NOT_OPENED = {
    ".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC", ".avif": "AVIF", ".dng": "raw", ".cr2": "raw", ".cr3": "raw",
    ".nef": "raw", ".arw": "raw", ".orf": "raw", ".raf": "raw", ".rw2": "raw", ".svg": "SVG", ".exr": "OpenEXR",
}  # fmt: skip
"""Extensions of image formats that Pillow never opens, or opens only in some installations."""

SHOWN = 3  # extensions that a line names
TINY, KAGGLE = "val_annotations.txt", "LOC_val_solution.csv"


@dataclass
class Skipped:
    """How many files of a data set are not images, by kind. JSON can hold all values."""

    other: dict[str, int] = field(default_factory=dict)  # files that are no images, by extension
    not_opened: dict[str, int] = field(default_factory=dict)  # images of formats that cannot be opened here
    hidden: int = 0  # files and folders whose names begin with a dot, and by-products of macOS
    no_files: int = 0  # devices, pipes and the like
    dangling: list[str] = field(default_factory=list)  # links to nowhere
    repeated: list[str] = field(default_factory=list)  # further names of an image that is there already
    repeated_folders: list[str] = field(default_factory=list)  # links to a folder that is there already
    closed: dict[str, str] = field(default_factory=dict)  # folders that cannot be listed, and why

    def count(self, name: str) -> None:
        """Count a file that is not an image."""
        last = name.rpartition("/")[2]
        extension = "." + last.rpartition(".")[2].lower() if "." in last.lstrip(".") else ""
        counts = self.not_opened if extension in PICTURES_NOT_OPENED else self.other
        counts[extension] = counts.get(extension, 0) + 1

    def lines(self) -> list[str]:
        """Return one line with the counts, and one for each thing that may be a mistake."""
        plain = [
            (sum(self.other.values()), f"non-images ({by_extension(self.other)})"),
            (self.hidden, "hidden"),
            (self.no_files, "devices or pipes"),
            (len(self.repeated), f"further names of an image (links), first {first(self.repeated)}"),
            (len(self.repeated_folders), f"links to a folder that is there, first {first(self.repeated_folders)}"),
        ]
        counted = ", ".join(f"{count} {words}" for count, words in plain if count)
        found = [f"left out  {counted}"] if counted else []
        if self.not_opened:
            found.append(f"warning: {self.closed_images()}")
        if self.dangling:
            found.append(
                f"warning: {len(self.dangling)} links lead nowhere and are left out, first {readable(self.dangling[0])}"
            )
        if self.closed:
            name, why = next(iter(self.closed.items()))
            found.append(
                f"warning: {len(self.closed)} folders cannot be listed and are left out, first {readable(name)} ({why})"
            )
        return found

    def closed_images(self) -> str:
        """Return how many images are in formats that cannot be opened here, and what to do; empty without any."""
        if not self.not_opened:
            return ""
        formats = sorted({PICTURES_NOT_OPENED[extension] for extension in self.not_opened})
        convert = "convert them to JPEG, PNG or TIFF"
        return (
            f"{sum(self.not_opened.values())} images ({by_extension(self.not_opened)}) are left out: "
            f"{' and '.join(formats)} cannot be opened here; {convert}"
            + (", or for HEIC: pip install 'simdino[heif]'" if "HEIC" in formats else "")
        )


def by_extension(counts: Mapping[str, int]) -> str:
    """Return the counts of the most frequent extensions: "30 .heic, 2 .txt"."""
    named = [f"{count} {extension or 'without extension'}" for extension, count in Counter(counts).most_common(SHOWN)]
    more = len(counts) - SHOWN
    return ", ".join(named) + (f" and {more} other extensions" if more > 0 else "")


def first(names: Iterable[str]) -> str:
    """Return the first name, readable; empty where there is none."""
    return readable(next(iter(names), ""))


def is_hidden(part: str) -> bool:
    """Return whether a file or folder is hidden, or a by-product of macOS."""
    return part.startswith(".") or part == "__MACOSX"


def wanted(name: str, skipped: Skipped) -> bool:
    """Return whether a member of an archive is a visible image file; any other is counted."""
    if any(map(is_hidden, name.split("/"))):
        skipped.hidden += 1
    elif not is_image_name(name):
        skipped.count(name)
    else:
        return True
    return False


def stem(path: Path) -> str:
    """Return the name of a data set: the folder's or file's name without the extension of an archive or list."""
    name = path.resolve().name
    if path.is_dir():
        return name
    endings = sorted((*ARCHIVES, *TABLES, *LISTS, MIXTURE), key=len, reverse=True)
    return next((name[: -len(ending)] for ending in endings if name.lower().endswith(ending)), name)


def names_classes(name: str) -> bool:
    """Return whether a file names the classes of validation images."""
    return name.rpartition("/")[2] in (TINY, KAGGLE)


def annotated(texts: Mapping[str, str], names: Sequence[str]) -> tuple[dict[int, str], str | None]:
    """Return the classes of validation images by their positions in `names`, and the name of the file that gives them.

    texts: the content of files that name classes, by their names. Empty and None where they name none of the images."""
    for file, text in texts.items():
        rows = [line.split("\t" if file.endswith(TINY) else ",") for line in text.splitlines()]
        classes = {PurePosixPath(row[0]).stem: row[1].split()[0] for row in rows if len(row) > 1 and row[1].strip()}
        stems = (PurePosixPath(name).stem for name in names)
        found = {i: classes[stem] for i, stem in enumerate(stems) if stem in classes}
        if found:
            return found, file.rpartition("/")[2]
    return {}, None
