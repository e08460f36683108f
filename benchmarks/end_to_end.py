"""What a run loses between its parts: images per second of data alone, of the step alone, and of `simdino pretrain`.

    python benchmarks/end_to_end.py path/to/imagenette128 --steps 60

Data and step share the same threads one after the other, so that nothing lost would be 1/(1/data + 1/step). The run's
own number is all its images over all its seconds from the sixth step on, by speed.jsonl: log lines, TensorBoard and a
checkpoint every eighth of the run included, evaluations not.
Stores benchmarks/results/end_to_end.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from timing import pin, store

import simdino as sd
from simdino.contracts import Views
from simdino.options import Options
from simdino.precision import make_autocast
from simdino.pretrain import build
from simdino.recipes import resolve
from simdino.train.metrics import read_rows
from simdino.train.parallel import Processes
from simdino.train.step import step

WARM = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    pin(given.threads)
    config = resolve(
        given.data, Options(steps=given.steps, threads=given.threads, device="cpu", evaluate_every=given.steps)
    )
    batch = config.run.batch
    parts = build(config, Processes())
    autocast = make_autocast("cpu", config.speed.precision)

    moments, views = [], []
    for made, _ in islice(parts.loader.steps(0, given.steps), given.steps):
        moments.append(time.perf_counter())
        views = [made]
    data = batch / median(b - a for a, b in zip(moments[WARM:], moments[WARM + 1 :], strict=False))

    def one(batch_of_views: Views) -> None:
        step(parts.state, batch_of_views, parts.loss, steps=1000, optim=config.optim, autocast=autocast)

    seconds = []
    for _ in range(given.steps):
        started = time.perf_counter()
        one(views[0])
        seconds.append(time.perf_counter() - started)
    alone = batch / median(seconds[WARM:])

    with tempfile.TemporaryDirectory() as folder:
        run = sd.pretrain(config, Path(folder) / "run", say=lambda _: None)
        rows = read_rows(run.folder / "speed.jsonl")
    first, last = next(row for row in rows if row["step"] > WARM), rows[-1]
    together = batch * (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])
    possible = 1 / (1 / data + 1 / alone)
    row = {
        "data": Path(given.data).name, "encoder": config.encoder.name, "precision": config.speed.precision,
        "data alone, images/s": data, "step alone, images/s": alone, "nothing lost, images/s": possible,
        "simdino pretrain, images/s": together, "share": together / possible,
    }  # fmt: skip
    store("end_to_end", {"threads": given.threads, "batch": batch, "torch threads": torch.get_num_threads()}, [row])


if __name__ == "__main__":
    main()
