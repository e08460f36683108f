"""Retrieval: what lies nearest to each query, on labelled images, on landmarks and on copies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from simdino.errors import InputError
from simdino.evaluate.layouts import Labelled, Layout, as_folder
from simdino.evaluate.protocol import as_protocol
from simdino.evaluate.retrieval import KS, LONG_SIDE, SQUARE
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import AT_LEAST_1, PIXELS, Option
from simdino.result import Table

if TYPE_CHECKING:
    from simdino.evaluate.retrieval.classes import RetrievalResult
    from simdino.evaluate.retrieval.copies import CopiesResult
    from simdino.evaluate.retrieval.landmarks import LandmarksResult
    from simdino.models.encoder import Encoder

    Scores = RetrievalResult | LandmarksResult | CopiesResult

PICTURES = Layout(text="Pictures.", open=Labelled, folders=True)
SETTINGS: dict[str, dict[str, Any]] = {
    "classes": {"k": KS, "leave_one_out": False},
    "landmarks": {"size": LONG_SIDE, "multiscale": False},
    "copies": {"size": SQUARE},
}
"""The settings that each layout has, and their defaults."""


@as_protocol(PICTURES, example="retrieve runs/photos --data photos/ --k 5")
def retrieve(
    encoder: Encoder, data: Labelled, *,
    layout: Annotated[Literal["auto", "classes", "landmarks", "copies"], Option(
        "Class folders, revisited Oxford or Paris (gnd_*.pkl), or originals/ and copies/; auto looks."
    )] = "auto",
    k: Annotated[tuple[int, ...], Option(
        "Classes: precision at k, several as --k 1 --k 5.", AT_LEAST_1, ", ".join(map(str, KS))
    )] = (),
    leave_one_out: Annotated[
        bool, Option("Classes: each image against all the others, no validation queries.")
    ] = False,
    size: Annotated[int | None, Option(
        "Pixels.", PIXELS, f"landmarks {LONG_SIDE} (long side), copies {SQUARE} (square)"
    )] = None,
    multiscale: Annotated[bool, Option("Landmarks: mean over the scales 1, 1/√2, 1/2.")] = False,
    baselines: Annotated[bool, Option("Random initialisation beside it.", result=False)] = False,
    log: Log = to_stderr, progress: Progress = no_bar,
) -> Table[Scores]:  # fmt: skip
    """Retrieval: mean average precision of what lies nearest to each query.

    layout: "classes" are labelled images, those of validation queries to the training images, or with leave_one_out
    each a query to all others; "landmarks" and "copies" see the modules of these names; "auto" looks which.

    Raises InputError for a setting that the layout has no use for, and as the layouts' own functions do."""
    from simdino.evaluate.baselines import compared
    from simdino.features.extract import check_size

    kind = kind_of(data) if layout == "auto" else layout
    given = {"k": k, "leave_one_out": leave_one_out, "size": size, "multiscale": multiscale}
    asked = {name: value for name, value in given.items() if value}
    for name in asked:
        if name not in SETTINGS[kind]:
            raise InputError(f"--{name.replace('_', '-')} has no effect on data of the layout {kind}: leave it out")
    settings = SETTINGS[kind] | asked
    score = scorer_of(kind, data, settings, progress)
    check_size(encoder, size if kind == "copies" else None)
    rows = {name: [score(one)] for name, one in compared(encoder, baselines=baselines)}
    return Table(rows=rows, each=({"layout": kind, **settings},), broken=rows["encoder"][0].broken)


def kind_of(data: Labelled) -> str:
    """What a folder looks like; open images have classes."""
    from simdino.evaluate.retrieval.copies import layout_at
    from simdino.evaluate.retrieval.landmarks import ground_truths

    if not data.is_folder():
        return "classes"
    root = as_folder(data.data)
    return "landmarks" if ground_truths(root) else "copies" if layout_at(root) else "classes"


def scorer_of(kind: str, data: Labelled, settings: dict[str, Any], progress: Progress) -> Callable[[Encoder], Scores]:
    """What scores an encoder on data of a layout."""
    from simdino.evaluate.retrieval.classes import rank_classes
    from simdino.evaluate.retrieval.copies import copies
    from simdino.evaluate.retrieval.landmarks import landmarks
    from simdino.features.extract import extract

    if kind == "classes":
        sources = (data.all(task="retrieve"),) if settings["leave_one_out"] else data.both(task="retrieve")
        return lambda one: rank_classes(*(extract(one, s, progress=progress) for s in sources), ks=settings["k"])
    root = as_folder(data.data)
    data.name = root.expanduser().resolve().name
    return partial(landmarks if kind == "landmarks" else copies, data=root, progress=progress, **settings)
