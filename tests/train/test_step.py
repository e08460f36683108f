"""One training step: what it changes, in which order, and that it stops before it breaks anything."""

from __future__ import annotations

import copy
import dataclasses
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders import made
from simdino.config import OptimConfig
from simdino.contracts import Views
from simdino.losses.simdino import SimDINO
from simdino.models.projector import Embedder, Projector
from simdino.models.vit import ViT
from simdino.rng import sample_keys
from simdino.train.optim import values_at
from simdino.train.state import State
from simdino.train.step import NotFinite, step

BATCH, DIM, STEPS = 12, 4, 10
OPTIM = OptimConfig(lr=1e-2, momentum=0.9, warmup=0.3)
LOSS = SimDINO(batch=BATCH, dim=DIM, local_views=2, eps=0.3)
CPU = torch.device("cpu")


def make_state(*, precision: str = "float32") -> State:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = made(ViT, image_size=8, patch_size=4, in_chans=2, embed_dim=16, depth=2, num_heads=2, drop_path=0.3)
        student = Embedder(encoder, Projector(embed_dim=16, hidden_dim=16, out_dim=DIM))
        for parameter in student.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape)
    return State.create(student.double(), optim=OPTIM, device=CPU, precision=precision)


def make_views(*, seed: int = 0) -> Views:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.arange(BATCH)
    return Views(
        global_views=torch.randn(2, BATCH, 2, 8, 8, generator=generator, dtype=torch.float64),
        local_views=torch.randn(2, BATCH, 2, 4, 4, generator=generator, dtype=torch.float64),
        ids=ids, keys=torch.from_numpy(sample_keys(0, seed, ids.numpy())), indices=ids,
    )  # fmt: skip


def take(state: State, views: Views | None = None, **changes: Any) -> dict[str, Any]:
    autocast = torch.autocast("cpu", enabled=False)
    return step(
        state, views or make_views(),
        **{"loss": LOSS, "steps": STEPS, "optim": OPTIM, "autocast": autocast, **changes},
    )  # fmt: skip


def weights(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def everything(state: State) -> dict[str, Any]:
    return copy.deepcopy(state.tensors())


def equal(a: Any, b: Any) -> bool:
    """To the bit, through dictionaries and lists."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


# --- what a step does ---------------------------------------------------------------------------------------------


def test_the_loss_and_gradient_are_those_of_the_same_networks_by_hand() -> None:
    state, views = make_state(), make_views()
    by_hand = make_state()
    with torch.no_grad():
        target = by_hand.teacher(views, student=False)
    expected = LOSS(by_hand.student(views), target)
    expected.total.backward()
    norm = torch.stack([p.grad.norm() for p in by_hand.student.parameters()]).norm()
    result = take(state, views)
    assert result["loss"].item() == pytest.approx(expected.total.item(), rel=1e-12)
    assert result["grad_norm"].item() == pytest.approx(norm.item(), rel=1e-9)
    for name, value in {**expected.terms, **expected.health}.items():
        assert result[name].item() == pytest.approx(value.item(), rel=1e-9)


def test_the_weights_are_an_adamw_step_on_clipped_gradients() -> None:
    state, views, clip = make_state(), make_views(), 0.01
    by_hand = make_state()
    with torch.no_grad():
        target = by_hand.teacher(views, student=False)
    LOSS(by_hand.student(views), target).total.backward()
    lr, decay = values_at(0, steps=STEPS, config=OPTIM).lr, OPTIM.weight_decay
    take(state, views, optim=OptimConfig(lr=1e-2, momentum=0.9, warmup=0.3, clip=clip))
    clipped = 0
    for mine, start in zip(state.student.parameters(), by_hand.student.parameters(), strict=True):
        norm = start.grad.norm().item()
        clipped += norm > clip
        g = start.grad * min(1.0, clip / (norm + 1e-6))
        shrunk = start.detach() * (1 - lr * decay * (start.ndim > 1))
        torch.testing.assert_close(mine.detach(), shrunk - lr * g / (g.abs() + 1e-8), rtol=1e-6, atol=1e-9)
    assert clipped > 0


def test_the_teacher_follows_the_student_after_its_step() -> None:
    state = make_state()
    for i in range(3):
        before, momentum = weights(state.teacher), values_at(i, steps=STEPS, config=OPTIM).momentum
        result = take(state, make_views(seed=i))
        assert result["momentum"] == momentum
        student = weights(state.student)
        for name, value in weights(state.teacher).items():
            expected = momentum * before[name] + (1 - momentum) * student[name]
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-15)
    assert all(p.grad is None for p in state.teacher.parameters())


def test_the_schedules_are_those_of_the_step_and_the_step_is_counted() -> None:
    state = make_state()
    for i in range(3):
        assert state.step == i
        result, values = take(state, make_views(seed=i)), values_at(i, steps=STEPS, config=OPTIM)
        assert (result["lr"], result["weight_decay"]) == (values.lr, values.weight_decay)
        assert [group["lr"] for group in state.optimizer.param_groups] == [values.lr] * 2
    assert state.step == 3
    assert all(p.grad is None for p in state.student.parameters())


def test_the_same_step_twice_is_the_same_to_the_bit() -> None:
    states = [make_state(), make_state()]
    for i, state in enumerate(states):
        torch.manual_seed(i)  # the global random state has no say
        take(state)
        take(state, make_views(seed=1))
    assert equal(everything(states[0]), everything(states[1]))


def test_an_infinite_clip_measures_and_trains() -> None:
    state = make_state()
    before = weights(state.student)
    result = take(state, optim=OptimConfig(lr=1e-2, momentum=0.9, clip=inf))
    assert result["grad_norm"] > 0
    assert not equal(before, weights(state.student))


@pytest.mark.parametrize("micro_batch", [1, 4, 5, 12, 100])
def test_micro_batches_are_the_same_step(micro_batch: int) -> None:
    state, parts = make_state(), make_state()
    whole, split = take(state), take(parts, micro_batch=micro_batch)
    assert split["loss"].item() == pytest.approx(whole["loss"].item(), rel=1e-9)
    assert split["grad_norm"].item() == pytest.approx(whole["grad_norm"].item(), rel=1e-9)
    for name, value in weights(state.student).items():
        torch.testing.assert_close(weights(parts.student)[name], value, rtol=0, atol=1e-9)


def test_the_loss_goes_down_on_one_batch() -> None:
    state = make_state()
    state.student.encoder.rates = [0.0, 0.0]
    losses = [take(state, steps=100, optim=OptimConfig(lr=3e-3, warmup=0.0))["loss"].item() for _ in range(15)]
    assert losses[-1] < losses[0] - 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("scope", ["global", "shards"])
def test_a_step_on_a_gpu_is_a_step_on_the_cpu(scope: Any) -> None:
    loss = SimDINO(batch=BATCH, dim=DIM, local_views=2, eps=0.3, scope=scope, shard_size=4)
    results = []
    for where in ("cpu", "cuda"):
        state, views = make_state(), make_views()
        state = State.create(state.student.float(), optim=OPTIM, device=torch.device(where), precision="float32")
        moved = dataclasses.replace(
            views, global_views=views.global_views.float().to(where), local_views=views.local_views.float().to(where)
        )
        results.append(take(state, moved, loss=loss, micro_batch=5))
    for name in ("loss", "distance", "rate_weighted", "grad_norm"):
        assert float(results[1][name]) == pytest.approx(float(results[0][name]), rel=1e-3), name


# --- what a step refuses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [None, 5])
@pytest.mark.parametrize("bad", [float("nan"), inf])
@pytest.mark.parametrize("where", ["global_views", "local_views"])
def test_a_view_that_is_not_finite_stops_before_anything_has_changed(
    where: str, bad: float, micro_batch: int | None
) -> None:
    state = make_state()
    take(state)  # so that the optimizer has a buffers to lose
    before, views = everything(state), make_views(seed=1)
    getattr(views, where)[1, 7, 0, 0, 0] = bad
    with pytest.raises(NotFinite, match=r"distance is nan in step 2; the weights were not changed"):
        take(state, views, micro_batch=micro_batch)
    assert equal(everything(state), before)
    assert state.step == 1


def test_a_rate_that_is_not_finite_is_named() -> None:
    state = make_state()
    before = everything(state)
    with pytest.raises(NotFinite, match="rate_weighted is nan in step 1"):
        take(state, loss=SimDINO(batch=BATCH, dim=DIM, local_views=2, eps=0.3, gamma=float("nan")))
    assert equal(everything(state), before)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    state = make_state()
    before = everything(state)
    state.student.projector.layers[0].weight.register_hook(lambda g: g * float("inf"))
    with pytest.raises(NotFinite, match=r"grad_norm is (nan|inf) in step 1"):
        take(state)
    assert equal(everything(state), before)


def test_under_a_gradient_scaler_an_infinite_gradient_is_a_skipped_step() -> None:
    state = make_state(precision="float16")
    if not state.scaler.is_enabled():
        pytest.skip("this PyTorch has no gradient scaler on the CPU")
    before, scale = weights(state.student), state.scaler.get_scale()
    hook = state.student.projector.layers[0].weight.register_hook(lambda g: g * float("inf"))
    take(state)
    assert equal(weights(state.student), before) and state.scaler.get_scale() < scale
    hook.remove()
    take(state)
    assert not equal(weights(state.student), before)
