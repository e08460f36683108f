"""The sweep that chose the default weight of the rate: released, theorem and balanced (two strengths), two batches,
two data sets, everything else as `simdino pretrain` takes it.

    python benchmarks/sweep_weight.py fashion-mnist --images 19200 --jobs 2
    python benchmarks/sweep_weight.py path/to/imagenette128 --image-size 64 --patch-size 16 --images 12800 --jobs 2

Every run sees the same number of images on one thread. Prints a Markdown table and stores
benchmarks/results/sweep_weight.json with the machine's description.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from simdino.evaluate.health import judge
from simdino.train.folder import machine
from simdino.train.metrics import read_rows

RESULTS = Path(__file__).parent / "results" / "sweep_weight.json"
WEIGHTS = {
    "released, eps² .05": ["--gamma", "released"],
    "theorem, eps² .05": ["--gamma", "theorem"],
    "balanced, rho 1.5": ["--gamma", "balanced", "--rho", "1.5"],
    "balanced, rho 3": ["--gamma", "balanced", "--rho", "3"],
}


def run(data: str, batch: int, weight: str, *, images: int, size: list[str], folder: Path) -> dict[str, Any]:
    """One run and what it reached."""
    out = folder / f"{Path(data).name}-{batch}-{weight}".replace(" ", "").replace(",", "-")
    steps = images // batch
    command = [
        sys.executable, "-m", "simdino", "pretrain", data, "--out", str(out), "--batch", str(batch),
        "--steps", str(steps), "--evaluate-every", str(max(1, steps // 2)), "--threads", "1",
        *WEIGHTS[weight], *size,
    ]  # fmt: skip
    if not any(row["step"] == steps and "knn" in row for row in read_rows(out / "metrics.jsonl")):
        shutil.rmtree(out, ignore_errors=True)
        subprocess.run(command, check=True, capture_output=True)
    rows = read_rows(out / "metrics.jsonl")
    scores = [row["knn"] for row in rows if "knn" in row]
    last = [row for row in rows if "expansion_fraction" in row][-5:]
    return {
        "data": Path(data).name,
        "batch": batch,
        "images": images,
        "weight": weight,
        "random": scores[0],
        "knn": scores[-1],
        "best": max(scores),
        "alignment": median(row["alignment"] for row in last),
        "expansion_fraction": median(row["expansion_fraction"] for row in last),
        "gradient_ratio": median(row["gradient_ratio"] for row in last),
        "verdict": judge(rows).status,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--images", type=int, default=38_400)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--image-size", type=int, help="for folders; the table of recipes otherwise")
    parser.add_argument("--patch-size", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs/sweep"), help="run folders; finished ones are reused")
    parser.add_argument("--jobs", type=int, default=1)
    words = parser.parse_args()
    size = [] if words.image_size is None else ["--image-size", str(words.image_size)]
    size += [] if words.patch_size is None else ["--patch-size", str(words.patch_size)]
    jobs = list(product(words.data, words.batches, WEIGHTS))
    with ThreadPoolExecutor(words.jobs) as pool:
        each = [pool.submit(run, *job, images=words.images, size=size, folder=words.runs) for job in jobs]
        rows = [future.result() for future in each]
    stored = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    done = {(row["data"], row["batch"]) for row in rows}
    stored = [row for row in stored if (row["data"], row["batch"]) not in done] + rows
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "runs": stored}, indent=1))
    columns = {"knn random": "random", "k-NN": "knn", "best": "best", "alignment": "alignment"}
    columns |= {"expansion": "expansion_fraction", "rho": "gradient_ratio"}
    print("| data | batch | weight | " + " | ".join(columns) + " | verdict |")
    print("|---" * (len(columns) + 4) + "|")
    for row in stored:
        numbers = " | ".join(f"{row[name]:.3g}" for name in columns.values())
        print(f"| {row['data']} | {row['batch']} | {row['weight']} | {numbers} | {row['verdict']} |")


if __name__ == "__main__":
    main()
