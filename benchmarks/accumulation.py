"""Does the memory of a step grow with its batch where micro-batches stay alike? Peak memory of `--batch 1024
--micro-batch 32` beside that of `--batch 32`, for every method.

    python benchmarks/accumulation.py

Each configuration trains two steps in a process of its own, on one thread, and reads its images itself. The peak is
the largest resident size from the first image read to the end of step 2 (when the optimizer's moments are there), less
the size before: student, teacher, images and libraries are in that already; views, activations, gradient, moments and
what is kept of a batch are not. Prints a Markdown table and stores benchmarks/results/accumulation.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

from rows import keep

from simdino import recipes
from simdino.assembly import build
from simdino.methods import METHODS
from simdino.options import Options
from simdino.runs.folder import machine, source_revision
from simdino.train.parallel import Processes

DATA = "scattered-digits"
STEPS, BATCH, MICRO = 2, 1024, 32
CASES = [
    (name, centering)
    for name, method in METHODS.items()
    for centering in (("centering", "sinkhorn") if "prototypes" in method.parts else (None,))
]
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at most so far."""
    found = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(found.split()[1])


def take(steps: int, asked: dict[str, Any]) -> int:
    """Bytes at most during some steps, less those before."""
    sizes = {"image_size": asked["size"], "patch_size": asked["patch"], "local_views": 4, "channels": 3}
    how = {"device": "cpu", "precision": "float32", "threads": 1, "workers": 0}
    names = ["method", "encoder", "batch", "micro_batch", *(["centering"] if asked["centering"] else [])]
    options = Options({}, steps=steps, **sizes, **how, **{name: asked[name] for name in names})
    training = build(recipes.resolve(DATA, options), Processes())
    before = resident("VmRSS")
    CLEAR.write_text("5")  # forgets the peak so far, proc(5)
    for views, _ in training.loader.steps(0, steps):
        training.step(views)
    return resident("VmHWM") - before


def peak(asked: dict[str, Any]) -> int:
    """The bytes of `STEPS` steps, after one of a few tiny images that loads the libraries and compiles."""
    take(1, {**asked, "encoder": "vit_pico", "size": 16, "patch": 4, "batch": 4, "micro_batch": 2})
    return take(STEPS, asked)


def row(asked: dict[str, Any]) -> dict[str, Any]:
    """The peaks of a batch in micro-batches and of a batch as large as one of them."""
    mb = {}
    for name, sizes in {"small": (MICRO, None), "large": (BATCH, MICRO)}.items():
        given = json.dumps({**asked, "batch": sizes[0], "micro_batch": sizes[1]})
        done = subprocess.run([sys.executable, __file__, "--one", given], capture_output=True, text=True, check=True)
        mb[name] = int(done.stdout.splitlines()[-1]) / 1e6
    return {
        **asked, f"MB at batch {MICRO}": mb["small"], f"MB at batch {BATCH} in {MICRO}s": mb["large"],
        "grows by": mb["large"] / mb["small"] - 1, "machine": machine(), "source_revision": source_revision(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["conv_nano", "vit_tiny"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--size", type=int, default=64, help="side of a global crop in pixels")
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(peak(json.loads(given.one)))
        return
    rows = []
    for encoder, (method, centering) in product(given.encoders, CASES):
        if method in given.methods:
            asked = {"encoder": encoder, "method": method, "centering": centering}
            rows.append(row({**asked, "size": given.size, "patch": given.patch}))
            print(json.dumps(rows[-1]), file=sys.stderr)
    columns = (f"MB at batch {MICRO}", f"MB at batch {BATCH} in {MICRO}s", "grows by")
    keep("accumulation", rows, keys=("encoder", "method", "centering"), columns={name: name for name in columns})


if __name__ == "__main__":
    main()
