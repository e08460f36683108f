"""How a data set was read, in sentences: its splits, what names its classes, and what became of its other files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from simdino.data.files import Skipped
from simdino.data.splits import NO_FOLDER, Layout, Part, looks_like_split
from simdino.text import readable

NAMED_AT_MOST = 4


@dataclass(frozen=True, kw_only=True)
class Contents:
    """How a data set was read. `lines` tells it to a person."""

    splits: str  # which folders are splits
    classes: str  # what names a class
    warnings: tuple[str, ...] = ()
    train: str | None = None  # the folder of training images; None where it has none of its own
    val: str | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)  # images outside of both splits, by folder
    skipped: Skipped = field(default_factory=Skipped)  # files that are no images

    def lines(self) -> list[str]:
        """Return lines for splits, classes, what is left out and what deserves a second look."""
        found = [f"splits    {self.splits}", f"classes   {self.classes}", *self.skipped.lines()]
        return found + [f"warning: {text}" for text in self.warnings]


def contents_of(
    folders: Sequence[str],
    layout: Layout,
    splits: Sequence[Part | None],
    *,
    by_list: bool,
    classes: Sequence[str],
    class_rule: str | None,
    file: str | None,
    skipped: Skipped,
    notes: Sequence[str],
) -> Contents:
    """Return how a data set was read.

    folders, splits: of each image, its folder and split. by_list: whether a list's column gave the splits. classes: the
    names of the classes, empty without labels. class_rule: what names them, where folders do not. file: the file that
    names those of validation images, where there is one. skipped: the other files. notes: further warnings."""
    left_out = Counter(
        first_folder(folder, layout) for folder, split in zip(folders, splits, strict=True) if split is None
    )
    counts, images = Counter(splits), Counter(folders)
    return Contents(
        splits=splits_in_words(layout, train=counts["train"], val=counts["val"], by_list=by_list)
        + left_out_in_words(left_out),
        classes=classes_in_words(classes, class_rule or folder_rule(layout, images, file=file)),
        warnings=(*notes, *(() if by_list else overlooked(layout, images))),
        train=layout.train,
        val=layout.val,
        left_out=dict(left_out),
        skipped=skipped,
    )


def first_folder(folder: str, layout: Layout) -> str:
    """Return the folder under which an image outside of the splits is counted."""
    return layout.part_of(folder) or folder.split("/", maxsplit=1)[0] or NO_FOLDER


def splits_in_words(layout: Layout, *, train: int, val: int, by_list: bool) -> str:
    """Return where training and validation images come from. train, val: how many there are, by a list's column."""
    if by_list:
        return f"the list's own column: {train} for training, {val} for validation"
    if layout.train is not None and layout.val is not None:
        return f"{shown(layout.train)} is for training, {shown(layout.val)} for validation"
    if layout.val is not None:
        return f"{shown(layout.val)} is for validation, everything else for training"
    if layout.train is not None:
        return f"{shown(layout.train)} is for training, but a tenth, chosen by a hash of the names, for validation"
    return "no split folders: a tenth, chosen by a hash of the images' names, is for validation"


def left_out_in_words(left_out: Mapping[str, int]) -> str:
    """Return which folders' images are in neither split."""
    if not left_out:
        return ""
    parts = [f"{count} in {shown(name)}" for name, count in sorted(left_out.items())]
    return f"; left out: {in_short(parts)}"


def folder_rule(layout: Layout, folders: Mapping[str, int], *, file: str | None) -> str:
    """Return which folder in a path names a class. file: the file that names those of validation images."""
    if file is not None:
        return f"named by the first folder below {shown(layout.train or NO_FOLDER)}, of validation images by {file}"
    if layout.letters:
        return "named by the path below the folders of letters"
    depth = layout.class_depth
    where = "below each split" if layout.train is not None else f"below {shown(layout.top or NO_FOLDER)}"
    if depth is not None and depth < 0:
        return f"named by folder {-depth} from the image (--class-depth {depth}), wherever it lies"
    if depth is not None and depth > 1:
        return f"named by the first {depth} folders {where} (--class-depth {depth})"
    rule = f"named by the first folder {where}"
    deeper = sorted({folder.split("/")[-1] for folder in folders if layout.below_class(folder)})
    if not deeper or depth == 1:
        return rule
    return f"{rule}; folders below that name none ({in_short(deeper)}): --class-depth 2 or -1 counts them"


def classes_in_words(classes: Sequence[str], rule: str) -> str:
    """Return which rule names the classes, and the first few of them."""
    if not classes:
        return "none: the folders tell no two classes apart"
    return f"{rule}: {in_short([readable(name) for name in classes])}"


def overlooked(layout: Layout, folders: Mapping[str, int]) -> list[str]:
    """Return a line for folders that look like splits but were not taken as such."""
    found: Counter[str] = Counter()
    for folder, count in folders.items():
        part = layout.part_of(folder)
        inner = folder if part is None else folder[len(part) + 1 :]
        path = inner.split("/") if inner else []
        # Below a split folder, such a name is a folder of images like any other unless it stands first there.
        end = next((i for i, name in enumerate(path) if looks_like_split(name)), None)
        if end is not None and not (part is not None and end == 0 and split_again(part, path[0])):
            found["/".join([*([part] if part else []), *path[: end + 1]])] += count
    if not found:
        return []
    named = in_short([f"{shown(name)} ({count} images)" for name, count in sorted(found.items())])
    many = len(found) > 1
    return [
        f"{named} look{'' if many else 's'} like {'splits' if many else 'a split'} and {'were' if many else 'was'} not "
        f"taken for {'such' if many else 'one'}; --train FOLDER and --val FOLDER name the splits"
    ]


def split_again(part: str, inner: str) -> bool:
    """Return whether a folder repeats the name of the split folder it lies in, as seg_train/seg_train does."""
    return part.rsplit("/", maxsplit=1)[-1].lower() == inner.lower()


def shown(folder: str) -> str:
    """Return a folder as people write it, with a slash at its end."""
    return "the top" if folder == NO_FOLDER else f"{readable(folder.rstrip('/'))}/"


def in_short(parts: Sequence[str]) -> str:
    """Return the first few parts, and how many more there are."""
    more = len(parts) - NAMED_AT_MOST
    return ", ".join(parts[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
