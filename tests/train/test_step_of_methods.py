"""A step of the other methods: layer-wise rates, what is frozen, the teacher without an average, and the buffers."""

from __future__ import annotations

import copy
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from encoders import made
from simdino.config import EncoderConfig, OptimConfig
from simdino.contracts import Views
from simdino.losses.dino import CENTER, DINO
from simdino.losses.dinov2 import PATCH_CENTER, DINOv2
from simdino.losses.simdinov2 import SimDINOv2
from simdino.models.catalogue import kind_of
from simdino.models.groups import parameter_groups, set_values
from simdino.models.projector import Embedder, Projector, Prototypes
from simdino.models.vit import ENCODERS as VITS
from simdino.models.vit import ViT
from simdino.rng import sample_keys
from simdino.train.optim import clip, make_optimizer, values_at
from simdino.train.state import State
from simdino.train.step import NotFinite, step

BATCH, DIM, K, STEPS = 6, 4, 10, 10
METHODS = ["simdinov2", "dino", "dinov2"]
PROTOTYPES = ["dino", "dinov2"]


def make_student(method: str, *, separate: bool = False) -> Embedder:
    masked = method != "dino"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = made(
            ViT, image_size=8, patch_size=2, in_chans=1, embed_dim=16, depth=2, num_heads=2, drop_path=0.3,
            mask_token=masked, registers=1, layer_scale=0.1,
        )  # fmt: skip

        def head() -> Projector:
            last = Prototypes(dim=DIM, count=K, train_lengths=masked) if method in PROTOTYPES else None
            return Projector(embed_dim=16, hidden_dim=12, out_dim=DIM, prototypes=last)

        student = Embedder(encoder, head(), head() if separate else None)
        for parameter in student.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape)
    return student.double()


def make_loss(method: str) -> Any:
    if method == "simdinov2":
        return SimDINOv2(batch=BATCH, dim=DIM, eps=0.3, patch_rate=0.5)
    return (DINO if method == "dino" else DINOv2)(batch=BATCH, dim=DIM, prototypes=K)


def make_state(method: str, optim: OptimConfig, *, separate: bool = False) -> tuple[State, Any]:
    loss = make_loss(method)
    student = make_student(method, separate=separate)
    cpu = torch.device("cpu")
    return State.create(student, optim=optim, device=cpu, precision="float32", buffers=loss.buffers), loss


def make_views(method: str, *, seed: int = 0) -> Views:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(2, BATCH, 16, generator=generator) < 0.3
    return Views(
        global_views=torch.randn(2, BATCH, 1, 8, 8, generator=generator, dtype=torch.float64), local_views=None,
        ids=torch.arange(BATCH), keys=torch.from_numpy(sample_keys(0, seed, np.arange(BATCH))),
        indices=torch.arange(BATCH), masks=None if method == "dino" else masks,
    )  # fmt: skip


def take(state: State, loss: Any, method: str, optim: OptimConfig, *, seed: int = 0, **changes: Any) -> dict[str, Any]:
    autocast = torch.autocast("cpu", enabled=False)
    settings: dict[str, Any] = {"steps": STEPS, "optim": optim, "autocast": autocast} | changes
    return step(state, make_views(method, seed=seed), loss, **settings)


def named(state: State, prefix: str) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in state.student.named_parameters() if n.startswith(prefix)}


# --- parameter groups, name by name ---------------------------------------------------------------------------------


def vit_small(method: str) -> Embedder:
    """ViT-S/16 as the recipes make it, without its buffers."""
    second = method == "dinov2"
    with torch.device("meta"):
        encoder = made(
            ViT,
            image_size=224,
            patch_size=16,
            **VITS["vit_small"].shape,
            mask_token=second,
            layer_scale=1e-5 if second else None,
        )
        last = Prototypes(dim=256, count=65_536, train_lengths=second)
        return Embedder(encoder, Projector(embed_dim=384, hidden_dim=2048, out_dim=256, prototypes=last))


def expected_groups(method: str) -> dict[str, tuple[float, bool]]:
    """Name -> (share of the learning rate, decays), written out for depth 12 with 0.9 and 0.2 (docs/parity.md)."""
    second = method == "dinov2"
    share = {layer: 0.9 ** (12 + 1 - layer) if second else 1.0 for layer in range(14)}
    stem = share[0] * (0.2 if second else 1.0)
    groups = {
        "encoder.cls_token": (share[0], True), "encoder.pos_embed": (share[0], True),
        "encoder.patch_embed.proj.weight": (stem, True), "encoder.patch_embed.proj.bias": (stem, False),
        "encoder.norm.weight": (1.0, False), "encoder.norm.bias": (1.0, False),
        "projector.prototypes.directions": (1.0, True),
        **{f"projector.layers.{i}.weight": (1.0, True) for i in (0, 2, 4)},
        **{f"projector.layers.{i}.bias": (1.0, False) for i in (0, 2, 4)},
    }  # fmt: skip
    if second:
        groups |= {"encoder.mask_token": (share[0], True), "projector.prototypes.lengths": (1.0, True)}
    for i in range(12):
        matrices = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
        vectors = [f"{part}.bias" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2")]
        vectors += ["norm1.weight", "norm2.weight"] + (["ls1.gamma", "ls2.gamma"] if second else [])
        groups |= {f"encoder.blocks.{i}.{name}": (share[i + 1], True) for name in matrices}
        groups |= {f"encoder.blocks.{i}.{name}": (share[i + 1], False) for name in vectors}
    return groups


@pytest.mark.parametrize("method", PROTOTYPES)
def test_every_parameter_of_vit_small_has_its_rate_and_decay(method: str) -> None:
    model = vit_small(method)
    names = {id(p): name for name, p in model.named_parameters()}
    decay, stem = (0.9, 0.2) if method == "dinov2" else (1.0, 1.0)
    groups = parameter_groups(model, layer_decay=decay, patch_embed_lr=stem)
    found = {names[id(p)]: (group["lr_scale"], group["decays"]) for group in groups for p in group["params"]}
    expected = expected_groups(method)
    assert sum(len(group["params"]) for group in groups) == len(found) == len(expected)
    for name, (share, decays) in expected.items():
        assert found[name] == (pytest.approx(share, rel=1e-12), decays), name
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == ({"projector.prototypes.lengths"} if method == "dino" else set())


def test_the_formula_in_numbers() -> None:
    groups = expected_groups("dinov2")
    assert groups["encoder.patch_embed.proj.weight"][0] == pytest.approx(0.0508373, rel=1e-5)
    assert groups["encoder.blocks.0.attn.qkv.weight"][0] == pytest.approx(0.2824295, rel=1e-5)
    assert groups["encoder.blocks.11.norm1.bias"][0] == pytest.approx(0.9)


def test_a_rate_reaches_every_group_by_its_share() -> None:
    model = make_student("dinov2")
    optimizer = make_optimizer(model, OptimConfig(layer_decay=0.5, patch_embed_lr=0.2))
    set_values(optimizer, lr=3.0, weight_decay=0.4)
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates["encoder.patch_embed.proj.weight"] == (pytest.approx(3 * 0.2 * 0.5**3), 0.4)
    assert rates["encoder.register_tokens"] == (pytest.approx(3 * 0.5**3), 0.4)
    assert rates["encoder.blocks.1.ls1.gamma"] == (pytest.approx(3 * 0.5), 0.0)
    assert rates["encoder.norm.bias"] == (3.0, 0.0) and rates["projector.prototypes.directions"] == (3.0, 0.4)


# --- clipping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [0.5, 3.0, 1e9])
def test_clipping_per_part_is_by_the_norm_of_encoder_and_of_each_head(largest: float) -> None:
    model = make_student("dinov2", separate=True)
    generator = torch.Generator().manual_seed(1)
    scales = {"encoder": 0.02, "projector": 0.1, "patch_projector": 0.001}
    for name, p in model.named_parameters():
        p.grad = scales[name.split(".")[0]] * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    squares = dict.fromkeys(scales, 0.0)
    for name, gradient in before.items():
        squares[name.split(".")[0]] += gradient.square().sum().item()
    returned = clip(model, OptimConfig(clip=largest, clip_per="part"))
    assert returned.item() == pytest.approx(sqrt(sum(squares.values())), rel=1e-12)
    factors = {part: min(1.0, largest / (sqrt(square) + 1e-6)) for part, square in squares.items()}
    assert len(set(factors.values())) == (3 if largest < 1 else 1 if largest > 1e8 else len(set(factors.values())))
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, factors[name.split(".")[0]] * before[name], rtol=1e-12, atol=0)


def test_clipping_per_parameter_is_by_its_own_norm() -> None:
    model = make_student("dino")
    for i, p in enumerate(model.parameters()):
        p.grad = torch.full_like(p, 0.05 * (i % 7)) if p.requires_grad else None
    norms = [None if p.grad is None else p.grad.norm().item() for p in model.parameters()]
    clip(model, OptimConfig(clip=0.4, clip_per="parameter"))
    for norm, p in zip(norms, model.parameters(), strict=True):
        if norm is not None:
            assert p.grad.norm().item() == pytest.approx(min(norm, norm * 0.4 / (norm + 1e-6)), rel=1e-9)


# --- what is frozen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", PROTOTYPES)
def test_prototypes_are_frozen_for_their_share_and_then_train(method: str) -> None:
    optim = OptimConfig(lr=1e-2, warmup=0.0, momentum=0.9, freeze_prototypes=0.2)
    state, loss = make_state(method, optim, separate=method == "dinov2")
    heads = [n for n, p in state.student.named_parameters() if ".prototypes." in n and p.requires_grad]
    assert len(heads) == (4 if method == "dinov2" else 1)
    start = {n: p.detach().clone() for n, p in state.student.named_parameters()}
    for i in range(4):
        take(state, loss, method, optim, seed=i)
        for name, parameter in state.student.named_parameters():
            frozen = ".prototypes." in name and (i < 2 or not parameter.requires_grad)
            assert torch.equal(parameter.detach(), start[name]) == frozen, (i, name)
            assert (parameter in state.optimizer.state) == (not frozen), (i, name)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("clipped", [False, True])
def test_prototypes_without_a_rate_count_in_the_norm_and_move_adams_moments(clipped: bool, separate: bool) -> None:
    """DINOv2's way: the weights stay, everything else is as if they were trained."""
    ways = ("no_gradient", "no_rate")
    base = {"lr": 1e-2, "warmup": 0.0, "freeze_prototypes": 0.1, "clip": 0.05 if clipped else 1e9, "clip_per": "part"}
    found = {}
    for way in ways:
        optim = OptimConfig(**base, frozen_prototypes=way)
        state, loss = make_state("dinov2", optim, separate=separate)
        start = {n: p.detach().clone() for n, p in state.student.named_parameters()}
        gradient = gradients_of(state, loss)
        result = take(state, loss, "dinov2", optim)
        found[way] = state, start, gradient, result["grad_norm"].item()
    last = [name for name in found["no_rate"][1] if ".prototypes." in name]
    assert len(last) == (4 if separate else 2)
    for way in ways:
        state, start, gradient, norm = found[way]
        counted = [g for name, g in gradient.items() if way == "no_rate" or name not in last]
        assert norm == pytest.approx(torch.stack([g.norm() for g in counted]).norm().item(), rel=1e-9), way
        now = dict(state.student.named_parameters())
        assert all(torch.equal(now[name], start[name]) for name in last), "the prototypes stay"
        assert all((now[name] in state.optimizer.state) == (way == "no_rate") for name in last)
    state, _, gradient, _ = found["no_rate"]
    heads = ["projector.", "patch_projector."]
    for name in last:
        part = [g for other, g in gradient.items() if other.startswith(heads[name.startswith(heads[1])])]
        factor = min(1.0, base["clip"] / (torch.stack([g.norm() for g in part]).norm().item() + 1e-6))
        moment = state.optimizer.state[dict(state.student.named_parameters())[name]]["exp_avg"]
        torch.testing.assert_close(moment, 0.1 * factor * gradient[name], rtol=1e-9, atol=1e-15)
    optim = OptimConfig(**base, frozen_prototypes="no_rate")
    _, loss = make_state("dinov2", optim, separate=separate)
    take(state, loss, "dinov2", optim, seed=1)
    now = dict(state.student.named_parameters())
    assert not any(torch.equal(now[name], found["no_rate"][1][name]) for name in last), "after its share they train"


def gradients_of(state: State, loss: Any) -> dict[str, Tensor]:
    """Of the first batch's loss, before anything is done to them."""
    views = make_views("dinov2")
    with torch.no_grad():
        teacher = state.teacher(views, student=False)
    (ahead,) = loss.global_statistics([teacher], None, temperature=0.04, all_reduce=lambda x: x)
    total = loss(state.student(views), teacher, ahead).total
    names, trained = zip(*((n, p) for n, p in state.student.named_parameters() if p.requires_grad), strict=True)
    found = torch.autograd.grad(total, trained, allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


@pytest.mark.parametrize("method", METHODS)
def test_an_encoder_is_frozen_for_its_share_and_the_teachers_stays_too(method: str) -> None:
    optim = OptimConfig(lr=1e-2, warmup=0.0, momentum=0.5, freeze_encoder=0.2, freeze_prototypes=0.0)
    state, loss = make_state(method, optim)
    encoder = named(state, "encoder.")
    for i in range(3):
        take(state, loss, method, optim, seed=i)
        same = all(torch.equal(value, encoder[name]) for name, value in named(state, "encoder.").items())
        assert same == (i < 2)
        averaged = dict(state.teacher.named_parameters())
        assert all(torch.equal(averaged[name], value) for name, value in encoder.items()) == (i < 2)
        assert (state.student.encoder.cls_token in state.optimizer.state) == (i >= 2)
        assert state.student.projector.layers[0].weight in state.optimizer.state


# --- temperature ----------------------------------------------------------------------------------------------------


def test_the_temperature_is_a_line_and_then_constant() -> None:
    optim = OptimConfig(temperature=(0.04, 0.07), temperature_warmup=0.3)
    found = [values_at(i, steps=100, config=optim).temperature for i in range(100)]
    assert found == pytest.approx([0.04 + 0.03 * i / 30 for i in range(30)] + [0.07] * 70, rel=1e-12)
    constant = OptimConfig(temperature=(0.04, 0.04))
    assert {values_at(i, steps=7, config=constant).temperature for i in range(7)} == {0.04}
    assert values_at(0, steps=1, config=optim).temperature == 0.07  # a run too short for a warm-up


@pytest.mark.parametrize(("share", "frozen"), [(0.0, 0), (0.01, 1), (0.1, 10), (0.105, 11)])
def test_prototypes_and_encoder_are_frozen_for_a_share_of_the_steps(share: float, frozen: int) -> None:
    optim = OptimConfig(freeze_prototypes=share, freeze_encoder=share)
    values = [values_at(i, steps=100, config=optim) for i in range(100)]
    assert (
        [v.freeze_prototypes for v in values] == [v.freeze_encoder for v in values] == [i < frozen for i in range(100)]
    )


@pytest.mark.parametrize("method", PROTOTYPES)
def test_the_temperature_of_a_step_reaches_the_targets(method: str) -> None:
    losses = []
    for last in (0.04, 0.4):
        optim = OptimConfig(temperature=(0.04, last), temperature_warmup=0.2, lr=0.0)
        state, loss = make_state(method, optim)
        losses.append([take(state, loss, method, optim)["cross_entropy"].item() for _ in range(3)])
    assert losses[0][0] == losses[1][0]
    assert abs(losses[0][1] - losses[1][1]) > 1e-3 and abs(losses[0][2] - losses[1][2]) > 1e-3


# --- the teacher ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "dinov2 in micro-batches"])
def test_without_an_average_the_teacher_is_the_student_after_every_step(method: str) -> None:
    method, micro = method.split(" ", maxsplit=1)[0], 4 if " " in method else None
    optim = OptimConfig(lr=1e-2, warmup=0.0, teacher="none", freeze_prototypes=0.0)
    state, loss = make_state(method, optim)
    before = {name: value.clone() for name, value in state.student.state_dict().items()}
    for i in range(3):
        assert take(state, loss, method, optim, seed=i, micro_batch=micro)["momentum"] == 0.0
        teacher = state.teacher.state_dict()
        assert all(torch.equal(teacher[name], value) for name, value in state.student.state_dict().items())
    moved = state.student.state_dict()
    assert not torch.equal(moved["encoder.cls_token"], before["encoder.cls_token"])
    assert all(p.grad is None and not p.requires_grad for p in state.teacher.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_one_pass_gives_the_targets_of_a_student_that_teaches_itself(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    optim = OptimConfig(lr=1e-2, warmup=0.0, teacher="none", freeze_prototypes=0.0)
    found = []
    for same in (True, False):
        monkeypatch.setattr(ViT, "same_in_training", same)
        state, loss = make_state(method, optim)
        state.student.encoder.rates = [0.0, 0.0]
        passes: list[int] = []
        state.teacher.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        logged = [take(state, loss, method, optim, seed=i) for i in range(3)]
        assert len(passes) == (0 if same and method == "dino" else 3)  # the others' students see masks
        found.append((logged, state.student.state_dict()))
    (one, weights), (two, others) = found
    for ours, theirs in zip(one, two, strict=True):
        for name, value in ours.items():
            assert float(value) == pytest.approx(float(theirs[name]), rel=1e-9, abs=1e-9), name
    assert all(torch.allclose(weights[name], others[name], rtol=1e-9, atol=1e-9) for name in weights)


@pytest.mark.parametrize(("drop", "same"), [(0.0, True), (0.1, False)])
@pytest.mark.parametrize("name", ["vit_pico", "conv_pico", "crate_tiny"])
def test_an_encoder_that_drops_branches_is_another_in_training(name: str, drop: float, same: bool) -> None:
    config = EncoderConfig(name=name, image_size=32, patch_size=8, drop_path=drop)
    kind = kind_of(name)
    assert kind.make(kind.complete(config), 3).same_in_training == same


# --- buffers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_buffers_are_in_the_state_and_come_back(method: str) -> None:
    optim = OptimConfig(lr=1e-2, warmup=0.0)
    state, loss = make_state(method, optim)
    for i in range(3):
        take(state, loss, method, optim, seed=i)
    saved = copy.deepcopy(state.tensors())
    names = {"simdinov2": set(), "dino": {CENTER}, "dinov2": {CENTER, PATCH_CENTER}}[method]
    assert saved["buffers"].keys() == names
    assert all(value.any() for value in saved["buffers"].values())
    after = take(state, loss, method, optim, seed=3)["loss"]
    fresh, new_loss = make_state(method, optim)
    fresh.load(saved)
    assert all(torch.equal(new_loss.buffers[name], value) for name, value in saved["buffers"].items())
    assert torch.equal(take(fresh, new_loss, method, optim, seed=3)["loss"], after)
    assert all(torch.equal(fresh.buffers[name], state.buffers[name]) for name in names)


def test_buffers_of_another_method_are_refused() -> None:
    dino, dinov2 = (make_state(method, OptimConfig())[0] for method in PROTOTYPES)
    saved = dinov2.tensors() | {"buffers": dino.tensors()["buffers"]}
    with pytest.raises(KeyError, match="buffers hold"):
        dinov2.load(saved)


@pytest.mark.parametrize("method", PROTOTYPES)
def test_a_step_that_stops_leaves_the_buffers_as_they_were(method: str) -> None:
    optim = OptimConfig(lr=1e-2)
    state, loss = make_state(method, optim)
    take(state, loss, method, optim)
    before, views = copy.deepcopy(loss.buffers), make_views(method, seed=1)
    views.global_views[0, 2] = float("nan")
    with pytest.raises(NotFinite):
        step(state, views, loss, steps=STEPS, optim=optim, autocast=torch.autocast("cpu", enabled=False))
    assert all(torch.equal(loss.buffers[name], value) for name, value in before.items())
    assert state.step == 1
