"""Options of commands that stand for settings: their kind, range and help come from the declarations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import click

from simdino import keywords
from simdino.cli.words import Choice
from simdino.methods import METHODS
from simdino.options import Setting, bare, setting_of
from simdino.settings import Range

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


class Number(click.ParamType[Any]):
    """A number in a range, as the settings declare theirs."""

    def __init__(self, kind: type[int] | type[float], range: Range) -> None:
        self.kind, self.range, self.name = kind, range, "integer" if kind is int else "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        """The number, or one line that says what it must be."""
        number = (click.INT if self.kind is int else click.FLOAT).convert(value, param, ctx)
        if number not in self.range:
            self.fail(f"{value} must be {self.range}", param, ctx)
        return number


AT_LEAST_1, COSINE = Number(int, keywords.AT_LEAST_1), Number(float, keywords.COSINE)
PIXELS = Number(int, keywords.PIXELS)
device_option = click.option(
    "--device", default="auto", show_default=True, help="Where the encoder runs: auto, cpu, cuda, cuda:1, mps."
)
positions_option = option_of("positions")
