"""What a run loses between its parts: images per second of data alone, of the step alone, and of `simdino pretrain`.

    python benchmarks/end_to_end.py path/to/imagenette128 --steps 60
    python benchmarks/end_to_end.py path/to/photos --device cuda --encoder vit_small --steps 200

On a CPU data and step share the same threads one after the other, so that nothing lost would be 1/(1/data + 1/step);
beside a GPU worker processes make the data meanwhile, and nothing lost would be the smaller of the two. The run's own
number is all its images over all its seconds from the sixth step on, by speed.jsonl: log lines, TensorBoard and a
checkpoint every eighth of the run included, evaluations not. Data wait is the share of a step that waits for its batch,
the median of the log lines. Stores benchmarks/results/end_to_end.json, on a GPU end_to_end_gpu.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from statistics import median

import torch
from timing import pin, store

import simdino as sd
from simdino.assembly import build
from simdino.config import Config
from simdino.contracts import Views
from simdino.device import make_autocast
from simdino.options import Options
from simdino.recipes import resolve
from simdino.saved import read_rows
from simdino.train.loop import Training
from simdino.train.parallel import Processes
from simdino.train.step import step

WARM = 5
Wait = Callable[[], object]  # until a GPU has done what it was given


def data_alone(parts: Training, count: int, wait: Wait) -> tuple[float, Views]:
    """Batches a second of the loader, and the last of them."""
    moments, last = [], []
    for views, _ in islice(parts.loader.steps(0, count), count):
        wait()
        moments.append(time.perf_counter())
        last = [views]
    return 1 / median(b - a for a, b in pairwise(moments[WARM:])), last[0]


def step_alone(parts: Training, views: Views, config: Config, count: int, wait: Wait) -> float:
    """Steps a second, on one batch over and over."""
    autocast, seconds = make_autocast(config.speed.device, config.speed.precision), []
    for _ in range(count):
        started = time.perf_counter()
        step(parts.state, views, parts.loss, steps=1000, optim=config.optim, autocast=autocast)
        wait()
        seconds.append(time.perf_counter() - started)
    return 1 / median(seconds[WARM:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2, help="on a CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--encoder", help="as of simdino pretrain")
    parser.add_argument("--batch", type=int, help="as of simdino pretrain")
    given = parser.parse_args()
    on_gpu = given.device.startswith("cuda")
    if not on_gpu:
        pin(given.threads)
    options = Options(
        steps=given.steps, threads=None if on_gpu else given.threads, device=given.device, encoder=given.encoder,
        batch=given.batch, evaluate_every=given.steps,
    )  # fmt: skip
    config = resolve(given.data, options)
    batch = config.run.batch
    parts = build(config, Processes())
    wait = torch.cuda.synchronize if on_gpu else lambda: None

    batches, views = data_alone(parts, given.steps, wait)
    data, alone = batch * batches, batch * step_alone(parts, views, config, given.steps, wait)
    with tempfile.TemporaryDirectory() as folder:
        run = sd.pretrain(config, Path(folder) / "run", log=lambda _: None)
        rows = read_rows(run.folder / "speed.jsonl")
    first, last = next(row for row in rows if row["step"] > WARM), rows[-1]
    together = batch * (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])
    possible = min(data, alone) if on_gpu else 1 / (1 / data + 1 / alone)
    row = {
        "data": Path(given.data).name, "encoder": config.encoder.name, "precision": config.speed.precision,
        "data alone, images/s": data, "step alone, images/s": alone, "nothing lost, images/s": possible,
        "simdino pretrain, images/s": together, "share": together / possible,
        "data wait": median(row["data_wait"] for row in rows),
    }  # fmt: skip
    settings = {"threads": torch.get_num_threads(), "workers": config.speed.workers, "batch": batch}
    store("end_to_end_gpu" if on_gpu else "end_to_end", {**settings, "device": given.device}, [row])


if __name__ == "__main__":
    main()
