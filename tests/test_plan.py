"""Planning: a run that took steps before it began, to time them, is the run that never did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distributed.two_processes import on_two_processes
from simdino.assembly import build
from simdino.options import Options
from simdino.plan import Plan, plan
from simdino.pretraining import pretrain
from simdino.timing import Trial
from simdino.train.parallel import Processes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
WORDS = {"encoder": "vit_toy", "patch_size": 4, "batch": 8, "precision": "float32", "drop_path": 0.2}


def short(planned: Plan) -> Plan:
    """The plan with two steps and a small evaluation."""
    run = replace(planned.config.run, steps=2, evaluate_every=2, knn_bank=64, knn_queries=32)
    return replace(planned, config=replace(planned.config, run=run))


@pytest.mark.parametrize("method", ["simdino", "dinov2"])
def test_a_run_that_was_probed_is_the_same_to_the_bit(method: str, tmp_path: Path) -> None:
    lines: list[str] = []
    prototypes = 32 if method == "dinov2" else None
    options = Options(**WORDS, minutes=1.0, method=method, prototypes=prototypes)
    planned = short(plan("digits", options, tmp_path / "probed", log=lines.append))
    assert lines[0] == "timing    a few steps on this machine, for the length of the run"
    assert planned.training is not None
    student = planned.training.state.student
    config, monitor = planned.config, build(planned.config, Processes()).monitor
    probed = replace(planned, training=replace(planned.training, config=config, monitor=monitor))
    pretrain(probed, tmp_path / "probed", log=lines.append)
    assert planned.training.state.student is student  # it was not built again
    pretrain(config, tmp_path / "built", log=lines.append)
    for name in ("metrics.jsonl", "encoder.safetensors", "checkpoints/step-00000002/state.pt"):
        assert (tmp_path / "probed" / name).read_bytes() == (tmp_path / "built" / name).read_bytes(), name


def is_rewound(among: Processes) -> bool:
    options = Options(**{**WORDS, "encoder": "vit_pico"}, steps=2)  # one that new processes know
    config = plan("digits", options, "runs/never", log=lambda _: None).config
    trial = Trial(config, among, build(config, among).data)
    return trial.rewound() is trial.training


def test_several_processes_build_anew(tmp_path: Path) -> None:
    assert is_rewound(Processes())
    assert on_two_processes(is_rewound, tmp_path) == [False, False]
