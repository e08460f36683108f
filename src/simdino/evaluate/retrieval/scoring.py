"""The layouts that `retrieve` knows: which one a folder has, its settings, and what scores an encoder on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from simdino.contracts import InputError
from simdino.evaluate.layouts import Labelled, as_folder
from simdino.evaluate.retrieval.classes import RetrievalResult, rank_classes
from simdino.evaluate.retrieval.copies import CopiesResult, copies, layout_at
from simdino.evaluate.retrieval.ground_truth import ground_truths
from simdino.evaluate.retrieval.landmarks import LandmarksResult, landmarks
from simdino.evaluate.retrieval.sizes import KS, LONG_SIDE, SQUARE
from simdino.features.extract import extract
from simdino.feedback import Progress
from simdino.models.encoder import Encoder

Scores = RetrievalResult | LandmarksResult | CopiesResult
Scorer = Callable[[Encoder], tuple[Scores, dict[str, str]]]
"""An encoder -> its result, and the broken pictures that were left out."""

SETTINGS: dict[str, dict[str, Any]] = {
    "classes": {"k": KS, "leave_one_out": False},
    "landmarks": {"size": LONG_SIDE, "multiscale": False},
    "copies": {"size": SQUARE},
}
"""The settings that each layout has, and their defaults."""


def kind_of(data: Labelled) -> str:
    """What a folder looks like; open images have classes."""
    if not data.is_folder():
        return "classes"
    root = as_folder(data.data)
    return "landmarks" if ground_truths(root) else "copies" if layout_at(root) else "classes"


def settings_of(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """The layout's settings, as given or by default. Raises InputError for one that would have no effect."""
    asked = {name: value for name, value in given.items() if value}
    for name in asked:
        if name not in SETTINGS[kind]:
            raise InputError(f"--{name.replace('_', '-')} has no effect on data of the layout {kind}: leave it out")
    return SETTINGS[kind] | asked


def scorer_of(kind: str, data: Labelled, settings: dict[str, Any], progress: Progress) -> Scorer:
    """What scores an encoder on data of a layout."""
    if kind == "classes":
        return by_classes(data, progress=progress, **settings)
    protocol, root = landmarks if kind == "landmarks" else copies, as_folder(data.data)
    data.name = root.expanduser().resolve().name

    def score(encoder: Encoder) -> tuple[Scores, dict[str, str]]:
        result = protocol(encoder, root, progress=progress, **settings)
        return result, result.broken

    return score


def by_classes(data: Labelled, *, k: Sequence[int], leave_one_out: bool, progress: Progress) -> Scorer:
    """What scores an encoder on labelled images."""
    sources = [data.all(task="retrieve")] if leave_one_out else [*data.both(task="retrieve")]

    def score(encoder: Encoder) -> tuple[Scores, dict[str, str]]:
        found = [extract(encoder, source, progress=progress) for source in sources]
        return rank_classes(*found, ks=k), {name: why for one in found for name, why in one.broken.items()}

    return score
