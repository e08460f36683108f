"""What all commands share: choices that name the nearest word, and how they answer."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import click

from simdino.text import nearest, readable, readable_lines, to_json


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
