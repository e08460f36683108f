"""Options that are declared: as a field of a run's settings, or as a keyword of a function."""

from inspect import Parameter
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from simdino.cli.terminal import Choice
from simdino.keywords import Keyword
from simdino.methods import METHODS
from simdino.options import Setting, bare


class SettingOption(click.Option):
    """The option for the short word of a setting, which stands under the setting's heading in the help."""

    def __init__(self, setting: Setting) -> None:
        kind = Literal[tuple(METHODS)] if setting.path == "run.method" else bare(setting.kind)
        word = f"{setting.name}/--no-{setting.word}" if kind is bool else setting.name
        names = [word, str(setting.word).replace("-", "_")]
        super().__init__(names, type=type_of(kind) or SettingType(setting), default=None, help=setting.help)
        self.setting = setting


class KeywordOption(click.Option):
    """The option of a declared keyword. One that is not typed is None or empty: the function knows its default, which
    the help tells."""

    def __init__(self, keyword: Keyword) -> None:
        about, default = keyword.option, keyword.default
        required, silent = default is Parameter.empty, default is None or default is False or default == ()
        text = about.default or (None if silent else "yes" if default is True else str(default))
        told = f"{about.text}  [default: {text}]" if text and not required else about.text
        if keyword.bare is bool:
            super().__init__([f"{keyword.word}/--no-{keyword.word[2:]}"], default=None, help=told)
        else:
            kind = type_of(keyword.bare) or click.STRING
            names, kind = [keyword.word, keyword.name], SeveralType(kind) if keyword.many else kind
            super().__init__(names, type=kind, multiple=keyword.many, required=required, help=told)
        self.keyword = keyword

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Convert what was typed; several words of several values each become one tuple."""
        found = super().process_value(ctx, value)
        return tuple(chain.from_iterable(found)) if self.keyword.many else found


def type_of(kind: Any) -> click.ParamType[Any] | None:
    """What click makes of a text that stands for a value of a type; None for a type that it does not know."""
    if get_origin(kind) is Literal:
        return Choice(get_args(kind))
    known = {bool: click.BOOL, int: click.INT, float: click.FLOAT, str: click.STRING, Path: click.Path(path_type=Path)}
    return known.get(kind)


class SettingType(click.ParamType[Any]):
    """A value of a setting that has one of several types, or more than one number."""

    name = "value"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value that the text says."""
        return self.setting.read(value) if isinstance(value, str) else value


class SeveralType(click.ParamType[Any]):
    """Values of one kind, separated by commas."""

    def __init__(self, kind: click.ParamType[Any]) -> None:
        self.kind, self.name = kind, kind.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert each of them."""
        return [self.kind.convert(part, param, ctx) for part in value.split(",") if part.strip()]
