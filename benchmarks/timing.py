"""Timings for the tables of speed: cases take turns on pinned threads, medians are compared, the machine is stored.

CPU time of the process is what counts with one thread: it is what a loaded machine still measures well. With more, the
clock on the wall.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch
from rows import keep

from simdino.runs.folder import machine, source_revision


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
    for run in cases.values():
        run()
        run()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, run in cases.items():
            seconds[name].append(timed(run, threads=threads, device=device))
    return {name: summary(s) for name, s in seconds.items()}


def timed(run: Callable[[], object], *, threads: int, device: str) -> float:
    """Seconds of one call."""
    clock = time.process_time if threads == 1 and device == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    started = clock()
    run()
    wait()
    return clock() - started


def summary(seconds: list[float]) -> Timing:
    """Median and range."""
    return Timing(median=median(seconds), low=min(seconds), high=max(seconds))


def apart(
    makers: dict[str, Callable[[], Callable[[], object]]], *, repeats: int, threads: int, device: str
) -> dict[str, Timing]:
    """As `take_turns`, each case in a process of its own, so that none sees another's memory or settings. A maker is
    called in that process and gives what is timed; it must be picklable."""
    context, workers = get_context("spawn"), {}
    for name, maker in makers.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(maker, theirs, threads, device), daemon=True)
        process.start()
        theirs.close()  # so that a process that fails ends the wait
        ours.recv()  # made and warm
        workers[name] = process, ours
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(repeats):
        for name, (_, pipe) in workers.items():
            pipe.send("go")
            seconds[name].append(pipe.recv())
    for process, pipe in workers.values():
        pipe.send("stop")
        process.join()
    return {name: summary(s) for name, s in seconds.items()}


def serve(maker: Callable[[], Callable[[], object]], pipe: Any, threads: int, device: str) -> None:
    """A process of `apart`."""
    if device == "cpu":
        pin(threads)
    run = maker()
    run()
    run()
    pipe.send("ready")
    while pipe.recv() == "go":
        pipe.send(timed(run, threads=threads, device=device))


def store(name: str, settings: dict[str, Any], rows: list[dict[str, Any]], *, keys: Sequence[str] = ()) -> None:
    """`rows.keep`, each row with the machine, the revision and the settings that it was made with."""
    made = {"machine": machine(), "source_revision": source_revision(), "settings": settings}
    print(f"{made['machine']}; {settings}")
    keep(name, [{**row, "made": made} for row in rows], keys=keys, columns={heading: heading for heading in rows[0]})
