"""The table of `simdino evaluate ENCODER retrieve`: a saved encoder on whichever layout the data have, kept in its
run's folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from simdino.contracts import InputError
from simdino.data.sources import DataPath, open_dataset
from simdino.evaluate.baselines import random_twin
from simdino.evaluate.classification.knn_scores import both_splits, check_labels
from simdino.evaluate.retrieval.classes import KS, RetrievalResult, retrieve
from simdino.evaluate.retrieval.copies import SIZE as SQUARE
from simdino.evaluate.retrieval.copies import CopiesResult, copies, layout_at
from simdino.evaluate.retrieval.ground_truth import ground_truths
from simdino.evaluate.retrieval.landmarks import SIZE as LONG_SIDE
from simdino.evaluate.retrieval.landmarks import LandmarksResult, landmarks
from simdino.features.dense import check_size
from simdino.features.extract import Progress, extract, unwatched
from simdino.models.encoder import Encoder
from simdino.models.weights import load_encoder, to_stderr
from simdino.precision import present_device
from simdino.runs.evaluations import asked_data, keep_scores

Layout = Literal["auto", "classes", "landmarks", "copies"]
Result = RetrievalResult | LandmarksResult | CopiesResult
Scorer = Callable[[Encoder], tuple[Result, dict[str, str]]]
"""An encoder -> its result, and the broken pictures that were left out."""

SETTINGS: dict[str, dict[str, Any]] = {
    "classes": {"k": KS, "leave_one_out": False},
    "landmarks": {"size": LONG_SIDE, "multiscale": False},
    "copies": {"size": SQUARE},
}
"""The settings that each layout has, and their defaults."""


def evaluate_retrieve(
    encoder: str,
    data: str | DataPath | None,
    *,
    layout: Layout = "auto",
    ks: Sequence[int] = (),
    leave_one_out: bool = False,
    size: int | None = None,
    multiscale: bool = False,
    baselines: bool = False,
    device: str = "auto",
    log: Callable[[str], None] = to_stderr,
    progress: Progress = unwatched,
) -> dict[str, Result]:
    """Retrieval by a saved encoder, and with `baselines` by the same encoder at random initialisation. Kept in
    evaluations.jsonl where `encoder` is a run folder.

    data: what the run was trained on unless given. layout: "classes" are labelled images, the held-out ones queries to
    the training images, or with leave_one_out each to all others; "landmarks" see `ground_truth`; "copies" see
    `copies`; "auto" looks which. ks, leave_one_out: of classes; ks 1, 5, 10 unless given. size: of landmarks (long side
    in pixels, 224 unless given) and copies (square, 320). multiscale: of landmarks. log: called with a line for each
    broken picture.

    Raises InputError for a setting that the layout has no use for, and as the layouts' own functions do."""
    where = asked_data(encoder, data)
    kind = layout_of(str(where)) if layout == "auto" else layout
    given = {"k": tuple(ks), "leave_one_out": leave_one_out, "size": size, "multiscale": multiscale}
    settings = settings_of(kind, given)
    score, name, counted = scorer_of(kind, where, settings, progress)
    trained = load_encoder(encoder).to(present_device(device))
    check_size(trained, size if kind == "copies" else None)
    encoders = {"encoder": trained}
    if baselines:
        encoders["random initialisation"] = random_twin(trained).to(present_device(device))
    table: dict[str, Result] = {}
    for title, one in encoders.items():
        table[title], broken = score(one)
        for picture, why in broken.items() if title == "encoder" else ():  # the same pictures for every encoder
            log(f"left out {picture}: {why}")
    keep_scores(
        encoder, protocol="retrieve", where=where, name=name, counted=counted, settings={"layout": kind, **settings},
        results={title: result.as_dict() for title, result in table.items()},
        said="\n".join(f"{title:<24}{result}" for title, result in table.items()), log=log,
    )  # fmt: skip
    return table


def layout_of(where: str) -> str:
    """What a folder looks like."""
    if not Path(where).expanduser().is_dir():
        return "classes"
    return "landmarks" if ground_truths(where) else "copies" if layout_at(where) else "classes"


def settings_of(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """The layout's settings, as given or by default. Raises InputError for one that would have no effect, and for an
    unknown layout."""
    if kind not in SETTINGS:
        raise InputError(f"layout '{kind}' is not one of auto, {', '.join(SETTINGS)}")
    asked = {name: value for name, value in given.items() if value}
    for name in asked:
        if name not in SETTINGS[kind]:
            raise InputError(f"--{name.replace('_', '-')} has no effect on data of the layout {kind}: leave it out")
    return SETTINGS[kind] | asked


def scorer_of(
    kind: str, where: DataPath, settings: dict[str, Any], progress: Progress
) -> tuple[Scorer, str, dict[str, int]]:
    """What scores an encoder, the data's name, and how many images they have where they may be a run's own."""
    if kind == "classes":
        return by_classes(where, progress=progress, **settings)
    protocol = landmarks if kind == "landmarks" else copies

    def score(encoder: Encoder) -> tuple[Result, dict[str, str]]:
        result = protocol(encoder, str(where), progress=progress, **settings)
        return result, result.broken

    return score, Path(str(where)).expanduser().resolve().name, {}


def by_classes(
    where: DataPath, *, k: Sequence[int], leave_one_out: bool, progress: Progress
) -> tuple[Scorer, str, dict[str, int]]:
    """`scorer_of` labelled images."""
    sources = [open_dataset(where)] if leave_one_out else [*both_splits(where)]
    check_labels(where, sources)

    def score(encoder: Encoder) -> tuple[Result, dict[str, str]]:
        found = [extract(encoder, source, progress=progress) for source in sources]
        return retrieve(*found, ks=k), {name: why for one in found for name, why in one.broken.items()}

    counted = {} if leave_one_out else {"train_images": len(sources[0]), "held_out_images": len(sources[1])}
    return score, sources[0].name, counted
