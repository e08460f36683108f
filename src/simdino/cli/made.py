"""Commands made from declarations: the options of a command are the declared keywords of a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import click

from simdino.cli.words import Choice, Commands, answer, json_option, log
from simdino.evaluate import PROTOCOLS, Protocol
from simdino.evaluate.classification.classify import classify_to
from simdino.evaluate.given import data_path
from simdino.exports import export_to
from simdino.features.table import embed_to
from simdino.keywords import Keyword, checked, keywords, purpose
from simdino.result import Result
from simdino.show import PICTURES

Run = Callable[..., Result]


class Several(click.ParamType[Any]):
    """Values of one kind, separated by commas."""

    def __init__(self, kind: click.ParamType[Any]) -> None:
        self.kind, self.name = kind, kind.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert each of them."""
        return [self.kind.convert(part, param, ctx) for part in value.split(",") if part.strip()]


class KeywordOption(click.Option):
    """The option of a declared keyword. One that is not typed is None or empty: the function knows its default."""

    def __init__(self, keyword: Keyword, *names: str, **more: Any) -> None:
        super().__init__([*names], **more)
        self.keyword = keyword


def option_for(keyword: Keyword) -> KeywordOption:
    """The option of a keyword, its default told in the help."""
    about, default = keyword.option, keyword.default
    silent = default is None or default is False or default == ()
    text = about.default or (None if silent else "yes" if default is True else str(default))
    required = default is Parameter.empty
    told = f"{about.text}  [default: {text}]" if text and not required else about.text
    if keyword.bare is bool:
        return KeywordOption(keyword, f"{keyword.word}/--no-{keyword.word[2:]}", default=None, help=told)
    kind = Choice(keyword.choices) if keyword.choices else {int: click.INT, float: click.FLOAT}.get(keyword.bare)
    if keyword.bare is Path:
        kind = click.Path(path_type=Path)
    kind = kind or click.STRING
    return KeywordOption(
        keyword, keyword.word, keyword.name, type=Several(kind) if keyword.many else kind, multiple=keyword.many,
        required=required, help=told,
    )  # fmt: skip


def command_of(
    run: Run, functions: Sequence[Callable[..., Any]], *,
    name: str, doc: str, example: str, arguments: Sequence[str], options: Sequence[click.Option] = (),
) -> click.Command:  # fmt: skip
    """A command that calls `run` with its arguments and the words that were typed, and prints the result.

    functions: those whose declared keywords are its options. doc: its help. options: further ones, which come first."""

    def call(as_json: bool, **words: Any) -> None:
        places = [words.pop(argument) for argument in arguments]
        typed = {name: value for name, value in words.items() if value is not None and value != ()}
        several = {name: tuple(one for part in typed[name] for one in part) for name in typed if name in many}
        result = run(*places, **typed | several)
        answer(result.as_dict(), result.lines(), as_json=as_json)

    declared = [keyword for function in functions for keyword in keywords(function).values()]
    many = {keyword.name for keyword in declared if keyword.many}
    parameters: list[click.Parameter] = [*map(argument_of, arguments), *options, *map(option_for, declared)]
    command = click.Command(name, callback=call, params=parameters, help=doc, epilog=f"Example: simdino {example}")
    return json_option(command)


def argument_of(name: str) -> click.Argument:
    """A word that must be given."""
    return click.Argument([name])


def protocol_command(protocol: Protocol[..., Any]) -> click.Command:
    """`simdino evaluate NAME`."""
    layout = protocol.layout
    folders = [data_path] if layout.folders else []

    def run(encoder: str, data: str | None = None, **words: Any) -> Result:
        from simdino.show.console import watched

        asked = {word: words.pop(word) for word in keywords(data_path) if folders and word in words}
        where = data_path(data, **checked(data_path, asked)) if asked else data
        return protocol.run(encoder, where, **words, log=log, progress=watched)

    told = layout.text + ("" if layout.required else "  [default: what the run was trained on]")
    return command_of(
        run, [*folders, protocol.function, Protocol.run], name=protocol.name, doc=protocol.text,
        example=f"evaluate {protocol.example}", arguments=["encoder"],
        options=[click.Option(["--data"], required=layout.required, help=told)],
    )  # fmt: skip


def function_command(function: Run, *, name: str, example: str) -> click.Command:
    """The command of a function: its arguments are the function's, its options the declared keywords."""
    arguments = [one.name for one in signature(function).parameters.values() if one.kind is not one.KEYWORD_ONLY]

    def run(*places: str, **words: Any) -> Result:
        from simdino.show.console import watched

        result = function(*places, **checked(function, words), log=log, progress=watched)
        for image, why in getattr(result, "broken", {}).items():
            log(f"left out {image}: {why}")
        return result

    return command_of(run, [function], name=name, doc=purpose(function), example=example, arguments=arguments)


class Made(Commands):
    """The commands of a table, made when they are asked for."""

    def __init__(self, name: str, table: Mapping[str, Any], make: Callable[[str], click.Command], **more: Any) -> None:
        super().__init__(name, **more)
        self.table, self.make = table, make

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Make a command."""
        return self.make(cmd_name) if cmd_name in self.table else None


def picture_command(name: str) -> click.Command:
    """`simdino show NAME`."""
    return function_command(PICTURES[name], name=name, example=f"show {name} runs/photos photos/ --out pictures")


evaluate = Made(
    "evaluate", PROTOCOLS, lambda name: protocol_command(PROTOCOLS[name]),
    help="Score ENCODER (a run folder, a file of weights, timm:NAME or hf:NAME) by a protocol.",
    epilog="Example: simdino evaluate knn runs/photos --data photos/",
)  # fmt: skip
show = Made(
    "show", PICTURES, picture_command,
    help="Draw what ENCODER (a run folder, a file of weights, timm:NAME or hf:NAME) sees in IMAGES. These are a "
    "picture, a folder, a .zip, a .tar, a list file or a built-in set. Each picture gets a page of its own, and "
    "sheet.png shows all.",
    epilog="Example: simdino show attention runs/photos photos/ --out pictures",
)  # fmt: skip
embed = function_command(embed_to, name="embed", example="embed runs/photos photos/ --out features.parquet")
classify = function_command(
    classify_to, name="classify", example="classify classifier.safetensors photos/ --out predictions.csv"
)
export = function_command(export_to, name="export", example="export runs/photos --to hf --out photos-hf")
