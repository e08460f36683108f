"""Muon against singular value decompositions, torch's own, and a step written by hand."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encoders import made
from simdino.config import OptimConfig
from simdino.models.conv import ConvNet
from simdino.models.groups import set_values
from simdino.models.projector import Embedder, Projector, Prototypes
from simdino.train.muon import COEFFICIENTS, ITERATIONS, Muon, orthogonal
from simdino.train.optim import make_optimizer


def by_singular_values(matrix: Tensor) -> Tensor:
    """The iteration is the same odd polynomial of every singular value."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("shape", [(5, 5), (3, 11), (11, 3), (1, 7), (7, 1)])
def test_the_iteration_is_a_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    matrices = torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for matrix, found in zip(matrices, orthogonal(matrices), strict=True):
        torch.testing.assert_close(found, by_singular_values(matrix), rtol=1e-9, atol=1e-9)


def test_singular_values_come_near_one() -> None:
    matrix = torch.randn(1, 32, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrix)[0])
    assert values.min() > 0.6 and values.max() < 1.25


def test_a_gradient_of_zero_moves_nothing() -> None:
    assert not orthogonal(torch.zeros(2, 3, 5)).any()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_steps_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(24, 40, generator=generator)
    gradients = torch.randn(3, 24, 40, generator=generator)
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    one = Muon([{"params": [ours], "matrices": True, "lr": 0.01, "weight_decay": 1.0}])
    two = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        for optimizer, parameter in ((one, ours), (two, theirs)):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved  # theirs iterates in bfloat16
    assert moved > 1


def network(method: str = "dino") -> Embedder:
    torch.manual_seed(0)
    last = Prototypes(dim=4, count=10, train_lengths=True) if method == "dino" else None
    encoder = made(ConvNet, image_size=16, patch_size=8, in_chans=3, embed_dim=64, depth=3, mask_token=True)
    return Embedder(encoder, Projector(embed_dim=64, hidden_dim=12, out_dim=4, prototypes=last)).double()


def layers_of(model: Embedder) -> set[str]:
    layers = (name for name, module in model.encoder.named_modules() if isinstance(module, nn.Linear | nn.Conv2d))
    return {f"encoder.{name}.weight" for name in layers}


def test_layers_go_to_muon_and_heads_norms_tokens_and_prototypes_to_adamw() -> None:
    model = network()
    optimizer = make_optimizer(model, OptimConfig(optimizer="muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    matrices = {names[id(p)] for group in optimizer.param_groups if group["matrices"] for p in group["params"]}
    assert matrices == layers_of(model) and len(matrices) == 10
    assert {"encoder.mask_token", "projector.prototypes.directions", "encoder.norm.weight"} <= set(names.values())
    everything = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    assert sorted(everything) == sorted(names.values())


def test_a_step_is_the_formula_by_hand() -> None:
    model = network()
    optimizer = make_optimizer(model, OptimConfig(optimizer="muon"))
    layers = layers_of(model)
    generator = torch.Generator().manual_seed(0)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    m, v = ({name: torch.zeros_like(p) for name, p in expected.items()} for _ in range(2))
    for t, (lr, decay) in enumerate([(0.1, 0.04), (0.05, 0.3)], start=1):
        set_values(optimizer, lr=lr, weight_decay=decay)
        for name, parameter in model.named_parameters():
            g = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = g.clone()
            old = expected[name] * (1 - lr * decay * (parameter.ndim > 1))
            if name in layers:
                m[name] = 0.95 * m[name] + 0.05 * g
                ahead = (0.05 * g + 0.95 * m[name]).flatten(1)
                size = 2 * max(ahead.shape) ** 0.5
                expected[name] = old - lr * size * by_singular_values(ahead).view_as(g)
            else:
                m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.999 * v[name] + 0.001 * g * g
                expected[name] = old - lr * (m[name] / (1 - 0.9**t)) / ((v[name] / (1 - 0.999**t)).sqrt() + 1e-8)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-8, atol=1e-9)


def test_a_loaded_state_goes_on_as_if_never_stopped() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = network(), network()
    first = make_optimizer(one, OptimConfig(optimizer="muon"))

    def step(model: Embedder, optimizer: torch.optim.Optimizer) -> None:
        set_values(optimizer, lr=0.1, weight_decay=0.1)
        for parameter, other in zip(model.parameters(), gradients, strict=True):
            parameter.grad = other.clone()
        optimizer.step()

    gradients = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in one.parameters()]
    step(one, first)
    two.load_state_dict(one.state_dict())
    second = make_optimizer(two, OptimConfig(optimizer="muon"))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(2):
        step(one, first)
        step(two, second)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_a_parameter_without_a_gradient_stays() -> None:
    model = network()
    optimizer = make_optimizer(model, OptimConfig(optimizer="muon"))
    set_values(optimizer, lr=0.1, weight_decay=0.1)
    layer: Any = model.projector.layers[0]
    layer.weight.grad = torch.ones(12, 64, dtype=torch.float64)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    assert [n for n, p in model.named_parameters() if not torch.equal(p, before[n])] == ["projector.layers.0.weight"]
