"""Does bfloat16 cost accuracy? k-NN after equal steps in bfloat16 and in float32, the same seeds.

    python benchmarks/precision.py path/to/imagenette128 --steps 200 --seeds 0 1 2 --jobs 2

Everything else is what `simdino pretrain` takes for the images. Prints a Markdown table and stores
benchmarks/results/precision.json with the machine's description.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from rows import keep

from runs import Job, train_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--runs", type=Path, default=Path("runs/precision"), help="run folders; finished are reused")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    words = ["--steps", str(given.steps), "--threads", str(given.threads)]
    jobs = [
        Job(
            name={"data": Path(given.data).name, "steps": given.steps, "precision": precision, "seed": seed},
            data=given.data,
            words=[*words, "--precision", precision, "--seed", str(seed)],
            folder=given.runs,
        )
        for seed, precision in product(given.seeds, ("bfloat16", "float32"))
    ]
    columns = {"random": "random", "k-NN": "knn", "effective rank": "effective_rank", "alignment": "alignment"}
    columns |= {"images/s": "images_per_second", "peak MB": "peak_memory_mb", "verdict": "verdict"}
    rows = train_all(jobs, at_once=given.jobs)
    keys = ("data", "steps", "precision", "seed")
    keep("precision", rows, keys=keys, columns=columns)


if __name__ == "__main__":
    main()
