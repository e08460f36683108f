"""Write docs/configuration.md, the page of all settings, from their declarations.

    python docs/configuration.py

A test holds that the page is what this writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from simdino.config import RunConfig
from simdino.data.survey import DatasetStatistics
from simdino.methods import GROUPS, METHODS
from simdino.options import Options, Setting, every_setting, setting_of, value_at
from simdino.recipes import list_recipes, preset_for, resolve
from simdino.settings import described, shown

PAGE = Path(__file__).with_name("configuration.md")
OF_THE_MACHINE = ("speed.device", "speed.precision", "speed.workers")
TITLES = {
    "data": "Data", "views": "Views", "encoder": "Encoder", "projector": "Projector", "loss": "Loss",
    "optim": "Optimisation", "run": "Run", "speed": "Speed", "": "Beside the settings",
}  # fmt: skip
INTRODUCTION = """# Configuration

Nothing has to be set: what is not given follows the images, the length of the run and the machine, and
`simdino inspect DATA` shows what a run would take. A setting is given in one of three ways, with the same meaning:

- by its short word: `simdino pretrain photos/ --batch 128`;
- by its path: `simdino pretrain photos/ --set views.jitter=0.2 --set optim.temperature=0.04,0.07
  --set views.blur_radius=null`;
- from Python by either: `sd.recipes.auto("photos/", {"views.jitter": 0.2}, batch=128)`.

`config.json` of a run folder holds the value of each, by the same paths. A name that does not exist, a value of another
type or out of its range, and a setting that the method does not have are refused in one line; a setting that changes
nothing in a run is named before it starts. "Varies" means that the default follows the images, the method, the length
of the run or the machine. This page is made from the declarations by `docs/configuration.py`.
"""


def page() -> str:
    """The whole page."""
    every = every_setting()
    parts = [INTRODUCTION, methods()]
    for group, title in TITLES.items():
        found = [one for path, one in every.items() if path.rpartition(".")[0] == group]
        parts.append(f"## {title}\n\n{table(found)}")
    return "\n".join(parts)


def methods() -> str:
    """The table of methods."""
    rows = [f"| `{name}` | {method.about} |" for name, method in METHODS.items()]
    recipes = ", ".join(f"`{name}`" for name in list_recipes())
    return "\n".join(["## Methods", "", "| `--method` | what it does |", "|---|---|", *rows, "",
                      f"`--recipe` takes {recipes}.", ""])  # fmt: skip


def table(found: Iterable[Setting]) -> str:
    """A row for each setting."""
    rows = [f"| {' | '.join(cells(one))} |" for one in found if not one.first.metadata["found"]]
    return "\n".join(["| setting | word | default | may be | what it is |", "|---|---|---|---|---|", *rows, ""])


def cells(one: Setting) -> tuple[str, ...]:
    """Name, word, default, values and meaning of a setting."""
    only, word = one.first.metadata["only"], f"`--{one.word}`" if one.word else ""
    needed = "" if only is None else f" Only with `{setting_of(only[0]).name}` {values(only[1])}."
    return f"`{one.path}`", word, default(one), may_be(one), one.help + needed


def values(allowed: Any) -> str:
    """The values of another setting with which one has an effect."""
    return " or ".join(str(value).lower() for value in allowed) if isinstance(allowed, tuple) else str(allowed)


def may_be(one: Setting) -> str:
    """Type and range."""
    kinds = [part for part in get_args(one.kind) if part is not NoneType] if NoneType in get_args(one.kind) else []
    kind = described(kinds[0] if kinds else one.kind)
    kind = " or ".join(METHODS) if one.path == "run.method" else kind
    kind = kind.replace(" that is not empty", "")
    allowed = one.first.metadata["range"]
    null = ", or null" if kinds else ""
    return f"{kind}, {allowed}{null}" if allowed and get_origin(one.kind) is not Literal else kind + null


def statistics(side: int, images: int) -> DatasetStatistics:
    """Of colour images whose sides are `side` pixels."""
    return DatasetStatistics(
        images=images, read=images, channels=3, short_side=side, long_side=side, smallest=side, mean=(0.4, 0.4, 0.4),
        std=(0.2, 0.2, 0.2), labels=0, class_counts={}, broken={},
    )  # fmt: skip


CONFIGS = [
    resolve(
        "photos", Options(method=method, device="cpu"), statistics=statistics(side, images),
        preset=preset_for(side, method, gpu=gpu),
    )
    for method in METHODS
    for gpu in (False, True)
    for side, images in ((8, 60), (28, 60_000), (64, 100_000), (400, 1_000_000))
]  # fmt: skip
"""Runs with nothing given, of images of several sizes and numbers."""


def default(one: Setting) -> str:
    """What a run has where the setting is not given."""
    group, dot, name = one.path.partition(".")
    if one.path in OF_THE_MACHINE or not dot:
        return "varies" if dot else ""
    if one.path == "run.method":
        return RunConfig.method
    having = [config for config in CONFIGS if group in GROUPS or hasattr(config.loss, name)]
    found = {value_at(config, one.path) for config in having if one.of(METHODS[config.run.method]) is not None}
    if len(found) > 1 or one.path in ("data.mean", "data.std", "data.channels"):
        return "varies"
    value = found.pop()
    text = ", ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else shown(value).strip("'")
    return f"{value:.4g}" if isinstance(value, float) else text.lower() if isinstance(value, bool) else text


if __name__ == "__main__":
    PAGE.write_text(page())
