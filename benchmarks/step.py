"""Seconds of a training step of SimDINO, and its memory: ours beside the textbook step, on random views.

    python benchmarks/step.py --shapes small tiny 28px --batches 8 16
    python benchmarks/step.py --memory
    python benchmarks/step.py --device cuda --shapes small base --batches 64 128

Ours is the step that `simdino pretrain` takes, in bfloat16, in float32 and with --compile. The textbook step
(`textbook.py`) is timm's ViT in float32, and under bfloat16 autocast with explicit attention and with the fused kernel;
lightly-train's is that of its DINO in both precisions, where it is installed. 2 x 224 + 8 x 96 px for ViT-S/16 and
ViT-Ti/16; "28px" is 2 x 28 px, patch 4, width 192, depth 12. Each case has a process of its own. The share of the
matrix rate credits every step with all operations of the textbook's, ours too, which leaves out most of a block. Stores
benchmarks/results/step.json, with --memory benchmarks/results/memory.json, by the largest resident size.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from lightly_train_step import lightly_train_step
from textbook import Network, Step
from timing import Timing, apart, pin, store, take_turns

from simdino.config import EncoderConfig, OptimConfig
from simdino.contracts import Preprocess, Views
from simdino.device import keep_freed_memory, make_autocast
from simdino.losses.dino import DINO
from simdino.losses.simdino import SimDINO
from simdino.models.catalogue import make_encoder
from simdino.models.projector import Embedder, Projector, Prototypes
from simdino.models.starting import compile_blocks
from simdino.train.state import State
from simdino.train.step import step

SHAPES: dict[str, dict[str, int]] = {
    "small": {"width": 384, "depth": 12, "heads": 6, "size": 224, "local": 96, "locals": 8, "patch": 16},
    "tiny": {"width": 192, "depth": 12, "heads": 3, "size": 224, "local": 96, "locals": 8, "patch": 16},
    "base": {"width": 768, "depth": 12, "heads": 12, "size": 224, "local": 96, "locals": 8, "patch": 16},
    "28px": {"width": 192, "depth": 12, "heads": 3, "size": 28, "local": 0, "locals": 0, "patch": 4},
}
CASES = (
    "ours, bfloat16", "ours, float32", "textbook, float32", "textbook, bfloat16, explicit", "textbook, bfloat16, fused",
)  # fmt: skip
COMPILED = "ours, bfloat16, compiled"
PEER = "lightly-train (DINO), bfloat16", "lightly-train (DINO), float32"
ON_GPU = ("ours, bfloat16", COMPILED, "textbook, bfloat16, fused", "textbook, bfloat16, compiled")
DINO_65536 = "ours, DINO with 65,536 prototypes, bfloat16"


def views(shape: dict[str, int], batch: int, device: str) -> Views:
    """Random views of a batch."""
    local, count, rows = shape["local"], shape["locals"], torch.arange(batch)
    local = torch.randn(count, batch, 3, local, local, device=device) if count else None
    return Views(
        global_views=torch.randn(2, batch, 3, shape["size"], shape["size"], device=device), local_views=local,
        ids=rows, keys=rows, indices=rows,
    )  # fmt: skip


def ours(
    shape: dict[str, int], batch: int, *, precision: Any, device: str, prototypes: int = 0, compiled: bool = False
) -> Callable[[], object]:
    """Our step, without drop path, which the textbook step has not."""
    keep_freed_memory()
    torch.manual_seed(0)
    config = EncoderConfig(
        name="vit", embed_dim=shape["width"], depth=shape["depth"], num_heads=shape["heads"], image_size=shape["size"],
        patch_size=shape["patch"], drop_path=0.0,
    )  # fmt: skip
    plain = Preprocess(resize=shape["size"], crop=shape["size"], channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    last = Prototypes(dim=256, count=prototypes, train_lengths=False) if prototypes else None
    student = Embedder(
        make_encoder(config, plain), Projector(embed_dim=shape["width"], hidden_dim=2048, out_dim=256, prototypes=last)
    )
    sizes = {"batch": batch, "dim": 256, "local_views": shape["locals"]}
    loss = DINO(**sizes, prototypes=prototypes) if prototypes else SimDINO(**sizes, eps=0.05**0.5)
    optim = OptimConfig(lr=5e-4)
    state = State.create(student, optim=optim, device=torch.device(device), precision=precision, buffers=loss.buffers)
    batch_of_views, autocast = views(shape, batch, device), make_autocast(device, precision)
    if compiled:
        compile_blocks([student.encoder, state.teacher.encoder], autocast=autocast, log=refuse)
    return lambda: step(state, batch_of_views, loss, steps=1000, optim=optim, autocast=autocast)


def refuse(line: str) -> None:
    """A case that cannot be compiled must not be timed as if it were."""
    raise RuntimeError(line)


def textbook(shape: dict[str, int], batch: int, *, how: str, bfloat16: bool, device: str) -> Callable[[], object]:
    """The textbook step on the same kind of views."""
    torch.manual_seed(0)
    network = Network(
        "vit_tiny_patch16_224", image_size=shape["size"], patch_size=shape["patch"], embed_dim=shape["width"],
        depth=shape["depth"], num_heads=shape["heads"],
    ).to(device)  # fmt: skip
    taken = Step(network, fused=how in ("fused", "compiled"), bfloat16=bfloat16, compiled=how == "compiled")
    given = views(shape, batch, device)
    every = [*given.global_views, *(() if given.local_views is None else given.local_views)]
    return lambda: taken(every)


def make(case: str, shape: dict[str, int], batch: int, device: str) -> Callable[[], object]:
    """A case by its name."""
    whose, precision, *how = case.split(", ")
    if case in PEER:
        return lightly_train_step(shape, batch, precision="bf16-mixed" if precision == "bfloat16" else "32-true")
    if case == DINO_65536:
        return ours(shape, batch, precision="bfloat16", device=device, prototypes=65_536)
    if whose == "ours":
        return ours(shape, batch, precision=precision, device=device, compiled=case == COMPILED)
    return textbook(shape, batch, how="".join(how), bfloat16=precision == "bfloat16", device=device)


def forward_operations(shape: dict[str, int]) -> float:
    """Multiplications and additions of a step per image: with T tokens, width D and depth L a view costs
    L (24 T D² + 4 T² D) in the forward pass, twice that backward; the teacher sees the two global views once."""

    def view(size: int) -> float:
        tokens, width = (size // shape["patch"]) ** 2 + 1, shape["width"]
        return shape["depth"] * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)

    student = 2 * view(shape["size"]) + shape["locals"] * view(shape["local"])
    return 3 * student + 2 * view(shape["size"])


def times(given: argparse.Namespace) -> None:
    """The table of seconds."""
    rows, gpu = [], given.device != "cpu"
    for name, images in product(given.shapes, given.batches):
        shape, batch = SHAPES[name], 8 * images if name == "28px" else images  # small images come in larger batches
        peers = PEER if shape["locals"] and find_spec("lightly_train") else ()
        cases = ON_GPU if gpu else (*CASES, COMPILED, *peers)
        makers = {case: partial(make, case, shape, batch, given.device) for case in cases}
        timings: dict[str, Timing] = {}
        for first in range(0, len(cases), given.together):
            group = {case: makers[case] for case in cases[first : first + given.together]}
            timings |= apart(group, repeats=given.repeats, threads=given.threads, device=given.device)
        ceilings = {name: matrix_rate(getattr(torch, name), given) for name in ("bfloat16", "float32")}
        for case, t in timings.items():
            rate = forward_operations(shape) * batch / t.median
            rows.append({
                "shape": name, "batch": batch, "step": case, "seconds": t.median,
                "slowest and fastest": f"{t.low:.2f} to {t.high:.2f}", "images/s": batch / t.median,
                "ours in bfloat16 is faster by": t.median / timings[CASES[0]].median,
                "share of the matrix rate": rate / ceilings[case.split(", ")[1]],
            })  # fmt: skip
    settings = {"threads": given.threads, "repeats": given.repeats, "device": given.device}
    store("step_gpu" if gpu else "step", settings, rows, keys=("shape", "batch", "step"))


def matrix_rate(dtype: torch.dtype, given: argparse.Namespace) -> float:
    """Operations per second of a square matrix product, at best."""
    size = 8192 if given.device.startswith("cuda") else 1024
    a = torch.randn(size, size, device=given.device).to(dtype)
    timings = take_turns({"": lambda: a @ a}, repeats=15, threads=given.threads, device=given.device)
    return 2.0 * size**3 / timings[""].low


def memory(given: argparse.Namespace) -> None:
    """The table of largest resident sizes."""
    rows = []
    for name, batch in product(given.shapes, given.batches):
        for case in (*CASES, DINO_65536):
            words = [sys.executable, __file__, "--one", case, "--shapes", name, "--batches", str(batch)]
            words += ["--threads", str(given.threads)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            rows.append({"shape": name, "batch": batch, "step": case, **json.loads(done.stdout.splitlines()[-1])})
    store("memory", {"threads": given.threads}, rows, keys=("shape", "batch", "step"))


def one(given: argparse.Namespace) -> None:
    """Three steps of one case, and what they took beyond the imports."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = make(given.one, SHAPES[given.shapes[0]], given.batches[0], "cpu")
    for _ in range(3):
        run()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"peak MB": round(after / 1e3), "beyond imports MB": round((after - before) / 1e3)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["small", "tiny", "28px"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--together", type=int, default=8, help="cases in memory at once; 4 for ViT-S at 16 in 24 GB")
    parser.add_argument("--device", default="cpu", help="cuda: the same on a GPU, beside the compiled textbook step")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.device == "cpu":
        pin(given.threads)
    (one if given.one else memory if given.memory else times)(given)


if __name__ == "__main__":
    main()
