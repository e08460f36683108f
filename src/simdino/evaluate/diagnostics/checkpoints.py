"""The checkpoints that a run kept, measured without labels: do the monitors order them as k-NN does?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.evaluate.diagnostics.monitors import Health, measure
from simdino.feedback import Progress
from simdino.models.encoder import Encoder
from simdino.result import Result
from simdino.runs.checkpoints import checkpoints, step_of, teacher_encoder
from simdino.saved import read_rows

FEWEST = 4  # checkpoints with a score: of three, a random order agrees once in three


@dataclass(frozen=True, kw_only=True)
class History(Result):
    """The monitors of each kept checkpoint, and how they rank the checkpoints beside k-NN."""

    healths: dict[int, Health]  # by step
    knn: dict[int, float]  # percent, of those of the steps that were scored while training
    rank_correlation: dict[str, float] | None  # of each monitor with k-NN over these steps (Spearman), -1 to 1
    note: str  # why there is none, or of how many checkpoints it is

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "checkpoints": [{"step": s, "knn": self.knn.get(s), **h.as_dict()} for s, h in self.healths.items()],
            "rank_correlation": self.rank_correlation,
            "note": self.note,
        }

    def __str__(self) -> str:
        columns = {s: monitors(h) for s, h in self.healths.items()}
        names = dict.fromkeys(name for column in columns.values() for name in column)
        lines = [f"{'step':<22}" + "".join(f"{step:>10}" for step in columns)]
        lines += ["k-NN".ljust(22) + "".join(cell(self.knn.get(step)) for step in columns)]
        found = self.rank_correlation or {}
        for name in names:
            numbers = "".join(cell(column.get(name)) for column in columns.values())
            lines.append(f"{name:<22}{numbers}" + (f"   {found[name]:+.2f}" if name in found else ""))
        return "\n".join([*lines, self.note])


def cell(value: float | None) -> str:
    """A number in a table."""
    return f"{'-' if value is None else format(value, '.3g'):>10}"


def monitors(health: Health) -> dict[str, float]:
    """The monitors that are one number, and the between-view share at the output."""
    named = health.scores() | {"between_view_share": health.between_view_share[-1]}
    return {name: float(value) for name, value in named.items() if isinstance(value, int | float)}


def compare_checkpoints(
    encoder: Encoder, run: Path, source: Source, *, progress: Progress, **settings: Any
) -> History:  # fmt: skip
    """`monitors.measure` of the teacher's encoder in every checkpoint that a run kept, on the same images and views.

    encoder: of the run; it gets the weights of the last checkpoint. settings: see `measure`. Raises InputError for a
    folder without checkpoints."""
    kept = checkpoints(run)
    if not kept:
        raise InputError(f"{run} has no checkpoints to compare: give a run folder, without --checkpoints any encoder")
    healths: dict[int, Health] = {}
    for checkpoint in progress(kept, "checkpoints", len(kept)):
        try:
            encoder.load_state_dict(teacher_encoder(checkpoint))
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            raise InputError(f"checkpoint {checkpoint} does not fit the run's encoder: {why}") from None
        healths[step_of(checkpoint)] = measure(encoder, source, **settings)
    return compared(healths, scores_of(run))


def scores_of(run: Path) -> dict[int, float]:
    """The k-NN of a run by step, as logged while it trained."""
    return {row["step"]: row["knn"] for row in read_rows(run / "metrics.jsonl") if row.get("knn") is not None}


def compared(healths: Mapping[int, Health], knn: Mapping[int, float]) -> History:
    """The monitors beside k-NN, and the rank correlation of each over the steps that have both."""
    scored = [step for step in healths if step in knn]
    correlation: dict[str, float] | None = None
    note = (
        f"{len(scored)} of {len(healths)} kept checkpoints have a k-NN score; a rank correlation needs {FEWEST}: train "
        f"with --keep 10"
    )
    if len(scored) >= FEWEST:
        note = f"Last column: Spearman's rank correlation with k-NN over {len(scored)} checkpoints."
        rows = [monitors(healths[step]) for step in scored]
        everywhere = [name for name in rows[0] if all(name in row for row in rows)]  # alpha may be missing
        correlation = spearman({name: [row[name] for row in rows] for name in everywhere}, [knn[s] for s in scored])
    return History(
        healths=dict(healths), knn={step: knn[step] for step in scored}, rank_correlation=correlation, note=note
    )


def spearman(series: Mapping[str, Sequence[float]], against: Sequence[float]) -> dict[str, float]:
    """Spearman's rank correlation of each series with one; those that do not vary, or are not finite, are left out."""
    from scipy.stats import rankdata

    varied = {name: values for name, values in series.items() if len(set(values)) > 1 and all(map(isfinite, values))}
    if len(set(against)) < 2:
        return {}
    return {name: float(np.corrcoef(rankdata(values), rankdata(against))[0, 1]) for name, values in varied.items()}
