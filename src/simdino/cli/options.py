"""Options of commands that stand for settings: their kind, range and help come from the declarations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import click

from simdino.cli.words import Choice
from simdino.methods import METHODS
from simdino.options import Setting, bare, setting_of

Command = Callable[..., None]


def option_of(name: str, **more: Any) -> Callable[[Command], Command]:
    """The option for the short word of a setting. more: what click takes besides."""
    return option_for(setting_of(name), **more)


def option_for(one: Setting, **more: Any) -> Callable[[Command], Command]:
    """The option for a setting that has a short word."""
    kind = Literal[tuple(METHODS)] if one.path == "run.method" else bare(one.kind)
    word = f"{one.name}/--no-{one.word}" if kind is bool else one.name
    shared: dict[str, Any] = {
        "cls": SettingOption, "setting": one, "type": type_of(one, kind), "default": None, "help": one.help
    }  # fmt: skip
    return click.option(word, str(one.word).replace("-", "_"), **{**shared, **more})


def type_of(one: Setting, kind: Any) -> Any:
    """What click makes of the text that follows an option."""
    if get_origin(kind) is Literal:
        return Choice(get_args(kind))
    return kind if kind in (bool, int, float, str) else Typed(one)


class SettingOption(click.Option):
    """An option that stands under a heading of the help."""

    def __init__(self, *names: Any, setting: Setting, **more: Any) -> None:
        super().__init__(*names, **more)
        self.setting = setting


class Typed(click.ParamType[Any]):
    """A value of a setting that has one of several types, or more than one number."""

    name = "value"

    def __init__(self, one: Setting) -> None:
        self.setting = one

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value that the text says."""
        return self.setting.read(value) if isinstance(value, str) else value
