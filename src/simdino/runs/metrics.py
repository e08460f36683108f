"""The numbers of a run folder: metrics.jsonl, speed.jsonl and TensorBoard events.

metrics.jsonl holds what a run computed and is the same for a resumed run as for one never stopped; speed.jsonl holds
its speed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from simdino.files import named_in_errors, write_aside
from simdino.saved import read_rows


def peak_memory() -> float:
    """Return the most memory that this process has held so far, in MB: the GPU's where there is one, else resident
    memory; 0 where the system does not tell."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform == "win32":
        return 0.0
    import resource  # noqa: PLC0415 (not on Windows)

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 1e6 if sys.platform == "darwin" else used / 1e3  # bytes there, kilobytes elsewhere


class Metrics:
    """Appends rows to the run's files. Opening it at a step drops what was written after that step."""

    def __init__(self, run: Path, *, step: int) -> None:
        self.paths = {name: run / f"{name}.jsonl" for name in ("metrics", "speed")}
        for path in self.paths.values():
            kept = [row for row in read_rows(path) if row["step"] <= step]
            write_aside(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self.rows = read_rows(self.paths["metrics"])
        self.events = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, row: dict[str, Any], *, to: str = "metrics") -> None:
        """Append a row, which has a `step`."""
        if to == "metrics":
            self.rows.append(row)
        with named_in_errors(self.paths[to]), self.paths[to].open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self.events.add_scalar(f"{to}/{name}", value, row["step"])

    def best_step(self) -> int | None:
        """Return the step of the best k-NN so far, the earliest of equals; None without scores after step 0."""
        scored = [row for row in self.rows if row.get("knn") is not None and row["step"] > 0]
        return max(scored, key=lambda row: (row["knn"], -row["step"]))["step"] if scored else None

    def close(self) -> None:
        """Flush the event file."""
        self.events.close()
