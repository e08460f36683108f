"""What a person gave in vain: a line for each setting that changes nothing in a run."""

from __future__ import annotations

import os

from simdino.config import Config
from simdino.methods import METHODS
from simdino.models.adapters import TIMM
from simdino.models.catalogue import kind_of
from simdino.options import Options, setting_of, value_at
from simdino.settings import numbers


def without_effect(options: Options, config: Config) -> list[str]:
    """A warning for each setting that was given and changes nothing in this run."""
    found = [line for path in options.values for line in of_declarations(path, config)]
    found += [line for given_in_vain, line in of_numbers(options, config) if given_in_vain]
    if "masks" in METHODS[config.run.method].parts and not config.views.mask_share:
        found.append(
            f"--method {config.run.method} trains without masks here: {config.encoder.name} has no patches to hide, "
            f"and the part of the objective on patches is left out"
        )
    return [f"warning: {line}" for line in found]


def of_declarations(path: str, config: Config) -> list[str]:
    """What the declaration of a setting tells: its encoder does not read it, or another setting rules it out."""
    one, encoder = setting_of(path), config.encoder.name
    declared = one.of(METHODS[config.run.method])
    group, _, name = path.partition(".")
    if group == "encoder" and name in kind_of(encoder).unread:
        return [f"{one.name} has no effect with {encoder}: it has its own"]
    if declared is None:
        return []
    if declared.metadata["part"] == "masks" and path != "views.mask_share" and not config.views.mask_share:
        return [f"{one.name} has no effect with {encoder}: no patches are masked"]
    if declared.metadata["only"] is None:
        return []
    other, allowed = declared.metadata["only"]
    value = value_at(config, other)
    if value in allowed if isinstance(allowed, tuple) else any(number in allowed for number in numbers(value)):
        return []
    needed = " or ".join(map(str, allowed)) if isinstance(allowed, tuple) else allowed
    return [f"{one.name} has no effect with {setting_of(other).name} {value}: that must be {needed}"]


def of_numbers(options: Options, config: Config) -> list[tuple[bool, str]]:
    """What only the numbers of a run tell: whether a setting is given in vain, and the line."""
    run, given, micro = config.run, options.values, config.speed.micro_batch
    own = run.batch // int(os.environ.get("WORLD_SIZE", "1"))  # images of this process
    return [
        (
            config.speed.compile and config.encoder.name.startswith(TIMM),
            f"--compile has no effect with {config.encoder.name}: only blocks of our own encoders are compiled",
        ),
        (
            "run.evaluate_every" in given and run.evaluate_every > run.steps,
            f"--evaluate-every has no effect: the run ends after {run.steps} steps, and is evaluated then",
        ),
        (
            "run.checkpoint_every" in given
            and (run.checkpoint_every % run.evaluate_every == 0 or run.checkpoint_every >= run.steps),
            f"--checkpoint-every has no effect: each evaluation (every {run.evaluate_every} steps) makes a checkpoint",
        ),
        (micro is not None and micro >= own, f"--micro-batch has no effect: the batch of {own} is no larger"),
        (
            given.get("loss.scope") == "shards" and run.batch == getattr(config.loss, "shard_size", None),
            f"--scope shards has no effect: the batch of {run.batch} is one shard",
        ),
    ]
