"""The sweep that chose the default weight of the rate: released, theorem and balanced (two strengths, two with lift),
two batches, two data sets, everything else as `simdino pretrain` takes it.

    python benchmarks/sweep_weight.py fashion-mnist --images 19200 --jobs 2
    python benchmarks/sweep_weight.py path/to/imagenette128 --image-size 64 --patch-size 16 --images 12800 --jobs 2

Every run sees the same number of images on one thread. Prints a Markdown table and stores
benchmarks/results/sweep_weight.json with the machine's description.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from rows import keep

from runs import Job, train_all

WEIGHTS = {
    "released, eps² .05": ["--gamma", "released"],
    "theorem, eps² .05": ["--gamma", "theorem"],
    "balanced, rho 1.5": ["--gamma", "balanced", "--rho", "1.5", "--lift", "0"],
    "balanced, rho 3": ["--gamma", "balanced", "--rho", "3", "--lift", "0"],
    "balanced, rho 1.5, lift 3": ["--gamma", "balanced", "--rho", "1.5", "--lift", "3"],
    "balanced, rho 2, lift 3": ["--gamma", "balanced", "--rho", "2", "--lift", "3"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--images", type=int, default=38_400)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--image-size", type=int, help="for folders; the table of recipes otherwise")
    parser.add_argument("--patch-size", type=int)
    parser.add_argument("--only", nargs="+", choices=list(WEIGHTS), default=list(WEIGHTS), metavar="WEIGHT")
    parser.add_argument("--runs", type=Path, default=Path("runs/sweep"), help="run folders; finished ones are reused")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    sizes = {"--image-size": given.image_size, "--patch-size": given.patch_size}
    size = [word for name, value in sizes.items() if value is not None for word in (name, str(value))]
    jobs = []
    for data, batch, weight in product(given.data, given.batches, given.only):
        steps = given.images // batch
        length = ["--batch", str(batch), "--steps", str(steps), "--evaluate-every", str(max(1, steps // 2))]
        name = {"data": Path(data).name, "batch": batch, "weight": weight}
        words = [*length, "--threads", "1", *WEIGHTS[weight], *size]
        jobs.append(Job(name=name, data=data, words=words, folder=given.runs))
    columns = {"knn random": "random", "k-NN": "knn", "best": "best", "alignment": "alignment"}
    columns |= {"expansion": "expansion_fraction", "rho": "gradient_ratio", "verdict": "verdict"}
    rows = train_all(jobs, at_once=given.jobs)
    keep("sweep_weight", rows, keys=("data", "batch", "weight"), columns=columns)


if __name__ == "__main__":
    main()
