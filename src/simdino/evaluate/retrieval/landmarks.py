"""Landmark retrieval on revisited Oxford and Paris: easy, medium and hard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simdino.evaluate.retrieval.descriptors import described, landmark_descriptor
from simdino.evaluate.retrieval.ground_truth import Truth, open_landmarks
from simdino.evaluate.retrieval.ranking import Ranks, orders, precision_at, ranks_of, trapezoid_precision
from simdino.evaluate.retrieval.sizes import LONG_SIDE
from simdino.feedback import Progress, no_bar
from simdino.models.encoder import Encoder
from simdino.result import Result

SCALES = (1.0, 0.5**0.5, 0.5)
AT = (1, 5, 10)
SETUPS = ("easy", "medium", "hard")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One of easy, medium and hard, in percent, means over its queries."""

    map: float  # mean average precision by the trapezoid rule
    precision: dict[int, float]  # at 1, 5 and 10, or down to the last right answer where it comes sooner
    queries: int  # those that have a right answer in this setup; the others are skipped


@dataclass(frozen=True, kw_only=True)
class LandmarksResult(Result):
    """Scores of a set of landmarks; None for a setup in which no query has a right answer."""

    name: str
    easy: Setup | None
    medium: Setup | None
    hard: Setup | None
    queries: int
    database: int  # pictures ranked
    broken: dict[str, str]  # pictures left out, and why: in the database they are never found

    def __str__(self) -> str:
        setups = [(name, getattr(self, name)) for name in SETUPS]
        told = ", ".join(
            f"{name} mAP {one.map:.2f} % (mP@10 {one.precision[10]:.1f} %, {one.queries} queries)"
            for name, one in setups
            if one is not None
        )
        return f"{told or 'no query has a right answer'}, {self.database} pictures of {self.name}"


def landmarks(
    encoder: Encoder, data: str | Path, *, size: int = LONG_SIDE, multiscale: bool = False, progress: Progress = no_bar
) -> LandmarksResult:
    """Rank a database of buildings for each query by the cosine of class tokens: DINO's eval_image_retrieval.py at
    7c446df.

    data: see `ground_truth`. size: long side in pixels; a picture keeps its proportions and is never enlarged.
    multiscale: mean of the class tokens at 1, 1/√2 and 1/2 of it. Queries are whole pictures, as in DINO: their boxes
    are not cut out. progress: given the pictures.

    Raises InputError for another layout, missing pictures, and a ground truth that holds more than plain values."""
    found = open_landmarks(data)
    describe = landmark_descriptor(encoder, size=size, scales=SCALES if multiscale else (1.0,))
    database = described(describe, found.database, encoder, what=f"pictures of {found.name}", progress=progress)
    queries = described(describe, found.queries, encoder, what="queries", progress=progress)
    positions = np.array(database.kept)
    worth: dict[str, list[list[float]]] = {name: [] for name in SETUPS}
    for i, order in zip(queries.kept, orders(database.vectors, queries.vectors), strict=True):
        for name, right, junk in setups_of(found.truth[i]):
            if len(right):
                ranks = ranks_of(positions[order], right, junk)
                worth[name].append([trapezoid_precision(ranks, len(right)), *(precision_at(ranks, k) for k in AT)])
    setups = {name: setup(rows) for name, rows in worth.items()}
    return LandmarksResult(
        name=found.name, **setups, queries=len(queries.kept), database=len(positions),
        broken=database.broken | queries.broken,
    )  # fmt: skip


def setups_of(truth: Truth) -> list[tuple[str, Ranks, Ranks]]:
    """(setup, right answers, junk) of a query: what is junk is neither right nor wrong."""
    easy, hard, junk = truth.easy, truth.hard, truth.junk
    return [
        ("easy", easy, np.concatenate([junk, hard])),
        ("medium", np.concatenate([easy, hard]), junk),
        ("hard", hard, np.concatenate([junk, easy])),
    ]


def setup(rows: list[list[float]]) -> Setup | None:
    """Means over queries of [average precision, precision at 1, 5, 10]."""
    if not rows:
        return None
    average, *at = (100 * np.mean(rows, axis=0)).tolist()
    return Setup(map=average, precision=dict(zip(AT, at, strict=True)), queries=len(rows))
