"""Seconds that a person waits: importing, asking for help, and from the start of a run to its first step.

    python benchmarks/start.py

`import simdino` beside `import torch` and, where it is installed, `import lightly_train`; medians. The run is on
Fashion-MNIST with defaults but for its 600 steps and two threads, its first evaluation included: as the first run of
a machine, when the code for the views is compiled, and as any later one. Stores benchmarks/results/start.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from timing import store

from simdino.saved import read_rows


def whole(words: Sequence[str]) -> float:
    """Seconds of a process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - started


def first_step(data: str, cache: Path, out: Path) -> float:
    """Seconds from the start of `simdino pretrain` until its first step is logged; the run is then stopped."""
    words = ["-m", "simdino", "pretrain", data, "--steps", "600", "--threads", "2", "--out", str(out)]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    started = time.perf_counter()
    with (out.parent / "log.txt").open("w") as log:
        run = subprocess.Popen([sys.executable, *words], stdout=log, stderr=log, env=environment)
    metrics = out / "metrics.jsonl"
    while not (metrics.exists() and any(row["step"] >= 1 for row in read_rows(metrics))):
        if run.poll() is not None:
            raise SystemExit((out.parent / "log.txt").read_text())
        time.sleep(0.02)
    seconds = time.perf_counter() - started
    run.kill()
    run.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    waits = {"import simdino": ["-c", "import simdino"], "simdino --help": ["-m", "simdino", "--help"]}
    waits["import torch"] = ["-c", "import torch"]
    if find_spec("lightly_train"):
        waits["import lightly_train"] = ["-c", "import lightly_train"]
    rows = [{"what": what, "seconds": median(whole(w) for _ in range(given.repeats))} for what, w in waits.items()]
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        times = [first_step(given.data, cache, Path(folder) / f"run{i}") for i in range(1 + given.repeats)]
    rows.append({"what": f"first step on {given.data}, the first run of a machine", "seconds": times[0]})
    rows.append({"what": f"first step on {given.data}, later runs", "seconds": median(times[1:])})
    store("start", {"repeats": given.repeats, "threads": 2}, rows)


if __name__ == "__main__":
    main()
