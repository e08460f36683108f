"""A finished run: what it reached, as values and as lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simdino.config import Config
from simdino.methods import METHODS
from simdino.models.encoder import Encoder
from simdino.models.weights import load_encoder
from simdino.runs.folder import read_broken
from simdino.runs.verdict import Verdict, judge
from simdino.saved import read_rows


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run."""

    folder: Path
    config: Config
    rows: list[dict[str, Any]]  # of metrics.jsonl
    verdict: Verdict
    broken: int = 0  # images that could not be read; broken.txt names them
    interrupted: int | None = None  # the signal, if one ended the run early

    @property
    def encoder(self) -> Encoder:
        """The teacher's encoder."""
        return load_encoder(self.folder)

    def summary(self) -> dict[str, Any]:
        """Return where the run is and what it reached, in values that JSON holds."""
        scores = {row["step"]: row["knn"] for row in self.rows if row.get("knn") is not None}
        last = self.rows[-1] if self.rows else {}
        return {
            "run": str(self.folder),
            "step": last.get("step", 0),
            "steps": self.config.run.steps,
            "verdict": self.verdict.status,
            "verdict_text": self.verdict.sentence,
            "init": self.config.run.init,
            "knn_random": scores.get(0) if self.config.run.init is None else None,
            "knn_start": scores.get(0),
            "knn": scores[max(scores)] if scores else None,
            "knn_best": max(scores.values(), default=None),
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
            lines.append(f"{self.broken} images could not be read and were left out: {self.folder}/broken.txt")
        return [*lines, f"encoder {self.folder}/encoder.safetensors, report {s['report']}"]


def finished(folder: Path, config: Config) -> Run:
    """Return the run in a folder, read from its files."""
    rows = read_rows(folder / "metrics.jsonl")
    return Run(
        folder=folder,
        config=config,
        rows=rows,
        verdict=judge(rows, METHODS[config.run.method]),
        broken=len(read_broken(folder)),
    )
