"""AdamW, its parameter groups and the clipping of gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def parameter_groups(model: nn.Module) -> list[dict[str, object]]:
    """Two groups: matrices and tokens, which decay, and vectors (biases, norms, scales), which do not.

    As in DINO and SimDINO (utils.py get_params_groups): the class token and the position embedding decay.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    vectors = [p for name, p in named if p.ndim <= 1 or name.endswith(".bias")]
    decayed = [p for name, p in named if not (p.ndim <= 1 or name.endswith(".bias"))]
    return [{"params": decayed, "decays": True}, {"params": vectors, "decays": False, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """AdamW(0.9, 0.999); learning rate and weight decay are set before each step."""
    return torch.optim.AdamW(parameter_groups(model), lr=0.0, betas=(0.9, 0.999), fused=True)


def set_values(optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float) -> None:
    """Give every group its learning rate, and those that decay their weight decay."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if group["decays"]:
            group["weight_decay"] = weight_decay


def clip_each(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradient of each parameter tensor to a norm of at most `largest` (DINO's rule, per tensor).

    Returns the norm of the whole gradient before clipping. `largest` = inf measures only.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateImportUsage]
    factors = [(largest / (norm + 1e-6)).clamp(max=1.0) for norm in norms]
    torch._foreach_mul_(gradients, factors)  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack(list(norms)).norm()
