"""A run under torchrun with divided weights is the run of one process, and goes on on any number of processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simdino.saved import read_metadata, read_rows

pytestmark = pytest.mark.slow

STEPS, HALF = 8, 4
WORDS = (
    f"digits --steps {STEPS} --checkpoint-every {HALF} --evaluate-every {STEPS} --batch 16 --patch-size 4 --threads 1 "
    "--precision float32 --device cpu --drop-path 0.1 --encoder vit_pico --lr 1e-3 --teacher ema --workers"
).split()
"""The gradient of a key's bias is zero but for rounding, and AdamW makes a step of it: hence the tolerance."""


def simdino(words: list[str], *, processes: int) -> str:
    """What a command says on as many processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, "-m", "simdino", "pretrain", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == STEPS
    return done.stderr


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of one process and that of two, among which the state is divided."""
    top = tmp_path_factory.mktemp("runs")
    simdino([*WORDS, "0", "--out", str(top / "one")], processes=1)
    said = simdino([*WORDS, "3", "--parallel", "fsdp", "--out", str(top / "fsdp")], processes=2)
    assert "2 x cpu, float32, fsdp" in said and "warning" not in said.lower()
    return top


def half(run: Path, folder: Path) -> Path:
    """A copy of a run as it was in its middle."""
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "checkpoints" / f"step-{STEPS:08d}")
    (folder / "report.html").unlink()
    return folder


def check_same(run: Path, reference: Path) -> None:
    """Weights, the rows of numbers, and the layout of the checkpoint."""
    ours, theirs = (load_file(folder / "encoder.safetensors") for folder in (run, reference))
    assert ours.keys() == theirs.keys()
    flat = [torch.cat([x.flatten() for x in of.values()]) for of in (ours, theirs)]
    assert (flat[0] - flat[1]).norm() < 1e-5 * flat[1].norm()
    rows = [read_rows(folder / "metrics.jsonl") for folder in (run, reference)]
    for row, other in zip(*rows, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-3)
    states = [
        torch.load(folder / "checkpoints" / f"step-{STEPS:08d}" / "state.pt", weights_only=True)
        for folder in (run, reference)
    ]
    shapes = [
        {f"{part}.{name}": x.shape for part in ("student", "teacher") for name, x in of[part].items()} for of in states
    ]
    assert shapes[0] == shapes[1]
    assert states[0]["optimizer"]["state"].keys() == states[1]["optimizer"]["state"].keys()


def test_a_divided_run_is_the_run_of_one_process(top: Path) -> None:
    check_same(top / "fsdp", top / "one")
    assert read_metadata(top / "fsdp").config.speed.parallel == "fsdp"


@pytest.mark.parametrize(
    ("began", "processes", "words"),
    [
        ("fsdp", 1, ["--workers", "0"]),
        ("fsdp", 2, ["--parallel", "ddp", "--workers", "1", "--micro-batch", "2"]),
        ("one", 2, ["--parallel", "fsdp", "--workers", "3", "--recompute"]),
        ("one", 2, []),
    ],
    ids=["two divided, then one", "two divided, then two whole", "one, then two divided", "one, then two whole"],
)
def test_a_run_goes_on_on_other_processes(
    top: Path, tmp_path: Path, began: str, processes: int, words: list[str]
) -> None:
    run = half(top / began, tmp_path / "run")
    said = simdino(["--resume", str(run), *words], processes=processes)
    assert f"after step {HALF} of {STEPS}" in said
    check_same(run, top / "one")
    speed = read_metadata(run).config.speed
    for name, value in zip(words[::2], words[1::2], strict=False):
        assert str(getattr(speed, name[2:].replace("-", "_"))) == value
