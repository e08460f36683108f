"""Runs of `simdino pretrain` for tables: start them side by side, and read what each reached."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from simdino.methods import METHODS
from simdino.runs.verdict import judge
from simdino.saved import read_rows


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run and what its row is called."""

    name: dict[str, Any]  # the first columns of the row
    data: str
    words: list[str]  # of `simdino pretrain`
    folder: Path

    @property
    def out(self) -> Path:
        """The run's own folder."""
        words = sha256(" ".join([self.data, *self.words]).encode()).hexdigest()[:8]  # other words are another run
        name = "-".join([*map(str, self.name.values()), words])
        return self.folder / name.replace("/", "_").replace(" ", "")


def train_all(jobs: Sequence[Job], *, at_once: int) -> list[dict[str, Any]]:
    """The rows of all jobs, `at_once` of them running at a time; finished run folders are read, not run again."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(train, jobs))


def train(job: Job) -> dict[str, Any]:
    """One run and what it reached, or the line it stopped with."""
    if not finished(job.out):
        shutil.rmtree(job.out, ignore_errors=True)
        command = [sys.executable, "-m", "simdino", "pretrain", job.data, "--out", str(job.out), *job.words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return {**job.name, "verdict": "stopped: " + (done.stderr.strip().splitlines() or ["?"])[-1]}
    return {**job.name, **reached(job.out), "words": " ".join(job.words)}


def finished(run: Path) -> bool:
    """Whether a run came to its last step; one that was interrupted has a report too."""
    if not (run / "report.html").exists():
        return False
    planned = json.loads((run / "config.json").read_text())["config"]["run"]["steps"]
    return read_rows(run / "metrics.jsonl")[-1]["step"] == planned


def reached(run: Path) -> dict[str, Any]:
    """What a finished run's files say, numbers at the end as medians of the last five logged steps."""
    rows, speed = read_rows(run / "metrics.jsonl"), read_rows(run / "speed.jsonl")
    scores = [row["knn"] for row in rows if "knn" in row]
    last = [row for row in rows if "expansion_fraction" in row][-5:]
    about = json.loads((run / "config.json").read_text())
    health = ("alignment", "expansion_fraction", "effective_rank", "gradient_ratio", "target_entropy", "prototype_use")
    return {
        "steps": rows[-1]["step"],
        "random": scores[0],
        "knn": scores[-1],
        "best": max(scores),
        "lowest": min(scores),
        "feature_rank": [row["feature_rank"] for row in rows if "feature_rank" in row][-1],
        **{name: median(row[name] for row in last) for name in health if name in last[-1]},
        "images_per_second": median(row["images_per_second"] for row in speed),
        "peak_memory_mb": max(row["peak_memory_mb"] for row in speed),
        "verdict": judge(rows, METHODS[about["config"]["run"]["method"]]).status,
        "machine": about["machine"],
        "source_revision": about["source_revision"],
    }
