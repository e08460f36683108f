"""Retrieval: what lies nearest to each query, on labelled images, on landmarks and on copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from simdino.evaluate.layouts import Labelled, Layout
from simdino.evaluate.protocol import as_protocol
from simdino.evaluate.retrieval.sizes import KS, LONG_SIDE, SQUARE
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import AT_LEAST_1, PIXELS, Option
from simdino.result import Table

if TYPE_CHECKING:
    from simdino.evaluate.retrieval.scoring import Scores
    from simdino.models.encoder import Encoder

PICTURES = Layout(text="Pictures.", open=Labelled, folders=True)


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
    each a query to all others; "landmarks" see `ground_truth`; "copies" see `copies`; "auto" looks which.

    Raises InputError for a setting that the layout has no use for, and as the layouts' own functions do."""
    from simdino.evaluate.baselines import compared
    from simdino.evaluate.retrieval.scoring import kind_of, scorer_of, settings_of
    from simdino.features.extract import check_size

    kind = kind_of(data) if layout == "auto" else layout
    given = {"k": k, "leave_one_out": leave_one_out, "size": size, "multiscale": multiscale}
    settings = settings_of(kind, given)
    score = scorer_of(kind, data, settings, progress)
    check_size(encoder, size if kind == "copies" else None)
    found = {name: score(one) for name, one in compared(encoder, baselines=baselines)}
    rows = {name: [result] for name, (result, _) in found.items()}
    return Table(rows=rows, each=({"layout": kind, **settings},), broken=found["encoder"][1])
