"""All runs below a folder, from their files: what each trained on, how far it is, and what it reached."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from simdino.errors import InputError
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.result import Result
from simdino.text import as_columns

COLUMNS = ("run", "data", "method", "encoder", "steps", "k-NN", "verdict", "when")


@dataclass(frozen=True, kw_only=True)
class ListedRun:
    """A run in a list.

    state: "training" while a process trains in its folder, "finished" after its last step, otherwise "stopped":
    `simdino pretrain --resume` goes on with it. knn: of the last evaluation, in percent, as knn_start and knn_pixels;
    None where it was not measured. when: the last change of its files, in seconds since 1970."""

    run: str
    data: str
    method: str
    encoder: str
    state: str
    step: int
    steps: int
    verdict: str
    knn: float | None
    knn_start: float | None
    knn_pixels: float | None
    when: float

    def cells(self) -> tuple[str, ...]:
        """Its row for a person."""
        far = f"{self.step:,}" if self.state == "finished" else f"{self.step:,} of {self.steps:,}, {self.state}"
        start = "" if self.knn_start is None else f"{self.knn_start:.1f} → "
        knn = "" if self.knn is None else f"{start}{self.knn:.1f}"
        when = datetime.fromtimestamp(self.when).strftime("%Y-%m-%d %H:%M")
        return self.run, self.data, self.method, self.encoder, far, knn, self.verdict, when


@dataclass(frozen=True, kw_only=True)
class RunList(Result):
    """The runs below a folder: those of one data set together, in each the best first. damaged: folders whose files
    cannot be read, and why."""

    folder: str
    runs: tuple[ListedRun, ...]
    damaged: dict[str, str]

    def __str__(self) -> str:
        if not self.runs and not self.damaged:
            return f"no run below {self.folder}"
        lines = as_columns([COLUMNS, *(run.cells() for run in self.runs)]) if self.runs else []
        return "\n".join([*lines, *(f"{name} cannot be read: {why}" for name, why in self.damaged.items())])

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"folder": self.folder, "runs": [asdict(run) for run in self.runs], "damaged": self.damaged}


def list_runs(folder: str | Path = "runs", *, log: Log = to_stderr, progress: Progress = no_bar) -> RunList:
    """List all runs below FOLDER: data, method, steps, k-NN, verdict, when; which are training now. The runs of one
    data set stand together, the best first.

    Raises InputError where it is no folder."""
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{folder} is no folder: give one that runs lie below")
    runs: list[ListedRun] = []
    damaged: dict[str, str] = {}
    for place in run_folders(root):
        try:
            runs.append(listed(place))
        except InputError as error:
            damaged[str(place)] = str(error)
    best = {run.data: max(other.when for other in runs if other.data == run.data) for run in runs}
    runs.sort(key=lambda run: (-best[run.data], run.data, -(-1.0 if run.knn is None else run.knn), run.run))
    return RunList(folder=str(folder), runs=tuple(runs), damaged=damaged)


def run_folders(root: Path) -> Iterator[Path]:
    """Yield the run folders below a folder, or the folder itself; nothing inside a run is looked at."""
    from simdino.saved import CONFIG, is_run

    for where, folders, files in os.walk(root):
        folders.sort()
        if CONFIG in files and is_run(Path(where)):
            folders.clear()
            yield Path(where)


def listed(folder: Path) -> ListedRun:
    """Return a run's row. Raises InputError where its files are damaged."""
    from simdino.runs.folder import trainer_of
    from simdino.runs.run import dataset, key_numbers, read_run
    from simdino.saved import METRICS, read_metadata

    metadata = read_metadata(folder)
    run = read_run(folder) if (folder / METRICS).is_file() and (folder / METRICS).stat().st_size else None
    step, numbers = (0, {}) if run is None else (int(run.rows[-1]["step"]), key_numbers(run))
    steps = metadata.config.run.steps
    state = "training" if trainer_of(folder) else "finished" if step >= steps else "stopped"
    config, name = metadata.config, str(metadata.data["name"]) if run is None else dataset(run)
    return ListedRun(
        run=str(folder), data=name, method=config.run.method, encoder=config.encoder.name, state=state, step=step,
        steps=steps,
        verdict="too early" if run is None else run.verdict.status, knn=numbers.get("knn_end"),
        knn_start=numbers.get("knn_start"), knn_pixels=numbers.get("knn_pixels"), when=changed(folder),
    )  # fmt: skip


def changed(folder: Path) -> float:
    """Return when the newest of a folder's own files was written, in seconds since 1970."""
    times: list[float] = []
    for path in folder.iterdir():
        with suppress(OSError):  # a run that goes on renames its files
            times += [path.stat().st_mtime] if path.is_file() else []
    return max(times, default=time.time())
