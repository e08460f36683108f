"""What must hold on a GPU, each as a function of a device and an empty folder that raises AssertionError: for
`test_checks.py` and, without pytest, for `benchmarks/gpu.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simdino.assembly import build
from simdino.contracts import Views
from simdino.data.photometric import distort, distortions, photometric, to_unit_range, view_draws
from simdino.device import make_autocast
from simdino.methods import METHODS
from simdino.options import Options
from simdino.recipes import resolve
from simdino.rng import sample_keys
from simdino.runs.checkpoints import load_checkpoint, save_checkpoint
from simdino.train.loop import Training
from simdino.train.parallel import Processes
from simdino.train.step import step

STEPS = 10


def parts_on(device: str, *, precision: str = "float32", method: str = "simdino", **words: Any) -> tuple[Any, Training]:
    """The configuration and the objects of a small run on digits, weights as the seed draws them."""
    prototypes = 64 if "prototypes" in METHODS[method].parts else None
    usual = {"encoder": "vit_pico", "batch": 16, "steps": STEPS, "local_views": 2, "image_size": 16, "threads": 1}
    options = Options(
        **{**usual, "method": method, "prototypes": prototypes, "device": device, "precision": precision, **words}
    )
    config = resolve("digits", options)
    config = replace(config, speed=replace(config.speed, workers=0))
    return config, build(config, Processes())


def moved(views: Views, device: str) -> Views:
    """The same views on another device."""
    masks, local = (None if x is None else x.to(device) for x in (views.masks, views.local_views))
    return replace(views, global_views=views.global_views.to(device), local_views=local, masks=masks)


def take(config: Any, parts: Training, views: Views) -> dict[str, float]:
    """One step; what happened as numbers."""
    speed = config.speed
    found = step(
        parts.state, views, parts.loss, steps=STEPS, optim=config.optim,
        autocast=make_autocast(speed.device, speed.precision),
    )  # fmt: skip
    return {name: float(value) for name, value in found.items()}


def weights(parts: Training) -> Tensor:
    """The student's as one vector on the CPU, float64."""
    return torch.cat([p.detach().double().cpu().flatten() for p in parts.state.student.parameters()])


def distance(a: Tensor, b: Tensor) -> float:
    """Relative."""
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def one_step(device: str, folder: Path, *, method: str, encoder: str) -> None:
    """A step in float32 is the CPU's: loss, terms, gradient norm, and the change of the weights."""
    found, changes = [], []
    for place in ("cpu", device):
        config, parts = parts_on(place, method=method, encoder=encoder)
        before = weights(parts)
        views = moved(next(parts_on("cpu", method=method, encoder=encoder)[1].loader.steps(0, 1))[0], place)
        found.append(take(config, parts, views))
        changes.append(weights(parts) - before)
    for name, expected in found[0].items():
        assert abs(found[1][name] - expected) <= 1e-3 * abs(expected) + 1e-5, (name, found[1][name], expected)
    assert distance(changes[1], changes[0]) < 0.05, distance(changes[1], changes[0])  # Adam divides by small numbers


def bfloat16(device: str, folder: Path, *, method: str) -> None:
    """Five steps in bfloat16 are finite, and the loss is that of float32 within a hundredth at the first."""
    losses = {}
    for precision in ("bfloat16", "float32"):
        config, parts = parts_on(device, precision=precision, method=method)
        taken = [take(config, parts, views) for views, _ in parts.loader.steps(0, 5)]
        assert all(isfinite(value) for row in taken for value in row.values()), taken
        losses[precision] = taken[0]["loss"]
    assert abs(losses["bfloat16"] - losses["float32"]) <= 0.02 * abs(losses["float32"]) + 0.02, losses


def resumed(device: str, folder: Path) -> None:
    """Two steps, a checkpoint, two steps by new objects: the weights of four steps, to the bit on a CPU."""
    config, whole = parts_on(device, method="dinov2")
    for views, _ in whole.loader.steps(0, 4):
        take(config, whole, views)
    config, first = parts_on(device, method="dinov2")
    for views, _ in first.loader.steps(0, 2):
        take(config, first, views)
    checkpoint = save_checkpoint(folder, first.state.tensors(), config, revision=None, keep=set())
    config, second = parts_on(device, method="dinov2")
    load_checkpoint(checkpoint, config, into=second.state.load)
    assert all(p.device.type == torch.device(device).type for p in second.state.student.parameters())
    for views, _ in second.loader.steps(2, 4):
        take(config, second, views)
    assert distance(weights(second), weights(whole)) <= (0 if device == "cpu" else 1e-4)


def compiled(device: str, folder: Path, *, precision: str) -> None:
    """Compiled blocks have the loss of eager ones, and none of them falls back."""
    losses, said = [], []
    for compile_ in (False, True):
        config, parts = parts_on(device, precision=precision, method="simdinov2")
        if compile_:
            config = replace(config, speed=replace(config.speed, compile=True))
            parts = build(config, Processes(), log=said.append)
        losses.append([take(config, parts, views)["loss"] for views, _ in parts.loader.steps(0, 2)])
    slack = 1e-3 if precision == "float32" else 3e-2
    assert not said, said
    assert np.allclose(losses[0], losses[1], rtol=slack, atol=slack), losses


def photometry(device: str, folder: Path, *, channels: int) -> None:
    """The views of crops are those that the CPU's compiled operations make, and each operation alone is too."""
    law = parts_on("cpu")[0].views
    keys = torch.from_numpy(sample_keys(0, 0, np.arange(64)))
    shape = (2, 64, channels, 40, 32)
    crops = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    expected = photometric(crops, keys, config=law, first=0, **plain)
    if device == "cpu":  # the operations for GPUs, on the CPU
        found = torch.stack([on_device(crop, keys, law, view) for view, crop in enumerate(crops)])
    else:
        found = photometric(crops.to(device), keys, config=law, first=0, **plain).cpu()
    apart = (found - expected).abs()
    assert apart.mean() < 1e-4, float(apart.mean())
    assert (apart > 2 / 255).double().mean() < 1e-3, float(apart.max())  # a rounded pixel on solarisation's threshold


def on_device(crop: Tensor, keys: Tensor, law: Any, view: int) -> Tensor:
    """One view of crops uint8 [B, C, h, w] by the operations for GPUs."""
    chosen = distortions(view_draws(keys, view), config=law, view=view, colour=crop.shape[1] == 3)
    return distort(to_unit_range(crop.clone()), chosen)


Check = Callable[[str, Path], None]

CHECKS: dict[str, Check] = {
    **{f"one step of {m}": partial(one_step, method=m, encoder="vit_pico") for m in METHODS},
    "one step of crate": partial(one_step, method="simdino", encoder="crate_nano"),
    "photometry in colour": partial(photometry, channels=3),
    "photometry in grey": partial(photometry, channels=1),
    **{f"bfloat16 of {m}": partial(bfloat16, method=m) for m in METHODS},
    "resume": resumed,
    "compiled, float32": partial(compiled, precision="float32"),
    "compiled, bfloat16": partial(compiled, precision="bfloat16"),
}
"""By name, the most important first."""

SLOW_ON_A_CPU = tuple(name for name in CHECKS if name.startswith(("bfloat16", "compiled")))
"""Half a minute each there, where tests of --precision and --compile do the same."""
