"""What do more processes bring? Two processes on two cores beside one on one, with the time that the sum of a gradient
takes between them; and from bytes and operations a forecast for 8, 64 and 512 GPUs.

    python benchmarks/scaling.py path/to/imagenette128

Prints two Markdown tables and stores benchmarks/results/scaling.json with the machine's description. The formulas are
derived in docs/scale.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from rows import keep

from simdino.cli import main as simdino
from simdino.models.catalogue import kind_of
from simdino.models.weights import load_encoder
from simdino.peaks import published
from simdino.runs.folder import machine, source_revision
from simdino.saved import read_rows

STEPS, REPEATS, SUMS = 30, 3, 10
ME = str(Path(__file__).resolve())
EMBEDDING, VIEWS = 256, 2  # side of the second moments of SimDINO's rate, and how many there are
GLOBAL, LOCAL, CROPS = 1 + (224 // 16) ** 2, 1 + (96 // 16) ** 2, 8  # tokens of 2 x 224 + 8 x 96 px, patches of 16
UTILISATION = 0.3  # of the H100's peak, while it computes
WITHIN, BETWEEN = 300e9, 50e9  # bytes a second that a GPU sends: NVLink as NCCL reaches it; one 400 Gb/s port a GPU
NODE = 8  # GPUs of a node
IMAGES = {"vit_base": 64, "vit_large": 32, "vit_giant2": 16}  # a GPU


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of SimDINO with a ViT: parameters, and a GPU's operations."""

    parameters: float
    flops: float


def step_of(name: str) -> Step:
    """Parameters of the blocks, for the most part 12 L D². Operations are 2 a parameter and token and 4 L D a pair of
    tokens: three times for the student, of which the backward pass is two, once for the teacher's global crops."""
    kind = kind_of(name)
    assert kind.embed_dim and kind.depth
    parameters = float(kind.block_size * kind.depth * kind.embed_dim**2)

    def forward(tokens: int) -> float:
        return 2.0 * parameters * tokens + 4.0 * kind.depth * kind.embed_dim * tokens**2  # pyright: ignore

    whole, part = 2 * forward(GLOBAL), CROPS * forward(LOCAL)
    return Step(parameters=parameters, flops=IMAGES[name] * (3 * (whole + part) + whole))


def sent(step: Step, gpus: int, how: str) -> dict[str, float]:
    """The bytes that a GPU sends in a step, by what for. A sum over n in a ring sends 2 (n - 1) / n of what is summed;
    gathering or scattering half of that. float32 throughout, the second moments float64."""
    ring = (gpus - 1) / gpus
    rate = 2 * ring * 8 * VIEWS * EMBEDDING**2
    weights = 4 * step.parameters * ring
    if how == "ddp":
        return {"gradient": 2 * weights, "rate": rate}
    # forward and backward of the student for both sizes of crops, forward of the teacher for one; the gradient once
    return {"weights": (2 * 2 + 1) * weights, "gradient": weights, "rate": rate}


def efficiency(step: Step, gpus: int, how: str) -> tuple[float, float]:
    """The share of n times one GPU's speed that n reach: with sums that hide behind the computation as far as they can,
    and with none that does. ddp can hide the gradient behind the backward pass (half of the operations), fsdp all
    behind everything; the rate's sum waits for the whole forward pass and hides behind nothing."""
    peak = published("H100", "bfloat16")
    assert peak is not None
    computes = step.flops / (UTILISATION * peak.flops)
    speed = WITHIN if gpus <= NODE else BETWEEN
    times = {name: count / speed for name, count in sent(step, gpus, how).items()}
    rate = times.pop("rate")
    hidden = computes * (0.5 if how == "ddp" else 1.0)
    best = computes + rate + max(0.0, sum(times.values()) - hidden)
    return computes / best, computes / (computes + rate + sum(times.values()))


def forecasts() -> list[dict[str, Any]]:
    """A row for each encoder, number of GPUs and way."""
    rows = []
    for name, images in IMAGES.items():
        step = step_of(name)
        for how in ("ddp", "fsdp"):
            for gpus in (8, 64, 512):
                told = sent(step, gpus, how)
                best, worst = efficiency(step, gpus, how)
                rows.append(
                    {
                        "encoder": name, "how": how, "GPUs": gpus, "images a GPU": images,
                        "GB sent": sum(told.values()) / 1e9, "share of the rate": told["rate"] / sum(told.values()),
                        "efficiency, hidden": best, "efficiency, in the open": worst,
                    }
                )  # fmt: skip
    return rows


def pinned(words: list[str]) -> None:
    """`simdino WORDS` on one core, of which each process has its own."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ.get("LOCAL_RANK", "0"))]})
    simdino(words)


def sums(numbers: int) -> None:
    """Print the median time in seconds of a sum of so many float32 over the processes that torchrun started."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["LOCAL_RANK"])]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    x, times = torch.ones(numbers), []
    for _ in range(SUMS):
        dist.barrier()
        before = time.perf_counter()
        dist.all_reduce(x)
        times.append(time.perf_counter() - before)
    if dist.get_rank() == 0:
        print(median(times))
    dist.barrier()
    dist.destroy_process_group()


def launched(processes: int, words: list[str]) -> str:
    """The output of this script in so many processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), ME, *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def speed(data: str, processes: int, out: Path) -> float:
    """Images a second of a run of so many processes, a core for each."""
    words = ["pretrain", data, "--steps", str(STEPS), "--evaluate-every", str(STEPS), "--threads", "1", "--no-labels"]
    words += ["--device", "cpu", "--workers", "0", "--set", "run.log_every=5", "--out", str(out)]
    launched(processes, ["--pinned", *words])
    return median(row["images_per_second"] for row in read_rows(out / "speed.jsonl")[1:])


def measured(data: str) -> dict[str, Any]:
    """One process beside two, and what the sum of the gradient explains of the difference."""
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(REPEATS):
            one, two = (speed(data, count, Path(folder) / f"{count}-{i}") for count in (1, 2))
            pairs.append((one, two))
        encoder = load_encoder(Path(folder) / "1-0")
        batch = 64
        numbers = sum(p.numel() for p in encoder.parameters()) + VIEWS * 2 * EMBEDDING**2
        summing = float(launched(2, ["--sums", str(numbers)]))
    one, two = median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
    return {
        "data": Path(data).name, "encoder": encoder.config.name, "parameters": numbers, "one": one, "two": two,
        "ratio": median(b / a for a, b in pairs), "sum, seconds": summing,
        "ratio by the sum alone": (batch / one) / (batch / one / 2 + summing),
        "machine": machine(), "source_revision": source_revision(),
    }  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--pinned"]:
        pinned(sys.argv[2:])
        return
    if sys.argv[1:2] == ["--sums"]:
        sums(int(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="images to train on; without them there is the forecast alone")
    given = parser.parse_args()
    rows = forecasts()
    columns = ("images a GPU", "GB sent", "share of the rate", "efficiency, hidden", "efficiency, in the open")
    keep("scaling_forecast", rows, keys=("encoder", "how", "GPUs"), columns={name: name for name in columns})
    if given.data is not None:
        columns = ("parameters", "one", "two", "ratio", "sum, seconds", "ratio by the sum alone")
        keep("scaling", [measured(given.data)], keys=("data", "encoder"), columns={name: name for name in columns})


if __name__ == "__main__":
    main()
