"""The methods by name, one file each, and what reads them: a configuration from JSON, its check, a loss, networks."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import TYPE_CHECKING, Any, get_type_hints

from simdino.config import Config, RunConfig
from simdino.errors import InputError
from simdino.marks import read_marks
from simdino.methods.method import Method, Rule, known_width
from simdino.settings import check_fields, from_json, problems, shown
from simdino.text import nearest

if TYPE_CHECKING:
    import torch

    from simdino.losses.objective import Objective
    from simdino.models.encoder import Encoder
    from simdino.models.projector import Embedder

FILES = ("simdino", "simdinov2", "dino", "dinov2")
METHODS: dict[str, Method] = {name: import_module(f"simdino.methods.{name}").METHOD for name in FILES}
GROUPS: dict[str, type] = {name: kind for name, kind in get_type_hints(Config).items() if name != "loss"}
"""The parts of a configuration that are the same for all methods; the settings of the loss are the method's."""


def list_methods() -> list[str]:
    """The names of the methods."""
    return list(METHODS)


def method_named(name: Any, *, word: str = "--method") -> Method:
    """The method of a name. Raises InputError for an unknown one, which it names by the word that it was given by, and
    suggests the nearest."""
    if not isinstance(name, str) or name not in METHODS:
        raise InputError(f"{word} {shown(name)} must be {' or '.join(METHODS)}{nearest(str(name), METHODS)}")
    return METHODS[name]


def cures(name: str | None = None) -> list[str]:
    """What the method of a name declares against collapse; without a name, what each method does and for which."""
    if name is not None:
        return [METHODS[name].cure] if METHODS[name].cure else []
    texts: dict[str, list[str]] = {}
    for method in METHODS.values():
        texts.setdefault(method.cure, []).append(method.name)
    return [f"{text} ({' and '.join(names)})" for text, names in texts.items() if text]


def read_config(values: Any) -> Config:
    """The configuration that JSON values describe. Raises InputError for a missing or an unknown field."""
    check_fields(Config, values, where="config")
    run = from_json(RunConfig, values["run"], where="run")
    groups = {**GROUPS, "loss": method_named(run.method, word="run.method").settings}
    made = {name: from_json(group, values[name], where=name) for name, group in groups.items() if name != "run"}
    return Config(run=run, **made)


def check_config(config: Config, *, spoken: bool = True) -> None:
    """Raise one InputError that lists every problem. spoken: settings are called by their words on the command line,
    where they have one; else by their path in config.json."""
    found = [
        line
        for group in dataclasses.fields(config)
        for line in problems(
            getattr(config, group.name),
            named=lambda field, group=group.name: spoken_name(group, field) if spoken else f"{group}.{field.name}",
        )
    ]
    found = found or [text for wrong, text in rules(config) if wrong]  # rules are for values of the right types
    if found:
        raise InputError("; ".join(found))


def spoken_name(group: str, field: dataclasses.Field[Any]) -> str:
    """What a person calls a setting: its word on the command line, or its path."""
    word = field.metadata["word"]
    return f"--{word}" if word else f"{group}.{field.name}"


def rules(config: Config) -> list[Rule]:
    """What may be wrong between settings: whether it is, and the words for it."""
    data, run, method = config.data, config.run, method_named(config.run.method)
    if type(config.loss) is not method.settings:
        return [(True, f"--method {run.method} has another objective than the configuration holds")]
    return [
        (
            data.values is not None and not data.values[0] < data.values[1],
            f"--values {data.values} must be a lower and a higher one",
        ),
        (
            {len(data.mean), len(data.std)} != {data.channels},
            f"data.mean and data.std must be one number for each of {data.channels} channels",
        ),
        (
            run.batch > data.train_images,
            f"--batch {run.batch} is larger than the data: {data.train_images} training images in {data.root}",
        ),
        (
            config.projector.layers == 0 and known_width(config) is None,
            f"projector.layers 0 needs an encoder.name whose width is known before it is made, not "
            f"{config.encoder.name}",
        ),
        (
            config.optim.freeze_encoder > 0 and config.projector.layers == 0 and not config.projector.prototypes,
            f"--freeze-encoder {config.optim.freeze_encoder:g} leaves nothing to train: there is no projector "
            f"(projector.layers 0)",
        ),
        *mark_rules(config),
        *view_rules(config),
        *method.rules(config),
    ]


def mark_rules(config: Config) -> list[Rule]:
    """Marks can be read."""
    try:
        read_marks(config.run.stop_below)
    except InputError as error:
        return [(True, str(error))]
    return []


def view_rules(config: Config) -> list[Rule]:
    """Crops are whole patches, and pairs of bounds rise."""
    views, patch = config.views, config.encoder.patch_size
    return [
        (
            views.mask_share > 0 and not config.encoder.mask_token,
            f"views.mask_share {views.mask_share:g} needs encoder.mask_token true: {config.encoder.name} has no "
            f"patches to hide",
        ),
        *(
            (size % patch != 0, f"{name} of {size} px are not divisible by --patch-size {patch}")
            for name, size in (
                ("--image-size: global crops", views.global_size),
                ("local crops", views.local_size if views.local_views else patch),
                ("encoder.image_size", config.encoder.image_size),
            )
        ),
        *(
            (low > high, f"views.{name} must rise, not go from {low} to {high}")
            for name, (low, high) in (
                ("global_scale", views.global_scale), ("local_scale", views.local_scale),
                ("blur_sigma", views.blur_sigma), ("mask_ratio", views.mask_ratio),
            )
        ),
    ]  # fmt: skip


def make_loss(config: Config, device: torch.device | None = None) -> Objective:
    """The objective of a run with its sizes; its buffers lie on the device."""
    loss = METHODS[config.run.method].objective(config)
    loss.buffers.update({name: value.to(device) for name, value in loss.buffers.items()})
    return loss


def make_student(config: Config, encoder: Encoder) -> Embedder:
    """The encoder with the heads of the method, whose weights are random."""
    return METHODS[config.run.method].networks(config, encoder)
