"""Ten steps of each method on digits in float64: the numbers in `CASE.json` beside this file.

Where a change is meant to move them, `python tests/golden/ten_steps.py` writes them anew; the commit says why.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from simdino import recipes
from simdino.assembly import build
from simdino.contracts import Views
from simdino.methods import METHODS
from simdino.models.catalogue import ENCODERS
from simdino.models.vit import vit
from simdino.options import Options
from simdino.train.parallel import Processes
from simdino.train.state import State
from simdino.train.step import step

HERE = Path(__file__).parent
STEPS = 10
TOY = vit(32, 2, 2)
CASES = {
    **{method: {"method": method, "optimizer": "adamw", "teacher": "ema"} for method in METHODS},
    "muon": {"method": "simdino", "optimizer": "muon", "teacher": "none", "drop_path": 0.0, "lr": 1e-3 / 30},
}
"""What is given in each case, beside what all have."""


def ten_steps(case: str) -> list[dict[str, float]]:
    """What each of ten steps logs: the loss, its terms, health, the gradient's norm and the schedules.

    The views are computed in float32 as in every run, the networks, the loss and the optimizer in float64, so that the
    numbers are those of the formulas and hardly depend on the processor."""
    given: dict[str, Any] = {
        "encoder": "vit_toy", "steps": STEPS, "batch": 16, "patch_size": 4, "local_views": 2, "drop_path": 0.2,
        "threads": 1, "precision": "float32", "device": "cpu", "workers": 0, **CASES[case],
    }  # fmt: skip
    if "prototypes" in METHODS[given["method"]].parts:
        given["prototypes"] = 32
    options = Options({"projector.layers": 3}, **given)
    config = recipes.resolve("digits", options)
    parts = build(config, Processes())
    student = parts.state.student.double()
    state = State.create(
        student, optim=config.optim, buffers=parts.loss.buffers, device=torch.device("cpu"), precision="float32"
    )
    autocast = torch.autocast("cpu", enabled=False)
    return [
        {key: float(value) for key, value in step(
            state, doubled(views), parts.loss, steps=STEPS, optim=config.optim, autocast=autocast
        ).items()}
        for views, _ in parts.loader.steps(0, STEPS)
    ]  # fmt: skip


def doubled(views: Views) -> Views:
    """The same views in float64."""
    local = None if views.local_views is None else views.local_views.double()
    return replace(views, global_views=views.global_views.double(), local_views=local)


def main() -> None:
    """Write the files anew."""
    ENCODERS["vit_toy"] = TOY
    for case in CASES:
        (HERE / f"{case}.json").write_text(json.dumps(ten_steps(case), indent=1) + "\n")


if __name__ == "__main__":
    main()
