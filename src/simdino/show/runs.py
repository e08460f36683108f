"""What a run folder says. Reads its files and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any, TypeGuard

from simdino.contracts import InputError
from simdino.evaluate.health import Verdict, judge
from simdino.evaluate.records import FILE, fingerprint
from simdino.train.folder import read_broken

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder says, and the verdict on it."""

    name: str
    folder: Path
    facts: dict[str, Any]  # config.json
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
        """What its encoder was before step 1."""
        return "random init" if self.settings.get("run.init") is None else "given weights"


def read_run(folder: Path, colour: str) -> Run:
    """The run in a folder. Raises InputError for a folder that is none, or whose files are damaged."""
    if not folder.is_dir():
        raise InputError(f"report: {folder} is not a folder; give a run folder, as `simdino pretrain` writes it")
    for name in ("config.json", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise InputError(f"report: {folder} has no {name}; give a run folder, as `simdino pretrain` writes it")
    try:
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"report: {folder / 'config.json'} is not JSON: {error}") from None
    if not isinstance(facts, dict):
        raise InputError(f"report: {folder / 'config.json'} holds no JSON object")
    rows = _json_lines(folder / "metrics.jsonl")
    if not rows:
        raise InputError(f"report: {folder / 'metrics.jsonl'} is empty; the run has measured nothing yet")
    config, data = facts.get("config"), facts.get("data")
    origin = {key: facts[key] for key in ("simdino", "source_revision", "machine") if key in facts}
    speed, scored = folder / "speed.jsonl", folder / FILE
    evaluations = _json_lines(scored) if scored.is_file() else []
    return Run(
        name=folder.resolve().name,
        folder=folder,
        facts=facts,
        settings=_flat(config if isinstance(config, dict) else {})
        | _flat({"dataset": data if isinstance(data, dict) else {"name": data}, "origin": origin}),
        rows=rows,
        speed=_json_lines(speed) if speed.is_file() else [],
        evaluations=evaluations,
        weights=fingerprint(folder) if evaluations else None,
        broken=list(read_broken(folder).items()),
        verdict=judge(rows),
        colour=colour,
    )


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file. The last line may be cut off: the run may be writing it now."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows: list[dict[str, Any]] = []
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif any(lines[i + 1 :]):
            raise InputError(f"report: line {i + 1} of {path} is not a JSON object")
    return rows


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix.rstrip("."): config}
    return {key: value for name, inner in config.items() for key, value in _flat(inner, f"{prefix}{name}.").items()}


def dataset(run: Run) -> str:
    """The name of its data."""
    return str(run.settings.get("dataset.name") or run.name)


def words(run: Run) -> str:
    """Method, encoder and name."""
    named = [str(run.settings[key]) for key in ("run.method", "encoder.name") if run.settings.get(key)]
    return " · ".join([*named, f"run {run.name}"])


def key_numbers(run: Run) -> dict[str, float]:
    """The key numbers that the run folder has, by name."""
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
    """The finite values of `key` in order of the step. Of two lines for one step (a resumed run) the later counts."""
    found: dict[float, float] = {}
    for row in rows:
        if is_number(row.get(along)) and is_number(row.get(key)):
            found[row[along]] = row[key]
    return sorted(found.items())


def is_number(value: object) -> TypeGuard[float]:
    """A finite number, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
