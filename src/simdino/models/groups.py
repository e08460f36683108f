"""Parameters of an encoder with heads, in groups of one weight decay and one share of the learning rate each."""

from typing import Any

import torch
from torch import nn

from simdino.models.encoder import Encoder


def parameter_groups(
    model: nn.Module,
    *,
    layer_decay: float = 1.0,
    patch_embed_lr: float = 1.0,
    prototypes_apart: bool = False,
    encoder_apart: bool = False,
    matrices_apart: bool = False,
) -> list[dict[str, Any]]:
    """Return groups of parameters with the same weight decay and the same share `lr_scale` of the learning rate, of an
    encoder with heads: a module with an `Encoder` as its attribute `encoder`.

    Matrices and tokens decay; vectors (biases, norms, scales) do not: this is the rule of DINO and SimDINO (utils.py
    get_params_groups), under which the class token and the position embedding decay. A layer's learning rate is
    `layer_decay` times that of the layer after it, and the patch embedding's `patch_embed_lr` times its layer's
    (DINOv2, utils/param_groups.py at b8931f7); heads have the full rate. prototypes_apart: put the prototypes into a
    group of their own, marked `prototypes`, which `set_values` can stop alone. encoder_apart: let no group have
    parameters of both encoder and heads, and mark those of the encoder `encoder`, which `set_values` can slow down
    alone. matrices_apart: put the weights of
    the encoder's linear and convolutional layers into groups of their own, marked `matrices`, which `muon` treats in
    its own way; tokens and positions are no such weights."""
    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    matrices = {id(module.weight) for module in encoder.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    groups: dict[tuple[bool, float, bool, bool, bool], list[nn.Parameter]] = {
        (decays, 1.0, False, False, False): [] for decays in (True, False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays, scale = parameter.ndim > 1 and not name.endswith(".bias"), 1.0
            part, _, rest = name.partition(".")
            if part == "encoder":
                scale = layer_decay ** (encoder.depth + 1 - encoder.layer_of(rest))
                inner = rest.removeprefix("encoder.").removeprefix("model.")  # of a bag, of a model of timm
                scale *= patch_embed_lr if inner.startswith("patch_embed.") else 1.0
            apart = prototypes_apart and ".prototypes." in name
            matrix, own = matrices_apart and id(parameter) in matrices, encoder_apart and part == "encoder"
            groups.setdefault((decays, scale, apart, matrix, own), []).append(parameter)
    return [
        {
            "params": members, "decays": decays, "lr_scale": scale, "weight_decay": 0.0, "prototypes": apart,
            "matrices": matrix, "encoder": own,
        }
        for (decays, scale, apart, matrix, own), members in groups.items()
        if members
    ]  # fmt: skip


def set_values(
    optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float, stop_prototypes: bool = False,
    encoder_share: float = 1.0,
) -> None:  # fmt: skip
    """Give every group its share of the learning rate, and decaying groups their weight decay. stop_prototypes: give
    the group of prototypes a learning rate of 0. encoder_share: what groups of the encoder alone have of theirs."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if stop_prototypes and group["prototypes"] else lr * group["lr_scale"]
        if group["encoder"]:
            group["lr"] *= encoder_share
        if group["decays"]:
            group["weight_decay"] = weight_decay
