"""The four methods and four encoders on the same images: k-NN, rank, speed, memory, and whether they collapsed.

    python benchmarks/methods.py path/to/imagenette128 --minutes 5 --seeds 0 1 --jobs 2
    python benchmarks/methods.py path/to/imagenette128 --steps 600 --seeds 0 1 --jobs 2

Everything but the method is what `simdino pretrain` takes for the images. DINO and DINOv2 are shown at three counts of
prototypes. Prints a Markdown table and stores benchmarks/results/methods.json with the machine's description.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from rows import keep

from runs import Job, train_all

METHODS = {
    "SimDINO": ["--method", "simdino"],
    "SimDINOv2": ["--method", "simdinov2"],
    **{
        f"{title}, {count:,} prototypes": ["--method", method, "--prototypes", str(count)]
        for title, method in (("DINO", "dino"), ("DINOv2", "dinov2"))
        for count in (1024, 4096, 65_536)
    },
    "SimDINO, CRATE": ["--encoder", "crate_nano"],
    "SimDINO, ResNet-18": ["--encoder", "resnet18"],
    "SimDINO, ConvNeXt-atto": ["--encoder", "convnext_atto"],
    "SimDINO, no teacher": ["--method", "simdino", "--teacher", "none"],
    "DINO, no teacher": ["--method", "dino", "--teacher", "none"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=5.0)
    length.add_argument("--steps", type=int)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"), help="run folders; finished ones are reused")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    span = f"{given.steps} steps" if given.steps else f"{given.minutes:g} min"
    last = ["--steps", str(given.steps)] if given.steps else ["--minutes", str(given.minutes)]
    jobs = [
        Job(
            name={"data": Path(given.data).name, "length": span, "method": name, "seed": seed},
            data=given.data,
            words=[*METHODS[name], *last, "--seed", str(seed), "--threads", str(given.threads)],
            folder=given.runs,
        )
        for name, seed in product(given.only, given.seeds)
    ]
    columns = {"steps": "steps", "random": "random", "k-NN": "knn", "effective rank": "effective_rank"}
    columns |= {"feature rank": "feature_rank", "images/s": "images_per_second", "peak MB": "peak_memory_mb"}
    rows = train_all(jobs, at_once=given.jobs)
    keys = ("data", "length", "method", "seed")
    columns["verdict"] = "verdict"
    keep("methods", rows, keys=keys, columns=columns)


if __name__ == "__main__":
    main()
