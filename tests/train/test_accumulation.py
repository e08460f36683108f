"""Micro-batches: what is held of a batch while they go through the network. That they give the step of the whole batch
is held by tests/distributed/test_ten_steps.py and tests/train/test_step.py."""

from __future__ import annotations

import weakref
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from simdino import recipes
from simdino.assembly import build
from simdino.contracts import Views
from simdino.data.loader import Batches
from simdino.methods import METHODS
from simdino.options import Options
from simdino.train.loop import OtherProcess, Training, run_steps
from simdino.train.optim import put_together
from simdino.train.parallel import Processes

PROTOTYPED = [name for name, method in METHODS.items() if "prototypes" in method.parts]


def made(**words: Any) -> Training:
    shape = {"encoder": "vit_toy", "patch_size": 4, "local_views": 2, "batch": 32, "steps": 3, "workers": 0}
    how = {"device": "cpu", "precision": "float32", "threads": 1}
    return build(recipes.resolve("digits", Options(**{**shape, **how, **words})), Processes())


class FloatViews(TorchDispatchMode):
    """The most images whose views of a side are ever made in floating point at a time."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side, self.images = side, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point() and result.shape[-2:] == (self.side, self.side):
            self.images = max(self.images, result.untyped_storage().nbytes() // (4 * self.side**2))
        return result


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_no_more_views_become_float32_than_go_through_the_network(method: str, micro_batch: int | None) -> None:
    training = made(method=method, micro_batch=micro_batch)
    with FloatViews(training.config.views.global_size) as seen:
        for views, _ in training.loader.steps(0, 1):
            training.step(views)
    assert seen.images == 2 * (micro_batch or 32)


@pytest.mark.parametrize("method", PROTOTYPED)
def test_micro_batches_share_their_prototypes(method: str) -> None:
    training = made(method=method)
    ((views, _),) = training.loader.steps(0, 1)
    with torch.no_grad():
        teachers, students = training.state.embeddings(views.split(8), students=True)
    for networks in (teachers, students or []):
        heads = [[one.logits, one.patches.logits] if one.patches else [one.logits] for one in networks]
        assert len(networks) == 4
        for head in zip(*heads, strict=True):
            assert len({logits.weight.data_ptr() for logits in head if logits is not None}) == 1


@pytest.mark.parametrize("micro_batch", [None, 8])
def test_a_batch_is_dropped_before_the_next_is_read(micro_batch: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    training, alive, read = made(micro_batch=micro_batch), [], Batches.__getitem__
    held: list[weakref.ref[Tensor]] = []

    def reads(batches: Batches, step: int) -> tuple[Views, dict[int, str]]:
        alive.append(sum(one() is not None for one in held))
        found = read(batches, step)
        held.extend(weakref.ref(x) for f in fields(Views) if isinstance(x := getattr(found[0], f.name), Tensor))
        return found

    monkeypatch.setattr(Batches, "__getitem__", reads)
    run_steps(training, OtherProcess())
    assert training.state.step == 3
    assert alive == [0, 0, 0]


def test_gradients_put_together_are_the_same_and_are_added_to_where_they_are() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last), nn.Linear(4, 2).double()])
    unused = nn.Linear(2, 2)
    model.append(unused)
    images, rows = torch.randn(2, 3, 8, 8), torch.randn(6, 4, dtype=torch.float64)

    def backward() -> None:
        (model[0](images).square().sum() + model[1](rows).square().sum()).backward()

    backward()
    once = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    put_together(model)
    places = {name: p.grad.data_ptr() for name, p in model.named_parameters() if p.grad is not None}
    assert places.keys() == once.keys() and unused.weight.grad is None
    for layer in model[:2]:
        assert len({p.grad.untyped_storage().data_ptr() for p in layer.parameters() if p.grad is not None}) == 1
    for factor in (1, 2):
        for name, p in model.named_parameters():
            if p.grad is not None:
                torch.testing.assert_close(p.grad, factor * once[name])
                assert (p.grad.data_ptr(), p.grad.stride()) == (places[name], p.stride())
        backward()
