"""The optimizer: its schedules as pure functions of the step, AdamW, frozen parts, and the clipping of gradients."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from simdino.config import OptimConfig
from simdino.cosine import cosine, warmup_cosine
from simdino.models.groups import parameter_groups
from simdino.models.projector import Embedder
from simdino.train.muon import Muon
from simdino.train.parallel import norms, own_part
from simdino.trunk import cooldown_steps, warmup_steps, whole


@dataclass(frozen=True, kw_only=True)
class Values:
    """The values of the schedules for one step."""

    lr: float
    weight_decay: float
    momentum: float
    temperature: float  # of the teacher, for losses with prototypes
    freeze_prototypes: bool
    freeze_encoder: bool
    encoder_share: float  # of the learning rate, for the encoder: it rises from 0 where the encoder was frozen

    def of_groups(self) -> dict[str, Any]:
        """Return what `models.groups.set_values` gives the optimizer."""
        return {
            "lr": self.lr, "weight_decay": self.weight_decay, "stop_prototypes": self.freeze_prototypes,
            "encoder_share": self.encoder_share,
        }  # fmt: skip


def linear(step: int, steps: int, *, start: float, end: float) -> float:
    """Return the value at `step` of a line from `start` at step 0 to `end` at step `steps`, then `end`."""
    return end if step >= steps else start + (end - start) * step / steps


def learning_rate(step: int, *, steps: int, config: OptimConfig) -> float:
    """Return the learning rate of a step: the configuration's ramp, then half a cosine, or its peak and a cool-down.

    Sources: "inclusive" utils.cosine_scheduler of DINO at 7c446df and CosineScheduler of DINOv2 at b8931f7; "exclusive"
    that of SimDINOv2 at 8149fc4; "ahead" is ours, under which the first step moves the weights."""
    warmup, peak = warmup_steps(config, steps), config.lr
    if config.schedule == "wsd":
        return cooled(step, steps, config=config, rate=warmed(step, warmup=warmup, config=config))
    if config.ramp == "ahead":
        return warmup_cosine(step + 1, steps + 1, warmup=warmup, start=config.first_lr, peak=peak, end=config.final_lr)
    if config.ramp == "inclusive" and step < warmup:
        return linear(step, max(1, warmup - 1), start=config.first_lr, end=peak)
    return warmup_cosine(step, steps, warmup=warmup, start=config.first_lr, peak=peak, end=config.final_lr)


def warmed(step: int, *, warmup: int, config: OptimConfig) -> float:
    """Return the learning rate of a trunk: the configuration's ramp, then its peak."""
    ahead, inclusive = config.ramp == "ahead", config.ramp == "inclusive"
    length = max(1, warmup - 1) if inclusive else warmup
    return linear(step + ahead, length, start=config.first_lr, end=config.lr)


def cooled(step: int, steps: int, *, config: OptimConfig, rate: float) -> float:
    """Return the learning rate of a step whose trunk has `rate`: in the cool-down it falls by the square root of the
    share that is done (Hägele et al. 2024, arXiv 2405.18392, "1-sqrt"), to the configuration's last.

    As with the cosine, under the ramp "ahead" the rate is that of the next step."""
    length, ahead = cooldown_steps(config, steps), config.ramp == "ahead"
    done = step - (steps - length) + ahead
    if done <= 0:
        return rate
    return config.final_lr + (rate - config.final_lr) * (1 - sqrt(min(1.0, done / (length + ahead))))


def values_at(step: int, *, steps: int, config: OptimConfig) -> Values:
    """Return the schedules at `step`, counted from 0, of a run of `steps`.

    With the ramp "ahead" the learning rate is that of the next step, so that the first step moves the weights and the
    last one still learns; everything else is that of the step itself. Under "wsd" weight decay and momentum are
    constant: what rises with the length of the run would have to be known before it."""
    constant, frozen = config.schedule == "wsd", whole(config.freeze_encoder, steps)
    warm = round(config.temperature_warmup * steps)
    if config.ramp == "inclusive" and warm > 1:
        warm -= 1
    share = linear(max(0, step + 1 - frozen), warmup_steps(config, steps), start=0.0, end=1.0) if frozen else 1.0
    last_decay = config.weight_decay if constant else config.final_weight_decay
    last_momentum = config.momentum if constant else 1.0
    return Values(
        lr=learning_rate(step, steps=steps, config=config),
        weight_decay=cosine(step, steps, start=config.weight_decay, end=last_decay),
        momentum=cosine(step, steps, start=config.momentum, end=last_momentum) if config.teacher == "ema" else 0.0,
        temperature=linear(step, warm, start=config.temperature[0], end=config.temperature[1]),
        freeze_prototypes=step < whole(config.freeze_prototypes, steps),
        freeze_encoder=step < frozen,
        encoder_share=share,
    )


def make_optimizer(model: Embedder, config: OptimConfig) -> torch.optim.Optimizer:
    """Return AdamW(0.9, 0.999), or Muon, over the parameter groups; learning rate and weight decay are set before each
    step."""
    muon = config.optimizer == "muon"
    groups = parameter_groups(
        model,
        layer_decay=config.layer_decay,
        patch_embed_lr=config.patch_embed_lr,
        prototypes_apart=config.frozen_prototypes == "no_rate",
        encoder_apart=config.freeze_encoder > 0,
        matrices_apart=muon,
    )
    if muon:
        return Muon(groups, betas=(0.9, 0.999))
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


def put_together(model: nn.Module) -> None:
    """Move the gradients on a CPU into one piece of memory, for more micro-batches to add to. The backward of the first
    has left them scattered among the activations that it freed, and larger ones of the next would find no room between
    them: the heap of glibc grew by a fifth."""
    found = [p for p in model.parameters() if p.grad is not None and p.grad.device.type == "cpu"]
    for dtype in {p.dtype for p in found}:
        own = [p for p in found if p.dtype == dtype]
        parts = torch.empty(sum(p.numel() for p in own), dtype=dtype).split([p.numel() for p in own])
        for p, part in zip(own, parts, strict=True):
            assert p.grad is not None
            p.grad = part.as_strided(p.shape, p.grad.stride()).copy_(p.grad)


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
    of_each = iter(norms(flat))
    parts_norms = [torch.stack([next(of_each) for _ in part]).norm() for part in gradients]
    factors = [(largest / (norm + 1e-6)).clamp(max=1.0) for norm in parts_norms]
    each = [factor for factor, part in zip(factors, gradients, strict=True) for _ in part]
    torch._foreach_mul_([own_part(gradient) for gradient in flat], each)  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack(parts_norms).norm()
