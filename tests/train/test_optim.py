"""Which parameters decay, what clipping does, and that the optimizer is AdamW."""

from __future__ import annotations

from math import inf, sqrt

import pytest
import torch
from torch import Tensor, nn

from encoders import made
from simdino.config import OptimConfig
from simdino.models.groups import parameter_groups, set_values
from simdino.models.projector import Embedder, Projector
from simdino.models.vit import ViT
from simdino.train.optim import clip_each, make_optimizer

DECAYS = {
    "encoder.cls_token",
    "encoder.register_tokens",
    "encoder.pos_embed",
    "encoder.patch_embed.proj.weight",
    "encoder.blocks.0.attn.qkv.weight",
    "encoder.blocks.0.attn.proj.weight",
    "encoder.blocks.0.mlp.fc1.weight",
    "encoder.blocks.0.mlp.fc2.weight",
    "projector.layers.0.weight",
    "projector.layers.2.weight",
    "projector.layers.4.weight",
}
DOES_NOT = {
    "encoder.patch_embed.proj.bias",
    *(f"encoder.blocks.0.{norm}.{name}" for norm in ("norm1", "norm2") for name in ("weight", "bias")),
    *(f"encoder.blocks.0.{layer}.bias" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    "encoder.blocks.0.ls1.gamma",
    "encoder.blocks.0.ls2.gamma",
    "encoder.norm.weight",
    "encoder.norm.bias",
    *(f"projector.layers.{i}.bias" for i in (0, 2, 4)),
}


def network() -> Embedder:
    encoder = made(ViT, image_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, registers=1, layer_scale=0.1)
    return Embedder(encoder, Projector(embed_dim=8, hidden_dim=8, out_dim=4))


def with_gradients(*norms: float) -> list[nn.Parameter]:
    """Parameters of different shapes whose gradients have these norms."""
    parameters = [nn.Parameter(torch.zeros(i + 2, 3)) for i in range(len(norms))]
    for parameter, norm in zip(parameters, norms, strict=True):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        parameter.grad = norm * direction / direction.norm()
    return parameters


def norms(parameters: list[nn.Parameter]) -> list[float]:
    return [p.grad.norm().item() for p in parameters]


# --- groups -------------------------------------------------------------------------------------------------------


def test_matrices_and_tokens_decay_and_biases_norms_and_scales_do_not() -> None:
    model = network()
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, rest = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model))
    assert decayed == DECAYS
    assert rest == DOES_NOT
    assert decayed | rest == set(names.values())


def test_frozen_parameters_are_in_no_group() -> None:
    model = network()
    model.encoder.requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(model)) == 6


def test_values_reach_every_group_and_decay_only_the_one_that_decays() -> None:
    optimizer = make_optimizer(network(), OptimConfig())
    set_values(optimizer, lr=0.3, weight_decay=0.2)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.3, 0.2), (0.3, 0.0)]


def test_steps_are_adamws_by_hand() -> None:
    model = network().double()
    optimizer = make_optimizer(model, OptimConfig())
    generator = torch.Generator().manual_seed(0)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    m = {name: torch.zeros_like(p) for name, p in expected.items()}
    v = {name: torch.zeros_like(p) for name, p in expected.items()}
    for t, (lr, decay) in enumerate([(0.1, 0.04), (0.05, 0.3)], start=1):
        set_values(optimizer, lr=lr, weight_decay=decay)
        for name, parameter in model.named_parameters():
            g = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = g.clone()
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g * g
            shrunk = expected[name] * (1 - lr * decay * (name in DECAYS))
            expected[name] = shrunk - lr * (m[name] / (1 - 0.9**t)) / ((v[name] / (1 - 0.999**t)).sqrt() + 1e-8)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-9, atol=1e-12)


# --- clipping -----------------------------------------------------------------------------------------------------


def test_each_tensor_is_clipped_on_its_own_and_the_norm_of_all_is_returned() -> None:
    parameters = with_gradients(0.5, 3.0, 40.0)
    before = [p.grad.clone() for p in parameters]
    returned = clip_each(([p] for p in parameters), 2.0)
    assert returned.item() == pytest.approx(sqrt(0.5**2 + 3**2 + 40**2), rel=1e-5)
    assert norms(parameters) == pytest.approx([0.5, 2.0, 2.0], rel=1e-5)
    for parameter, old in zip(parameters, before, strict=True):  # no direction has changed
        assert torch.cosine_similarity(parameter.grad.flatten(), old.flatten(), dim=0).item() == pytest.approx(1)


def test_an_infinite_clip_measures_only() -> None:
    parameters = with_gradients(0.5, 3.0, 1e6)
    before = [p.grad.clone() for p in parameters]
    assert clip_each(([p] for p in parameters), inf).item() == pytest.approx(1e6, rel=1e-5)
    assert all(torch.equal(p.grad, old) for p, old in zip(parameters, before, strict=True))


def test_gradients_of_zero_stay_zero_and_parameters_without_one_are_left_out() -> None:
    parameters = [*with_gradients(0.0, 4.0), nn.Parameter(torch.zeros(3))]
    assert clip_each(([p] for p in parameters), 1.0).item() == pytest.approx(4.0, rel=1e-5)
    assert not parameters[0].grad.any() and parameters[2].grad is None


@pytest.mark.parametrize("largest", [1.0, inf])
@pytest.mark.parametrize("bad", [float("nan"), inf])
def test_a_gradient_that_is_not_finite_is_seen_in_the_norm(bad: float, largest: float) -> None:
    parameters = with_gradients(1.0, 1.0)
    gradient: Tensor = parameters[1].grad
    gradient[0, 0] = bad
    assert not clip_each(([p] for p in parameters), largest).isfinite()
