"""The schedules of a run in whole steps, and the trunk of a run whose length may still change.

Settings give shares of the run. Under `--schedule wsd` a run is a trunk, that is a warm-up and then constant rates, and
a cool-down. Nothing in the trunk depends on how long the run will be but these shares: where the length changes they
are changed too, so that they stay the same numbers of steps."""

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from typing import Any

from simdino.config import Config, OptimConfig
from simdino.contracts import InputError

OF_PROTOTYPES = ("freeze_prototypes", "temperature_warmup")
SHARES = ("warmup", "freeze_encoder", *OF_PROTOTYPES)
"""The settings in `optim` that are a share of the steps, at the start of a run; the last have no meaning for methods
without prototypes."""
ROUNDING = 1e-6  # steps by which a share of the steps may miss a whole number


def whole(share: float, steps: int) -> int:
    """Return the smallest whole number of steps that is no less than a share of `steps`."""
    return ceil(share * steps - ROUNDING)


def warmup_steps(config: OptimConfig, steps: int) -> int:
    """Return in how many steps the learning rate rises, of a run of `steps`."""
    return max(1, round(config.warmup * steps))


def cooldown_steps(config: OptimConfig, steps: int) -> int:
    """Return in how many steps at the end the learning rate falls from its stable value; 0 for a cosine."""
    count = round(config.cooldown * steps)
    return count if config.schedule == "wsd" else 0


def trunk_end(config: Config) -> int | None:
    """Return the step after which a run cools down, which is its last where it never does; None for a cosine."""
    steps, optim = config.run.steps, config.optim
    end = steps - cooldown_steps(optim, steps)
    return end if optim.schedule == "wsd" else None


def stable_from(config: Config) -> int:
    """Return the number of steps after which nothing in a trunk changes any more: neither the learning rate, nor that
    of an encoder that was frozen, nor what the teacher's targets and the prototypes wait for."""
    steps, optim = config.run.steps, config.optim
    warm, found = warmup_steps(optim, steps), counts(vars(optim), steps)
    others = [found[name] for name in OF_PROTOTYPES if config.projector.prototypes]
    return max(warm, found["freeze_encoder"] + warm if found["freeze_encoder"] else 0, *others)


def counts(optim: Mapping[str, Any], steps: int) -> dict[str, int]:
    """Return the `SHARES` of a run of `steps` as whole steps. optim: its settings by name."""
    return {name: (whole if "freeze" in name else round_share)(optim[name], steps) for name in SHARES}


def round_share(share: float, steps: int) -> int:
    """Return the whole number of steps next to a share of `steps`."""
    return round(share * steps)


def with_length(config: Config, steps: int, *, cooldown: float | None = None) -> Config:
    """Return a configuration with another length, and the same numbers of steps for what is a share of it.

    cooldown: another share for the cool-down. Raises InputError where the new length has no room for those steps."""
    before, optim = config.run.steps, config.optim
    shares = {name: getattr(optim, name) * before / steps for name in SHARES}
    if not config.projector.prototypes:
        shares |= {name: min(1.0, shares[name]) for name in OF_PROTOTYPES}
    longest = max(shares, key=shares.__getitem__)
    if shares[longest] > 1:
        needed = counts(vars(optim), before)[longest]
        raise InputError(f"{steps} steps are too few: optim.{longest} has {needed} of the {before} that were planned")
    cool = optim.cooldown if cooldown is None else cooldown
    return replace(config, optim=replace(optim, **shares, cooldown=cool), run=replace(config.run, steps=steps))


def same_trunk(config: Config, other: Mapping[str, Any], step: int) -> set[str]:
    """Return the settings, by path, whose values do not matter to a state after `step` steps: those that say how long
    the run is, where the state is of a trunk that two configurations share.

    other: the second configuration, as plain values that may be damaged."""
    try:
        theirs, length = other["optim"], other["run"]["steps"]
        cooled = cooldown_steps(OptimConfig(schedule=theirs["schedule"], cooldown=theirs["cooldown"]), length)
        now, then = counts(vars(config.optim), config.run.steps), counts(theirs, length)
        ends = {trunk_end(config), length - cooled if theirs["schedule"] == "wsd" else None}
    except (KeyError, TypeError):
        return set()
    if None in ends or step > min(end for end in ends if end is not None):
        return set()
    idle = () if config.projector.prototypes else OF_PROTOTYPES
    same = [f"optim.{name}" for name in SHARES if now[name] == then[name] or name in idle]
    return {"run.steps", "optim.cooldown", *same}
