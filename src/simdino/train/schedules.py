"""Learning rate, weight decay and teacher momentum as pure functions of the step."""

from __future__ import annotations

from dataclasses import dataclass

from simdino.config import OptimConfig
from simdino.cosine import cosine, warmup_cosine


@dataclass(frozen=True, kw_only=True)
class Values:
    """What the schedules say for one step."""

    lr: float
    weight_decay: float
    momentum: float
    temperature: float  # of the teacher, for losses with prototypes
    freeze_prototypes: bool
    freeze_encoder: bool


def linear(step: int, steps: int, *, start: float, end: float) -> float:
    """A line from `start` at step 0 to `end` at step `steps`, then `end`."""
    return end if step >= steps else start + (end - start) * step / steps


def values_at(step: int, *, steps: int, config: OptimConfig) -> Values:
    """The schedules at `step` of a run of `steps`, counted from 0.

    The learning rate is that of the step's number plus one, so that the first step moves the weights and the last one
    still has a learning rate only the end of the cosine would take from it; all else is that of the number.
    """
    return Values(
        lr=warmup_cosine(
            step + 1, steps + 1, warmup=max(1, round(config.warmup * steps)), peak=config.lr, end=config.final_lr
        ),
        weight_decay=cosine(step, steps, start=config.weight_decay, end=config.final_weight_decay),
        momentum=cosine(step, steps, start=config.momentum, end=1.0) if config.teacher == "ema" else 0.0,
        temperature=linear(
            step, round(config.temperature_warmup * steps), start=config.temperature[0], end=config.temperature[1]
        ),
        freeze_prototypes=step < config.freeze_prototypes * steps,
        freeze_encoder=step < config.freeze_encoder * steps,
    )
