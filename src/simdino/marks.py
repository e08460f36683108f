"""Marks that a run must have reached by a step, or it ends there: "knn 40 at 2000"."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from simdino.errors import InputError
from simdino.settings import plain, shown
from simdino.text import nearest

METRICS = {"knn": "k-NN", "feature_rank": "the rank of the features"}
"""What evaluations of a run measure of its encoder, and what that is called."""

NEVER = "never"
"""Stands for no mark, where a run goes on that had one."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The run ends at its first evaluation at or after `step` where `metric` is below `value` then."""

    metric: str
    value: float
    step: int

    def __str__(self) -> str:
        return f"{self.metric} {plain(self.value)} at {self.step}"


def read_marks(texts: Sequence[str] | None) -> list[Mark]:
    """Return the marks that texts say. Raises InputError for a text that says none, or of what nothing measures."""
    return [read_mark(text) for text in texts or () if text.strip() != NEVER]


def read_mark(text: str) -> Mark:
    """Return the mark that a text says, see `read_marks`."""
    found = re.fullmatch(r"(\w+) +(\d+(?:\.\d+)?) +at +(\d+)", text.strip())
    if found is None:
        raise InputError(f"--stop-below {shown(text)} must be METRIC VALUE at STEP, such as 'knn 40 at 2000'")
    metric, value, step = found.groups()
    if metric not in METRICS:
        known = " or ".join(METRICS)
        raise InputError(f"--stop-below {shown(text)}: an evaluation measures {known}{nearest(metric, METRICS)}")
    return Mark(metric=metric, value=float(value), step=int(step))


def out_of_reach(texts: Sequence[str] | None, *, steps: int, every: int, labelled: bool) -> str | None:
    """Return why a mark can never end a run of so many steps that is evaluated `every` so many; None where all can.

    labelled: whether there are labels to score k-NN by."""
    for mark in read_marks(texts):
        evaluated = every * max(1, -(-mark.step // every))
        if mark.metric == "knn" and not labelled:
            return f"--stop-below '{mark}': there are no labels, so no k-NN; give feature_rank"
        if evaluated >= steps:
            return (
                f"--stop-below '{mark}': the first evaluation from that step on is the last, after {steps} steps, "
                f"where nothing is left to stop; the run is evaluated every {every} steps (--evaluate-every)"
            )
    return None
