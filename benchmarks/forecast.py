"""How well `simdino plan` tells what a run will cost: forecasts beside the runs that follow them.

    python benchmarks/forecast.py --steps 200
    python benchmarks/forecast.py --data digits --encoders vit_nano --steps 20

For each encoder and data set `simdino plan` and then `simdino pretrain` with the same words, each in a process of its
own. Time is that from the first step to the last, the evaluations between included: `seconds` of speed.jsonl in its
last row. Beside it stand the whole forecast and the whole command, which also imports, draws pictures and writes the
report. Memory is the largest `peak_memory_mb` of speed.jsonl. Ratios are forecast over run, and the bar is 15 % either
way. Prints a Markdown table and stores benchmarks/results/forecast.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from timing import store

from simdino.saved import read_rows

DATA, ENCODERS, BAR = ("digits", "scattered-digits"), ("default", "vit_nano", "crate_nano"), 0.15


def command(*words: object) -> tuple[dict[str, Any], float]:
    """What a command answers in JSON, and its seconds."""
    started = time.perf_counter()
    line = [sys.executable, "-m", "simdino", *map(str, words), "--json"]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    return json.loads(done.stdout), time.perf_counter() - started


def compared(data: str, encoder: str, *, steps: int, threads: int, out: Path) -> dict[str, Any]:
    """A forecast beside the run."""
    words = ["--steps", steps, "--threads", threads, "--workers", 0]
    words += [] if encoder == "default" else ["--encoder", encoder]
    told, planning = command("plan", data, *words)
    _, whole = command("pretrain", data, *words, "--out", out)
    speed = read_rows(out / "speed.jsonl")
    last = speed[-1]
    seconds = told["step_seconds"] * steps + told["evaluation_seconds"] * (told["evaluations"] - 1)
    rates = [row["images_per_second"] for row in speed[len(speed) // 10 :]]
    row = {
        "forecast, s": seconds, "run, s": last["seconds"], "time": seconds / last["seconds"],
        "forecast, MB": told["memory_mb"], "run, MB": max(one["peak_memory_mb"] for one in speed),
    }  # fmt: skip
    row["memory"] = row["forecast, MB"] / row["run, MB"]
    more = {
        "forecast, images/s": told["images_per_second"], "run, images/s": len(rates) / sum(1 / rate for rate in rates),
        "MFU": last.get("mfu"), "forecast of all, s": told["seconds"], "command, s": whole, "planning, s": planning,
    }  # fmt: skip
    return {"data": data, "encoder": encoder, **row, **more}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(DATA))
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for data in given.data:
            for encoder in given.encoders:
                out = Path(folder) / f"{data}-{encoder}"
                rows.append(compared(data, encoder, steps=given.steps, threads=given.threads, out=out))
                store("forecast", {"steps": given.steps, "threads": given.threads}, rows[-1:], keys=("data", "encoder"))
    missed = [row for row in rows if any(abs(row[name] - 1) > BAR for name in ("time", "memory"))]
    print(f"{len(rows) - len(missed)} of {len(rows)} within {BAR:.0%}")


if __name__ == "__main__":
    main()
