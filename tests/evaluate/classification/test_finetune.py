"""Fine-tuning: its learning rates written out, its step against plain torch, and what it leaves alone."""

from __future__ import annotations

import copy
from math import cos, pi

import pytest
import torch
from coloured import both, colours, make
from torch import nn
from torch.nn import functional as F

from simdino.contracts import InputError
from simdino.evaluate import finetune
from simdino.evaluate.classification.training import (
    EncoderWithHead,
    Length,
    batches,
    check_finite,
    fine_tune,
    set_drop_path,
)
from simdino.models.groups import parameter_groups

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
CPU = torch.device("cpu")


def test_learning_rates_fall_by_layer_as_written_out() -> None:
    model = EncoderWithHead(make(depth=3), classes=2, seed=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(p)]: (group["lr_scale"], group["decays"])
        for group in parameter_groups(model, layer_decay=0.5)
        for p in group["params"]
    }
    assert found["encoder.cls_token"] == (0.0625, True)
    assert found["encoder.pos_embed"] == (0.0625, True)
    assert found["encoder.patch_embed.proj.weight"] == (0.0625, True)
    assert found["encoder.patch_embed.proj.bias"] == (0.0625, False)
    assert found["encoder.blocks.0.attn.qkv.weight"] == (0.125, True)
    assert found["encoder.blocks.1.mlp.fc1.bias"] == (0.25, False)
    assert found["encoder.blocks.2.norm1.weight"] == (0.5, False)
    assert found["encoder.norm.weight"] == (1.0, False)
    assert found["head.weight"] == (1.0, True)
    assert found["head.bias"] == (1.0, False)
    assert set(found) == {name for name, _ in model.named_parameters()}


def by_torch(model: nn.Module, length: Length, steps: list, *, lr: float, warmup: int, label_smoothing: float) -> None:
    """Plain AdamW with a group for each parameter and LambdaLR."""
    groups = []
    for name, parameter in model.named_parameters():
        layer = 4 if name.startswith(("encoder.norm", "head")) else 0
        if name.startswith("encoder.blocks."):
            layer = int(name.split(".")[2]) + 1
        groups.append(
            {
                "params": [parameter],
                "lr": lr * 0.7 ** (4 - layer),
                "weight_decay": 0.1 if parameter.ndim > 1 else 0.0,
            }
        )

    def share(step: int) -> float:
        step += 1
        if step < warmup:
            return step / warmup
        return (1 + cos(pi * (step - warmup) / (length.steps + 1 - warmup))) / 2

    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    for images, labels, keys in steps:
        optimizer.zero_grad()
        logits = model(images, keys)
        wanted = torch.full_like(logits, label_smoothing / 3)
        wanted[torch.arange(len(labels)), labels] += 1 - label_smoothing
        loss = -(wanted * F.log_softmax(logits, dim=1)).sum(1).mean()
        loss.backward()
        optimizer.step()
        schedule.step()


def test_its_steps_are_those_of_plain_torch() -> None:
    train, _ = both()
    length = Length(batch=8, steps=10, steps_per_epoch=6)
    steps = list(batches(train, make(depth=3), length, seed=0, workers=0, broken={}))
    ours = EncoderWithHead(make(depth=3), classes=3, seed=0).train()
    theirs = copy.deepcopy(ours)
    fine_tune(
        ours, steps, length, lr=3e-3, layer_decay=0.7, weight_decay=0.1, warmup=4, label_smoothing=0.2,
        precision="float32",
    )  # fmt: skip
    by_torch(theirs, length, steps, lr=3e-3, warmup=4, label_smoothing=0.2)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5, msg=name)


def test_separable_classes_are_learned_and_the_given_encoder_stays_as_it_was() -> None:
    encoder = make(depth=2, drop_path=0.3).train()
    before = copy.deepcopy(encoder.state_dict())
    found = finetune(encoder, both(32), steps=80, batch=16, lr=0.02)
    assert (found.top1, found.top5) == (100, 100)
    assert found.loss < 0.8
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert encoder.training and getattr(encoder, "rates", None) == [0.0, 0.3]
    tuned = found.classifier.encoder.state_dict()
    assert all(not torch.equal(tuned[name], before[name]) for name in before)  # the whole encoder was trained


def test_results_are_the_same_twice_and_differ_by_seed_and_drop_path() -> None:
    def weights(**settings: float) -> torch.Tensor:
        return finetune(make(), both(), steps=3, batch=16, **settings).classifier.weight  # pyright: ignore

    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(), weights(seed=1))
    assert not torch.equal(weights(), weights(drop_path=0.0))


@pytest.mark.parametrize("name", ["conv_pico", "hybrid_nano", "crate_nano"])
def test_every_encoder_of_ours_drops_branches_when_it_is_fine_tuned(name: str) -> None:
    encoder, said = make(name), list[str]()
    assert encoder.same_in_training
    assert set_drop_path(encoder, 0.4, log=said.append) == 0.4
    assert not said and encoder.rates is not None and max(encoder.rates) == 0.4 and not encoder.same_in_training


@pytest.mark.extra("timm")
def test_drop_path_is_set_where_there_is_one() -> None:
    said: list[str] = []
    encoder = make(depth=3)
    assert set_drop_path(encoder, 0.4, log=said.append) == 0.4
    assert getattr(encoder, "rates", None) == pytest.approx([0, 0.2, 0.4])
    assert said == []
    convolutional = make("timm:resnet10t")
    assert set_drop_path(convolutional, 0.4, log=said.append) == 0.0
    assert len(said) == 1 and "no drop path" in said[0]
    assert set_drop_path(convolutional, 0.0, log=said.append) == 0.0
    assert len(said) == 1


def test_bfloat16_trains_too() -> None:
    found = finetune(make(depth=1), both(32), steps=60, batch=16, lr=0.02, precision="bfloat16")
    assert found.top1 == 100
    assert all(tensor.dtype == torch.float32 for tensor in found.classifier.encoder.state_dict().values())


def test_mistakes_end_with_one_line() -> None:
    train, validation = both()
    mistakes = [
        ("--lr 0 must be above 0", {"lr": 0}, (train, validation)),
        ("--lr nan must be above 0", {"lr": float("nan")}, (train, validation)),
        ("--layer-decay 1.5 must be", {"layer_decay": 1.5}, (train, validation)),
        ("--weight-decay -1 must be", {"weight_decay": -1}, (train, validation)),
        ("--drop-path 1.0 must be", {"drop_path": 1.0}, (train, validation)),
        ("--label-smoothing 1 must be", {"label_smoothing": 1}, (train, validation)),
        ("at least two classes: all 16 images", {}, (train.select(range(0, 48, 3)), validation)),
        ("different classes", {}, (train, colours(4, seed=1, classes=2))),
    ]
    for message, settings, data in mistakes:
        with pytest.raises(InputError, match=message) as caught:
            finetune(make(depth=1), data, **settings)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"diverged: the loss is nan after 6 steps; give a smaller --lr"):
        check_finite(torch.tensor(float("nan")), 6)
