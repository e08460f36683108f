"""How commands meet a terminal: a table of commands, choices that name the nearest word, answers and errors."""

import io
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NoReturn, TypeVar

import click

from simdino.text import nearest, readable, readable_lines, to_json

T = TypeVar("T")


class CommandTable(click.Group, Generic[T]):
    """Commands by their names, in the order of use, each made when it is asked for.

    table: what is known of each. sentence: from that, what the list of commands says. make: gives the command of a
    name."""

    def __init__(
        self, name: str, table: Mapping[str, T], *,
        sentence: Callable[[T], str], make: Callable[[str], click.Command], **more: Any,
    ) -> None:  # fmt: skip
        super().__init__(name, **more)
        self.table, self.sentence, self.make = table, sentence, make

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Make a command."""
        return self.make(cmd_name) if cmd_name in self.table else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each with its whole sentence, which click would cut at the width of the terminal."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.sentence(known)) for name, known in self.table.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Resolve it as click does, and name the nearest command to a mistyped one."""
        if args[0] not in self.table and not args[0].startswith("-"):
            raise click.UsageError(f"no such command {args[0]!r}{nearest(args[0], self.table)}")
        return super().resolve_command(ctx, args)


class Choice(click.Choice[str]):
    """A choice whose error names the nearest word."""

    def get_invalid_choice_message(self, value: str, ctx: click.Context | None) -> str:
        """One line."""
        return f"{value!r} is not one of {', '.join(self.choices)}{nearest(value, self.choices)}"


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
    """Print a line for a person beside the result."""
    if first():
        click.echo(readable(line), err=True)


def answer(result: dict[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """Print a command's result: JSON for programs, lines for people."""
    if first():
        click.echo(to_json(result) if as_json else readable_lines("\n".join(lines)))


def fail(message: str, *, code: int) -> NoReturn:
    """End with one line."""
    click.echo(f"simdino: {readable(' '.join(message.split()))}", err=True)
    sys.exit(code)
