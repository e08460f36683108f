"""Is anything lost when a process dies? A run of two processes is killed at random moments: its first process, the
second, one that reads images, torchrun itself. Each time it goes on; in the end all files equal those of the run that
was never killed, bit for bit.

    python benchmarks/kills.py --kills 30

Prints a Markdown table and stores benchmarks/results/kills.json. Linux alone, as it reads /proc.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from rows import keep
from safetensors.torch import load_file

from simdino.runs.checkpoints import checkpoints, damage, step_of
from simdino.runs.folder import machine, source_revision, trainer_of
from simdino.saved import read_rows

VICTIMS = ("first process", "second process", "data worker", "launcher")
BETWEEN = 12  # steps from one kill to the next, on average
LAUNCH = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--monitor-interval=0.1",
    "--max-restarts=1000", "-m", "simdino", "pretrain",
]  # fmt: skip
WORDS = [
    "--encoder", "vit_pico", "--batch", "16", "--workers", "1", "--threads", "1", "--precision", "float32", "--device",
    "cpu", "--drop-path", "0.1", "--checkpoint-every", "4", "--keep", "2", "--set", "run.log_every=1",
]  # fmt: skip
"""Small and quick: what takes time is starting it again."""


class Launched:
    """A run under torchrun."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.folder, self.errors = folder, folder.with_suffix(".log")
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.errors.open("a") as file:
            self.launcher = subprocess.Popen([*LAUNCH, *words], env=env, stdout=file, stderr=file)

    def find(self, victim: str) -> int | None:
        """The number of a process that can be killed now, or None."""
        if victim == "launcher":
            return self.launcher.pid
        ranks = {environment(child).get("RANK"): child for child in children(self.launcher.pid)}
        rank = ranks.get("1" if victim == "second process" else "0")
        if rank is None or victim != "data worker":
            return rank
        return next(children(rank), None)

    def reaches(self, step: int) -> None:
        """Wait until so many steps are logged. Raises RuntimeError where the run ends before."""
        while not step <= last_step(self.folder):
            if self.launcher.poll() is not None:
                raise RuntimeError(f"the run ended before step {step}: {self.errors.read_text()[-2000:]}")
            time.sleep(0.002)

    def ends(self) -> int:
        """Wait for the end of the launcher and of the processes that it leaves behind; its exit code."""
        code = self.launcher.wait()
        while trainer_of(self.folder) is not None:
            time.sleep(0.05)
        return code


def children(process: int) -> Iterator[int]:
    """The processes that a process has started and that live."""
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            yield from map(int, task.read_text().split())
        except OSError:
            return


def environment(process: int) -> dict[str, str]:
    """The environment variables that a process began with; empty where it is gone."""
    try:
        words = Path(f"/proc/{process}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


def last_step(folder: Path) -> int:
    """The newest step in metrics.jsonl; -1 before any."""
    rows = read_rows(folder / "metrics.jsonl")
    return rows[-1]["step"] if rows else -1


def unharmed(folder: Path) -> None:
    """Raise RuntimeError where a file that somebody may read now is not whole."""
    for checkpoint in checkpoints(folder):
        if (why := damage(checkpoint)) is not None:
            raise RuntimeError(f"{checkpoint} is damaged: {why}")
    for weights in folder.glob("encoder*.safetensors"):
        load_file(weights)


def campaign(folder: Path, *, kills: int, seed: int) -> list[dict[str, Any]]:
    """Train in a folder, kill a process so many times and go on each time; what was killed, and when."""
    random, told = Random(seed), []
    steps = steps_for(kills)
    targets = sorted(random.sample(range(6, steps - 6), kills))
    victims = [VICTIMS[i % len(VICTIMS)] for i in range(kills)]
    random.shuffle(victims)
    run = Launched(folder, [*words_for(kills), "--out", str(folder)])
    for target, victim in zip(targets, victims, strict=True):
        run.reaches(target)
        time.sleep(random.uniform(0, 0.2))
        while (process := run.find(victim)) is None:
            time.sleep(0.01)
        os.kill(process, signal.SIGKILL)
        if victim == "launcher":
            run.ends()
        at, saved = last_step(folder), [step_of(checkpoint) for checkpoint in checkpoints(folder)]
        unharmed(folder)
        told.append({"kill": len(told) + 1, "victim": victim, "after step": at, "newest checkpoint": max(saved)})
        if victim == "launcher":
            run = Launched(folder, ["--resume", str(folder)])
    if run.ends():
        raise RuntimeError(run.errors.read_text()[-2000:])
    return told


def steps_for(kills: int) -> int:
    """The length of a run that so many kills fit in."""
    return BETWEEN * (kills + 1)


def words_for(kills: int) -> list[str]:
    """The run."""
    return ["digits", "--steps", str(steps_for(kills)), "--evaluate-every", str(steps_for(kills) // 3), *WORDS]


def differences(run: Path, reference: Path) -> list[str]:
    """What differs between two finished runs: files, and the tensors of their last checkpoints."""
    names = ("encoder.safetensors", "encoder-best.safetensors", "metrics.jsonl")
    found = [name for name in names if (run / name).read_bytes() != (reference / name).read_bytes()]
    ours, theirs = (
        dict(leaves(torch.load(checkpoints(folder)[-1] / "state.pt", weights_only=True))) for folder in (run, reference)
    )
    found += [name for name in theirs if name not in ours or not same(ours[name], theirs[name])]
    return found + [f"{file.name} is left" for file in (*run.glob(".*"), *run.glob("checkpoints/.*"))]


def same(one: object, other: object) -> bool:
    """Whether two values are the same, tensors bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return one == other


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every tensor and number in nested containers, with its place."""
    if isinstance(value, dict | list | tuple):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, f"{path}/{name}")
    else:
        yield path, value


def survives(folder: Path, *, kills: int, seed: int) -> list[dict[str, Any]]:
    """A campaign in a folder beside the run that was never killed. Raises RuntimeError where they differ."""
    whole = Launched(folder / "whole", [*words_for(kills), "--out", str(folder / "whole")])
    if whole.ends():
        raise RuntimeError(whole.errors.read_text()[-2000:])
    told = campaign(folder / "killed", kills=kills, seed=seed)
    if found := differences(folder / "killed", folder / "whole"):
        raise RuntimeError(f"after {kills} kills these differ: {', '.join(found[:10])}")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = survives(Path(folder), kills=given.kills, seed=given.seed)
    about = {"machine": machine(), "source_revision": source_revision()}
    columns = {name: name for name in ("kill", "victim", "after step", "newest checkpoint")}
    keep("kills", [{**row, **about} for row in rows], keys=(), columns=columns)
    print(f"\nAfter {given.kills} kills all weights and numbers equal those of the run that was never killed.")


if __name__ == "__main__":
    main()
