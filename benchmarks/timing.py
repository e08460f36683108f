"""Timings for the tables of speed: cases take turns on pinned threads, medians are compared, the machine is stored.

CPU time of the process is what counts with one thread: it is what a loaded machine still measures well. With more, the
clock on the wall.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from simdino.train.folder import machine, source_revision

RESULTS = Path(__file__).parent / "results"


def pin(threads: int) -> None:
    """Keep this process on the first `threads` of its cores, and torch on as many threads."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one case."""

    median: float
    low: float
    high: float


def take_turns(
    cases: dict[str, Callable[[], object]], *, repeats: int, threads: int = 1, device: str = "cpu"
) -> dict[str, Timing]:
    """Each case twice to warm up, then all of them in turn, `repeats` times."""
    clock = time.process_time if threads == 1 and device == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    for run in cases.values():
        run()
        run()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, run in cases.items():
            wait()
            started = clock()
            run()
            wait()
            seconds[name].append(clock() - started)
    return {name: Timing(median=median(s), low=min(s), high=max(s)) for name, s in seconds.items()}


def store(name: str, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Print rows as Markdown and write benchmarks/results/NAME.json with the machine and the revision."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    about = {"machine": machine(), "source_revision": source_revision(), "settings": settings}
    path.write_text(json.dumps({**about, "rows": rows}, indent=1))
    print(f"{about['machine']}; {settings}")
    print("| " + " | ".join(rows[0]) + " |")
    print("|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in row.values()) + " |")
