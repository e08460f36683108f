"""A state whose tensors were saved with other strides, as a divided one's are, goes on to the same weights."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from simdino import recipes
from simdino.assembly import build
from simdino.options import Options
from simdino.train.parallel import Processes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def contiguous(value: Any) -> Any:
    """Nested containers with every tensor contiguous."""
    if isinstance(value, dict):
        return {name: contiguous(part) for name, part in value.items()}
    return value.contiguous() if isinstance(value, Tensor) else value


def test_strides_of_a_checkpoint_change_no_bit() -> None:
    words: dict[str, Any] = {"encoder": "conv_pico", "batch": 8, "steps": 4, "patch_size": 4, "precision": "float32"}
    config = recipes.resolve("digits", Options(**words, device="cpu", local_views=0))
    began = build(config, Processes())
    views = [views for views, _ in began.loader.steps(0, 3)]
    began.step(views[0])
    saved = deepcopy(began.state.tensors())
    other = contiguous(saved)
    name = "encoder.blocks.0.conv1.weight"
    assert saved["student"][name].stride() != other["student"][name].stride()
    ends = []
    for tensors in (saved, other):
        training = build(config, Processes())
        training.state.load(deepcopy(tensors))
        for one in views[1:]:
            training.step(one)
        ends.append(training.state.tensors())
    assert all(torch.equal(x, ends[1]["student"][name]) for name, x in ends[0]["student"].items())
