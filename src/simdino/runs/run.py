"""A run, as its folder holds it: what it reached, as values, as lines and as the numbers of a report."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any, TypeGuard

from simdino.config import Config
from simdino.contracts import InputError
from simdino.methods import METHODS
from simdino.models.encoder import Encoder
from simdino.models.weights import load_encoder
from simdino.runs.evaluations import FILE, fingerprint
from simdino.runs.folder import read_broken
from simdino.runs.given import conclude
from simdino.runs.verdict import Verdict
from simdino.saved import METRICS, RunMetadata, read_lines, read_metadata, read_rows

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that has measured something, and the verdict on it."""

    name: str
    folder: Path
    config: Config
    metadata: RunMetadata  # config.json
    rows: list[dict[str, Any]]  # of metrics.jsonl
    verdict: Verdict
    broken_images: dict[str, str]  # those that could not be read, and why, as broken.txt names them
    interrupted: int | None = None  # the signal, if one ended the run early
    colour: str = ""  # in a report

    @property
    def encoder(self) -> Encoder:
        """The teacher's encoder."""
        return load_encoder(self.folder)

    @property
    def broken(self) -> int:
        """How many images could not be read."""
        return len(self.broken_images)

    @property
    def ended_early(self) -> bool:
        """Whether its guard or a mark has stopped it."""
        return self.verdict.status in ("stopped by the guard", "stopped below a mark")

    @property
    def start(self) -> str:
        """What the encoder was before step 1."""
        return "random init" if self.config.run.init is None else "given weights"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration, the data found and the origin, flat: {"loss.eps": 0.5}."""
        origin = {name: getattr(self.metadata, name) for name in ("simdino", "source_revision", "machine")}
        return _flat(self.metadata.config.as_dict()) | _flat({"dataset": self.metadata.data, "origin": origin})

    @cached_property
    def speed(self) -> list[dict[str, Any]]:
        """The rows of speed.jsonl."""
        return read_rows(self.folder / "speed.jsonl")

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """The objects of evaluations.jsonl."""
        return [row for row, _ in read_lines(self.folder / FILE)]

    @cached_property
    def weights(self) -> str | None:
        """The fingerprint of encoder.safetensors."""
        return fingerprint(self.folder)

    @property
    def own_scores(self) -> list[Point]:
        """Steps and k-NN of the encoders that this folder has held, see `RunMetadata.own_after`."""
        return [(step, knn) for step, knn in series(self.rows, "knn") if step > self.metadata.own_after or not step]

    def summary(self) -> dict[str, Any]:
        """Return where the run is and what it reached, in values that JSON holds."""
        scores = dict(series(self.rows, "knn"))
        init = self.config.run.init
        return {
            "run": str(self.folder),
            "step": self.rows[-1]["step"],
            "steps": self.config.run.steps,
            "verdict": self.verdict.status,
            "verdict_text": self.verdict.sentence,
            "init": init,
            "knn_random": scores.get(0) if init is None else self.rows[0].get("knn_random"),
            "knn_start": scores.get(0),
            "knn": scores[max(scores)] if scores else None,
            "knn_best": max((knn for _, knn in self.own_scores), default=None),
            "knn_gain": scores[max(scores)] - scores[0] if init is not None and 0 in scores else None,
            "knn_pixels": next((row["knn_pixels"] for row in self.rows if "knn_pixels" in row), None),
            "broken": self.broken,
            "report": str(self.folder / "report.html"),
        }

    def lines(self) -> list[str]:
        """Return what the run reached, for a person."""
        s = self.summary()
        lines = [s["verdict_text"]]
        if s["knn"] is not None:
            start = "at random initialisation" if s["init"] is None else f"of the weights in {s['init']}"
            lines.append(
                f"k-NN while training: {s['knn_start']:.1f} % {start}, {s['knn']:.1f} % after "
                f"{s['step']} steps (best {s['knn_best']:.1f} %); raw pixels {s['knn_pixels']:.1f} %"
            )
        if self.broken:
            images = "1 image was" if self.broken == 1 else f"{self.broken} images were"
            lines.append(f"{images} left out, as they could not be read: {self.folder}/broken.txt")
        return [*lines, f"encoder {self.folder}/encoder.safetensors, report {s['report']}"]


def read_run(folder: Path, colour: str = "") -> Run:
    """Return the run in a folder. Raises InputError where the folder is not a run or its files are damaged."""
    if not folder.is_dir():
        raise InputError(f"report: {folder} is not a folder; give a run folder, as `simdino pretrain` writes it")
    metadata = read_metadata(folder)
    rows = read_rows(folder / METRICS)
    if not rows:
        raise InputError(f"report: {folder / METRICS} is empty or missing; the run has measured nothing yet")
    return Run(
        name=folder.resolve().name,
        folder=folder,
        config=metadata.config,
        metadata=metadata,
        rows=rows,
        verdict=conclude(rows, metadata.config.run, METHODS[metadata.config.run.method], own_after=metadata.own_after),
        broken_images=read_broken(folder),
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
        best = max(run.own_scores or knn, key=lambda point: point[1])
        found |= {"knn_end": knn[-1][1], "knn_end_step": knn[-1][0], "knn_best": best[1], "knn_best_step": best[0]}
        if knn[0][0] == 0:
            found["knn_start"] = knn[0][1]
    for key in ("knn_pixels", "expansion_fraction", "effective_rank", "step"):
        if points := series(run.rows, key):
            found[key] = points[-1][1]
    for key in ("images_per_second", "mfu", "data_wait"):
        if points := series(run.speed, key):
            found[key] = median(value for _, value in points)
    seconds = [row["seconds"] for row in run.speed if is_number(row.get("seconds"))]
    if seconds:  # a resumed run starts its clock again
        found["seconds"] = sum(b - a if b >= a else b for a, b in zip([0, *seconds], seconds, strict=False))
    return found | {"broken": run.broken}


def series(rows: Iterable[Mapping[str, Any]], key: str, *, along: str = "step") -> list[Point]:
    """Return the finite values of `key` in order of the step. Of two rows for one step (a resumed run) the later
    counts."""
    found = {row[along]: row[key] for row in rows if is_number(row.get(along)) and is_number(row.get(key))}
    return sorted(found.items())


def is_number(value: object) -> TypeGuard[float]:
    """Return whether the value is a finite number and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
