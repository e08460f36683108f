"""What the commands share: choices that name the nearest word, options that several have, and how they answer."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import click

from simdino import keywords
from simdino.methods import METHODS
from simdino.options import Setting, bare, setting_of
from simdino.settings import Range
from simdino.text import nearest, readable, readable_lines, to_json

Command = Callable[..., None]


class Choice(click.Choice[str]):
    """A choice whose error names the nearest word."""

    def get_invalid_choice_message(self, value: str, ctx: click.Context | None) -> str:
        """One line."""
        return f"{value!r} is not one of {', '.join(self.choices)}{nearest(value, self.choices)}"


class Commands(click.Group):
    """Commands in the order of use; a mistyped one names the nearest."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order they were defined in."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each with its whole first sentence, which click would cut at the width of the terminal."""
        every = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(limit=1000)) for name, one in every.items() if one])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Resolve it as click does, and name the nearest command to a mistyped one."""
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            raise click.UsageError(f"no such command {args[0]!r}{nearest(args[0], known)}")
        return super().resolve_command(ctx, args)


class PngFile(click.Path):
    """A file whose name says what is written to it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does, but the name ends in .png."""
        path = super().convert(value, param, ctx)
        if Path(str(path)).suffix.lower() != ".png":
            self.fail(f"{value!r} does not end in .png", param, ctx)
        return path


def option_of(name: str, **more: Any) -> Callable[[Command], Command]:
    """The option for the short word of a setting. more: what click takes besides."""
    return option_for(setting_of(name), **more)


def option_for(one: Setting, **more: Any) -> Callable[[Command], Command]:
    """The option for a setting that has a short word."""
    kind = Literal[tuple(METHODS)] if one.path == "run.method" else bare(one.kind)
    word = f"{one.name}/--no-{one.word}" if kind is bool else one.name
    shared = {
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


class Typed(click.ParamType):
    """A value of a setting that has one of several types, or more than one number."""

    name = "value"

    def __init__(self, one: Setting) -> None:
        self.setting = one

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value that the text says."""
        return self.setting.read(value) if isinstance(value, str) else value


class Number(click.ParamType):
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
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; the rest on stderr.")


def first() -> bool:
    """Whether this process is alone or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def speak_any_encoding() -> None:
    """What this terminal's or pipe's encoding lacks is written as an escape: a character must not end the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def log(line: str) -> None:
    """A line for a person."""
    if first():
        click.echo(readable(line), err=True)


def answer(result: dict[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """A command's result: JSON for programs, lines for people."""
    if first():
        click.echo(to_json(result) if as_json else readable_lines("\n".join(lines)))


def fail(message: str, *, code: int) -> NoReturn:
    """End with one line."""
    click.echo(f"simdino: {readable(' '.join(message.split()))}", err=True)
    sys.exit(code)
