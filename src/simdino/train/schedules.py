"""Learning rate, weight decay and teacher momentum as pure functions of the step."""

from __future__ import annotations

from dataclasses import dataclass

from simdino.config import OptimConfig
from simdino.cosine import cosine, warmup_cosine


@dataclass(frozen=True, kw_only=True)
class Values:
    """The values of the schedules for one step."""

    lr: float
    weight_decay: float
    momentum: float
    temperature: float  # of the teacher, for losses with prototypes
    freeze_prototypes: bool
    freeze_encoder: bool


def linear(step: int, steps: int, *, start: float, end: float) -> float:
    """Return the value at `step` of a line from `start` at step 0 to `end` at step `steps`, then `end`."""
    return end if step >= steps else start + (end - start) * step / steps


def learning_rate(step: int, *, steps: int, config: OptimConfig) -> float:
    """Return the learning rate of a step: the configuration's ramp, then half a cosine.

    Sources: "inclusive" utils.cosine_scheduler of DINO at 7c446df and CosineScheduler of DINOv2 at b8931f7; "exclusive"
    that of SimDINOv2 at 8149fc4; "ahead" is ours, under which the first step moves the weights."""
    warmup, peak = max(1, round(config.warmup * steps)), config.lr
    if config.ramp == "ahead":
        return warmup_cosine(step + 1, steps + 1, warmup=warmup, start=config.first_lr, peak=peak, end=config.final_lr)
    if config.ramp == "inclusive" and step < warmup:
        return linear(step, max(1, warmup - 1), start=config.first_lr, end=peak)
    return warmup_cosine(step, steps, warmup=warmup, start=config.first_lr, peak=peak, end=config.final_lr)


def values_at(step: int, *, steps: int, config: OptimConfig) -> Values:
    """Return the schedules at `step`, counted from 0, of a run of `steps`.

    With the ramp "ahead" the learning rate is that of the next step, so that the first step moves the weights and the
    last one still learns; everything else is that of the step itself."""
    warm = round(config.temperature_warmup * steps)
    if config.ramp == "inclusive" and warm > 1:
        warm -= 1
    return Values(
        lr=learning_rate(step, steps=steps, config=config),
        weight_decay=cosine(step, steps, start=config.weight_decay, end=config.final_weight_decay),
        momentum=cosine(step, steps, start=config.momentum, end=1.0) if config.teacher == "ema" else 0.0,
        temperature=linear(step, warm, start=config.temperature[0], end=config.temperature[1]),
        freeze_prototypes=step < config.freeze_prototypes * steps,
        freeze_encoder=step < config.freeze_encoder * steps,
    )
