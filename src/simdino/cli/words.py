"""What the commands share: choices that name the nearest word, options that several have, and how they answer."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import click

from simdino.config import DataConfig, Named, PositionRule, RunConfig, SpeedConfig, ViewsConfig
from simdino.methods import METHODS
from simdino.options import Setting, bare, nearest, setting_of
from simdino.settings import Range, declared
from simdino.text import readable, readable_lines, to_json

Command = Callable[..., None]


class Choice(click.Choice[str]):
    """A choice whose error names the nearest word."""

    def get_invalid_choice_message(self, value: str, ctx: click.Context | None) -> str:
        """One line."""
        return f"{value!r} is not one of {', '.join(self.choices)}{nearest(value, self.choices)}"


class Commands(click.Group):
    """Commands in the order of use; a mistyped one names the nearest."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As defined."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each with its whole first sentence, which click would cut at the width of the terminal."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(limit=1000)) for name, one in self.commands.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does, with a suggestion."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(f"no such command {args[0]!r}{nearest(args[0], self.commands)}")
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
    one = setting_of(name)
    kind = Literal[tuple(METHODS)] if one.path == "run.method" else bare(one.kind)
    word = f"{one.name}/--no-{one.word}" if kind is bool else one.name
    shared = {
        "cls": SettingOption, "setting": one, "type": type_of(one, kind), "default": None, "help": one.help
    }  # fmt: skip
    return click.option(word, name, **{**shared, **more})


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


def with_rule(ctx: click.Context, _: click.Parameter, rule: PositionRule | None) -> None:
    """Note --positions beside the name of the encoder, which an outer command got."""
    name = getattr(ctx.obj, "encoder", ctx.obj)
    assert isinstance(name, Named)
    name.positions = rule


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


class Numbers(Number):
    """Different numbers separated by commas, such as 1,2,5; an empty text for none."""

    def __init__(self, kind: type[int] | type[float], range: Range) -> None:
        super().__init__(kind, range)
        self.name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A list."""
        parts = [part for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value)
        return different(ctx, param, [super(Numbers, self).convert(part, param, ctx) for part in parts])


def different(ctx: click.Context | None, param: click.Parameter | None, given: Sequence[Any]) -> Sequence[Any]:
    """What was given, once each: the second of two alike would change nothing. Raises a usage error."""
    twice = [one for i, one in enumerate(given) if one in given[:i]]
    if twice:
        raise click.BadParameter(f"{twice[0]} is given twice", ctx, param)
    return given


def number_of(group: type, name: str) -> Number:
    """The numbers that a setting of a run may be."""
    return Number(float if "float" in str(declared(group, name).type) else int, declared(group, name).metadata["range"])


def folders_of(name: str) -> Callable[[Command], Command]:
    """The options that name the folders of the data which a command gets as its parameter `name`."""

    def add(command: Command) -> Command:
        @wraps(command)
        def told(
            *places: Any, train: str | None, val: str | None, class_depth: int | None, **words: Any
        ) -> None:  # fmt: skip
            if (train, val, class_depth) != (None, None, None):
                from simdino.data.splits import DataPath

                words[name] = DataPath(root=words[name], train=train, val=val, class_depth=class_depth)
            command(*places, **words)

        return option_of("train")(
            option_of("val")(option_of("class_depth", type=number_of(DataConfig, "class_depth"))(told))
        )

    return add


ABOVE_0 = Number(float, Range(above=0, at_most=10**6))
AT_LEAST_1, AT_LEAST_2 = (Number(int, Range(at_least=least, at_most=10**9)) for least in (1, 2))
PIXELS = number_of(ViewsConfig, "global_size")
COSINE = Number(float, Range(at_least=0, below=1))  # above which patches belong together
SEED, STEPS = (number_of(RunConfig, name) for name in ("seed", "steps"))
WORKERS, BATCH = (number_of(SpeedConfig, name) for name in ("workers", "micro_batch"))
device_option = click.option(
    "--device", default="auto", show_default=True, help="Where the encoder runs: auto, cpu, cuda, cuda:1, mps."
)
positions_option = option_of("positions", expose_value=False, callback=with_rule)
exif_option = click.option(
    "--exif", type=Choice(["turn", "ignore"]), default="turn", show_default=True,
    help="What masks or boxes were drawn on: pictures turned as EXIF says, or their pixels as stored.",
)  # fmt: skip
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
