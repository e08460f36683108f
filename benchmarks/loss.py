"""Seconds and memory of the losses alone, features to gradients, on one thread: SimDINO's rate and DINO's 65,536
prototypes, ours and as the official codes write them.

    python benchmarks/loss.py --batches 64 1024

Each case runs in a process of its own. DINO written out holds every logit of a batch: 16 GB at 1,024 images, so that it
is left out there unless --large is given. Stores benchmarks/results/loss.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from itertools import product

import torch
from textbook import alignment, coding_rate
from timing import pin, store, take_turns
from torch import Tensor
from torch.nn import functional as F

from simdino.contracts import Embeddings, Logits, identity
from simdino.device import keep_freed_memory
from simdino.losses.dino import DINO
from simdino.losses.objective import Objective
from simdino.losses.simdino import SimDINO

GLOBAL, LOCAL, DIM, PROTOTYPES = 2, 8, 256, 65_536
CASES = ("SimDINO, ours", "SimDINO, written out", "DINO, ours", "DINO, written out")


def unit(*shape: int) -> Tensor:
    """Random unit vectors."""
    return F.normalize(torch.randn(shape), dim=-1)


def objective(loss: Objective, batch: int, *, prototypes: bool) -> Callable[[], object]:
    """Our loss and its gradient, as a step calls it."""
    student, teacher = unit(GLOBAL + LOCAL, batch, DIM).requires_grad_(), unit(GLOBAL, batch, DIM)
    weights = (unit(PROTOTYPES, DIM).requires_grad_(), unit(PROTOTYPES, DIM)) if prototypes else (None, None)

    def embeddings(x: Tensor, weight: Tensor | None) -> Embeddings:
        logits = None if weight is None else Logits(features=x, weight=weight)
        return Embeddings(cls=x, backbone=x, indices=torch.arange(batch), logits=logits)

    def run() -> None:
        ours, theirs = embeddings(student, weights[0]), embeddings(teacher, weights[1])
        statistics = loss.global_statistics([theirs], None, temperature=0.04, all_reduce=identity)
        loss(ours, theirs, statistics[0]).total.backward()
        loss.health([theirs], statistics)
        loss.update_buffers([theirs], all_reduce=identity)

    return run


def simdino_written_out(batch: int) -> Callable[[], object]:
    """Alignment pair by pair, the rate of each global view."""
    student, teacher = unit(GLOBAL + LOCAL, batch, DIM).requires_grad_(), unit(GLOBAL, batch, DIM)

    def run() -> None:
        rate = sum((coding_rate(z) for z in student[:GLOBAL]), torch.zeros(()))
        (alignment(list(student), list(teacher)) - rate / DIM).backward()

    return run


def dino_written_out(batch: int) -> Callable[[], object]:
    """DINO's loss as its code has it (main_dino.py at 7c446df), with the layer of prototypes."""
    student, teacher = unit(GLOBAL + LOCAL, batch, DIM).requires_grad_(), unit(GLOBAL, batch, DIM)
    prototypes, theirs, center = unit(PROTOTYPES, DIM).requires_grad_(), unit(PROTOTYPES, DIM), torch.zeros(PROTOTYPES)

    def run() -> None:
        out = [logits / 0.1 for logits in F.linear(student, prototypes)]
        targets = [F.softmax((logits - center) / 0.04, dim=-1) for logits in F.linear(teacher, theirs)]
        pairs = [(t, z) for g, t in enumerate(targets) for v, z in enumerate(out) if v != g]
        losses = [torch.sum(-t * F.log_softmax(z, dim=-1), dim=-1).mean() for t, z in pairs]
        (sum(losses, torch.zeros(())) / len(losses)).backward()

    return run


def make(case: str, batch: int) -> Callable[[], object]:
    """A case by its name."""
    sizes = {"batch": batch, "dim": DIM, "global_views": GLOBAL, "local_views": LOCAL}
    if case == "SimDINO, ours":
        return objective(SimDINO(**sizes, eps=0.05**0.5), batch, prototypes=False)
    if case == "DINO, ours":
        return objective(DINO(**sizes, prototypes=PROTOTYPES), batch, prototypes=True)
    return (simdino_written_out if case.startswith("SimDINO") else dino_written_out)(batch)


def one(case: str, batch: int, repeats: int) -> None:
    """Time and memory of one case, as JSON. The prototypes themselves are not counted as the loss's memory."""
    keep_freed_memory()
    run = make(case, batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = take_turns({case: run}, repeats=repeats)[case].median
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "MB": round((after - before) / 1e3)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 1024])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="DINO written out at batches above 64 too")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    pin(1)
    if given.one:
        one(given.one, given.batches[0], given.repeats)
        return
    rows = []
    for batch, case in product(given.batches, CASES):
        if case == "DINO, written out" and batch > 64 and not given.large:
            continue
        repeats = 1 if case.startswith("DINO") and batch > 64 else given.repeats  # tens of seconds each
        words = [sys.executable, __file__, "--one", case, "--batches", str(batch), "--repeats", str(repeats)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        rows.append({"batch": batch, "loss": case, **json.loads(done.stdout.splitlines()[-1])})
    store("loss", {"views": f"{GLOBAL} + {LOCAL}", "dim": DIM, "prototypes": PROTOTYPES, "threads": 1}, rows)


if __name__ == "__main__":
    main()
