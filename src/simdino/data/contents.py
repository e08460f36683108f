"""How a data set was read, in sentences: its splits, what names its classes, and what became of its other files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from simdino.data.files import Skipped
from simdino.data.names import Coded
from simdino.data.splits import NO_FOLDER, Layout, Part, looks_like_split
from simdino.data.stores import Store
from simdino.text import readable

NAMED_AT_MOST = 4
NO_CLASSES = "none: the folders tell no two classes apart"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """How a data set was read."""

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
    store: Store,
    layout: Layout,
    folders: Coded[str],
    splits: Coded[Part | None],
    *,
    by_list: bool,
    classes: Sequence[str],
    file: str | None,
) -> Contents:
    """Return how a data set was read.

    folders, splits: those of the images. by_list: whether a list's column gave the splits. classes: the names of the
    classes, empty without labels. file: the one that names the classes of validation images, if any."""
    left_out: Counter[str] = Counter()
    for folder, count in folders.chosen(splits.where(None)).counts().items():
        left_out[layout.part_of(folder) or folder.split("/")[0] or NO_FOLDER] += count
    elsewhere = in_short([f"{count} in {shown(name)}" for name, count in sorted(left_out.items())])
    counts, images = splits.counts(), folders.counts()
    rule = f"named by {store.labelled_by}" if store.classes is not None else folder_rule(layout, images, file=file)
    return Contents(
        splits=splits_in_words(layout, train=counts.get("train", 0), val=counts.get("val", 0), by_list=by_list)
        + (f"; left out: {elsewhere}" if elsewhere else ""),
        classes=f"{rule}: {in_short(list(map(readable, classes)))}" if classes else NO_CLASSES,
        warnings=(*store.notes, *(() if by_list else overlooked(layout, images))),
        train=layout.train,
        val=layout.val,
        left_out=dict(left_out),
        skipped=store.skipped,
    )


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


def overlooked(layout: Layout, folders: Mapping[str, int]) -> list[str]:
    """Return a line for folders that look like splits but were not taken as such."""
    found: Counter[str] = Counter()
    for folder, count in folders.items():
        path, part = folder.split("/"), layout.part_of(folder)
        start = 0 if part is None else part.count("/") + 1
        end = next((i for i in range(start, len(path)) if looks_like_split(path[i])), None)
        # A split folder may repeat its own name inside, as seg_train/seg_train does.
        if end is not None and (part is None or end > start or path[end].lower() != path[end - 1].lower()):
            found["/".join(path[: end + 1])] += count
    if not found:
        return []
    named = in_short([f"{shown(name)} ({count} images)" for name, count in sorted(found.items())])
    many = len(found) > 1
    return [
        f"{named} look{'' if many else 's'} like {'splits' if many else 'a split'} and {'were' if many else 'was'} not "
        f"taken for {'such' if many else 'one'}; --train FOLDER and --val FOLDER name the splits"
    ]


def shown(folder: str) -> str:
    """Return a folder as people write it, with a slash at its end."""
    return "the top" if folder == NO_FOLDER else f"{readable(folder.rstrip('/'))}/"


def in_short(parts: Sequence[str]) -> str:
    """Return the first few parts, and how many more there are."""
    more = len(parts) - NAMED_AT_MOST
    return ", ".join(parts[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
