"""AdamW, frozen parts, and the clipping of gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from simdino.config import OptimConfig
from simdino.models.groups import parameter_groups
from simdino.models.projector import Embedder
from simdino.train.schedules import Values


def make_optimizer(model: Embedder, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW(0.9, 0.999) over the parameter groups; learning rate and weight decay are set before each step."""
    groups = parameter_groups(
        model,
        layer_decay=config.layer_decay,
        patch_embed_lr=config.patch_embed_lr,
        prototypes_apart=config.frozen_prototypes == "no_rate",
    )
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), fused=True)


def drop_frozen(model: Embedder, values: Values, config: OptimConfig) -> None:
    """Drop the gradients of what is not trained in this step: the prototypes of a young run, or an encoder whose new
    projector still has to learn. The optimizer then leaves weights and moments alone, as DINO does; DINOv2 keeps the
    prototypes' gradients (`config.frozen_prototypes` "no_rate"), which count in the norm and move Adam's moments."""
    frozen: list[nn.Module] = [model.encoder] if values.freeze_encoder else []
    if values.freeze_prototypes and config.frozen_prototypes == "no_gradient":
        frozen += [head.prototypes for head in model.heads() if head.prototypes is not None]
    for module in frozen:
        for parameter in module.parameters():
            parameter.grad = None


def clip(model: Embedder, config: OptimConfig) -> Tensor:
    """Scale gradients down to the largest norm, of each parameter tensor (DINO) or of encoder and heads (DINOv2).

    Return the norm of the whole gradient before clipping. `config.clip` = inf only measures."""
    if config.clip_per == "parameter":
        return clip_each(([p] for p in model.parameters()), config.clip)
    return clip_each((part.parameters() for part in (model.encoder, *model.heads())), config.clip)


def clip_each(parts: Iterable[Iterable[nn.Parameter]], largest: float) -> Tensor:
    """Scale the gradient of each part to a norm of at most `largest`. Return the norm of all before that."""
    gradients = [[p.grad for p in part if p.grad is not None] for part in parts]
    gradients = [part for part in gradients if part]
    flat = [gradient for part in gradients for gradient in part]
    norms = iter(torch._foreach_norm(flat))  # pyright: ignore[reportPrivateImportUsage]
    parts_norms = [torch.stack([next(norms) for _ in part]).norm() for part in gradients]
    factors = [(largest / (norm + 1e-6)).clamp(max=1.0) for norm in parts_norms]
    each = [factor for factor, part in zip(factors, gradients, strict=True) for _ in part]
    torch._foreach_mul_(flat, each)  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack(parts_norms).norm()
