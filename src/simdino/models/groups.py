"""Parameters of an encoder with heads, in groups of one weight decay and one share of the learning rate each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from simdino.models.encoder import Encoder


class WithEncoder(Protocol):
    """A module with an attribute `encoder`, and heads."""

    encoder: Encoder

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield names and parameters, as every module does."""
        ...


def parameter_groups(
    model: WithEncoder, *, layer_decay: float = 1.0, patch_embed_lr: float = 1.0, prototypes_apart: bool = False
) -> list[dict[str, Any]]:
    """Return groups of parameters with the same weight decay and the same share `lr_scale` of the learning rate.

    Matrices and tokens decay; vectors (biases, norms, scales) do not: this is the rule of DINO and SimDINO (utils.py
    get_params_groups), under which the class token and the position embedding decay. A layer's learning rate is
    `layer_decay` times that of the layer after it, and the patch embedding's `patch_embed_lr` times its layer's
    (DINOv2, utils/param_groups.py at b8931f7); heads have the full rate. prototypes_apart: put the prototypes into a
    group of their own, marked `prototypes`, which `set_values` can stop alone."""
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {(True, 1.0, False): [], (False, 1.0, False): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = not (parameter.ndim <= 1 or name.endswith(".bias"))
            scale = lr_scale(model, name, layer_decay=layer_decay, patch_embed_lr=patch_embed_lr)
            apart = prototypes_apart and ".prototypes." in name
            groups.setdefault((decays, scale, apart), []).append(parameter)
    return [
        {
            "params": members,
            "decays": decays,
            "lr_scale": scale,
            "weight_decay": 0.0,
            **({"prototypes": True} if apart else {}),
        }
        for (decays, scale, apart), members in groups.items()
        if members
    ]


def lr_scale(model: WithEncoder, name: str, *, layer_decay: float, patch_embed_lr: float) -> float:
    """Return a parameter's share of the learning rate."""
    part, _, rest = name.partition(".")
    if part != "encoder":
        return 1.0
    scale = layer_decay ** (model.encoder.depth + 1 - model.encoder.layer_of(rest))
    return scale * patch_embed_lr if rest.removeprefix("model.").startswith("patch_embed.") else scale


def set_values(
    optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float, stop_prototypes: bool = False
) -> None:
    """Give every group its share of the learning rate, and decaying groups their weight decay. stop_prototypes: give
    the group of prototypes a learning rate of 0."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if stop_prototypes and group.get("prototypes") else lr * group["lr_scale"]
        if group["decays"]:
            group["weight_decay"] = weight_decay
