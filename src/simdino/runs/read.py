"""Read a run folder, for reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any, TypeGuard

from simdino.contracts import InputError
from simdino.methods import METHODS
from simdino.runs.evaluations import FILE, fingerprint
from simdino.runs.folder import read_broken
from simdino.runs.verdict import Verdict, judge
from simdino.saved import METRICS, RunMetadata, read_lines, read_metadata, read_rows

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Run:
    """The content of a run folder, and the verdict on it."""

    name: str
    folder: Path
    metadata: RunMetadata  # config.json
    settings: dict[str, Any]  # its configuration, the data found and the origin, flat: {"loss.eps": 0.5}
    rows: list[dict[str, Any]]  # metrics.jsonl
    speed: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    weights: str | None  # the fingerprint of encoder.safetensors
    broken: list[tuple[str, str]]  # file, reason
    verdict: Verdict
    colour: str

    @property
    def start(self) -> str:
        """What the encoder was before step 1."""
        return "random init" if self.settings.get("run.init") is None else "given weights"


def read_run(folder: Path, colour: str) -> Run:
    """Return the run in a folder. Raises InputError where the folder is not a run or its files are damaged."""
    if not folder.is_dir():
        raise InputError(f"report: {folder} is not a folder; give a run folder, as `simdino pretrain` writes it")
    metadata = read_metadata(folder)
    rows = read_rows(folder / METRICS)
    if not rows:
        raise InputError(f"report: {folder / METRICS} is empty or missing; the run has measured nothing yet")
    origin = {"simdino": metadata.simdino, "source_revision": metadata.source_revision, "machine": metadata.machine}
    evaluations = [row for row, _ in read_lines(folder / FILE)]
    return Run(
        name=folder.resolve().name,
        folder=folder,
        metadata=metadata,
        settings=_flat(metadata.config.as_dict()) | _flat({"dataset": metadata.data, "origin": origin}),
        rows=rows,
        speed=read_rows(folder / "speed.jsonl"),
        evaluations=evaluations,
        weights=fingerprint(folder) if evaluations else None,
        broken=list(read_broken(folder).items()),
        verdict=judge(rows, METHODS[metadata.config.run.method]),
        colour=colour,
    )


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix.rstrip("."): config}
    return {key: value for name, inner in config.items() for key, value in _flat(inner, f"{prefix}{name}.").items()}


def dataset(run: Run) -> str:
    """Return the name of the run's data."""
    return str(run.settings.get("dataset.name") or run.name)


def words(run: Run) -> str:
    """Return method, encoder and name of a run."""
    named = [str(run.settings[key]) for key in ("run.method", "encoder.name") if run.settings.get(key)]
    return " · ".join([*named, f"run {run.name}"])


def key_numbers(run: Run) -> dict[str, float]:
    """Return the key numbers that the run folder has, by name."""
    found: dict[str, float] = {}
    knn = series(run.rows, "knn")
    if knn:
        best = max(knn, key=lambda point: point[1])
        found |= {"knn_end": knn[-1][1], "knn_end_step": knn[-1][0], "knn_best": best[1], "knn_best_step": best[0]}
        if knn[0][0] == 0:
            found["knn_start"] = knn[0][1]
    for key in ("knn_pixels", "expansion_fraction", "effective_rank", "step"):
        points = series(run.rows, key)
        if points:
            found[key] = points[-1][1]
    for key in ("images_per_second", "data_wait"):
        points = series(run.speed, key)
        if points:
            found[key] = median(value for _, value in points)
    seconds = [row["seconds"] for row in run.speed if is_number(row.get("seconds"))]
    if seconds:  # a resumed run starts its clock again
        found["seconds"] = sum(b - a if b >= a else b for a, b in zip([0, *seconds], seconds, strict=False))
    broken = run.settings.get("dataset.broken")
    found["broken"] = broken if isinstance(broken, int) else len(run.broken)
    return found


def series(rows: Iterable[Mapping[str, Any]], key: str, *, along: str = "step") -> list[Point]:
    """Return the finite values of `key` in order of the step. Of two rows for one step (a resumed run) the later
    counts."""
    found: dict[float, float] = {}
    for row in rows:
        if is_number(row.get(along)) and is_number(row.get(key)):
            found[row[along]] = row[key]
    return sorted(found.items())


def is_number(value: object) -> TypeGuard[float]:
    """Return whether the value is a finite number and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
