"""Commands made from declarations: the options of a command are the declared keywords of a function."""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

import click

from simdino.cli.options import KeywordOption
from simdino.cli.terminal import CommandTable, answer, json_option, log
from simdino.evaluate import PROTOCOLS, Protocol
from simdino.evaluate.classification.classify import classify_to
from simdino.evaluate.layouts import data_path
from simdino.exports import export_to
from simdino.features.table import embed_to
from simdino.feedback import Log, Progress
from simdino.keywords import checked, keywords, purpose
from simdino.result import Result
from simdino.runs.listing import list_runs
from simdino.show import PICTURES

Run = Callable[..., Result]


def command_of(
    run: Run, functions: Sequence[Callable[..., Any]], *,
    name: str, doc: str, example: str, arguments: Mapping[str, Any], options: Sequence[click.Option] = (),
) -> click.Command:  # fmt: skip
    """Make a command that calls `run` with its arguments, the options that were typed, `log` and `progress`, and prints
    the result.

    functions: those whose declared keywords are its options. doc: its help. arguments: by name, with the default that
    inspect gives (`Parameter.empty`: it must be given). options: further ones, which come first."""

    def call(as_json: bool, **words: Any) -> None:
        from simdino.show.console import watched

        given = [words.pop(argument) for argument in arguments]
        typed = {name: value for name, value in words.items() if value is not None and value != ()}
        result = run(*given, **typed, log=log, progress=watched)
        answer(result.as_dict(), result.lines(), as_json=as_json)

    declared = [KeywordOption(keyword) for function in functions for keyword in keywords(function).values()]
    parameters: list[click.Parameter] = [
        click.Argument([argument], **({} if default is Parameter.empty else {"default": default}))
        for argument, default in arguments.items()
    ]
    parameters += [*options, *declared]
    command = click.Command(name, callback=call, params=parameters, help=doc, epilog=f"Example: simdino {example}")
    return json_option(command)


def protocol_command(protocol: Protocol[..., Any]) -> click.Command:
    """Make `simdino evaluate NAME`."""
    layout = protocol.layout
    folders = [data_path] if layout.folders else []

    def run(encoder: str, data: str | None = None, **words: Any) -> Result:
        asked = {word: words.pop(word) for word in keywords(data_path) if folders and word in words}
        where = data_path(data, **checked(data_path, asked)) if asked else data
        return protocol.run(encoder, where, **words)

    told = layout.text + ("" if layout.required else "  [default: what the run was trained on]")
    return command_of(
        run, [*folders, protocol.function, Protocol.run], name=protocol.name, doc=protocol.text,
        example=f"evaluate {protocol.example}", arguments={"encoder": Parameter.empty},
        options=[click.Option(["--data"], required=layout.required, help=told)],
    )  # fmt: skip


def function_command(function: Run, *, name: str, example: str) -> click.Command:
    """Make the command of a function: its arguments are the function's, those with a default may be left out, and its
    options are the declared keywords."""
    plain = [one for one in signature(function).parameters.values() if one.kind is not one.KEYWORD_ONLY]
    arguments = {one.name: one.default for one in plain}

    def run(*given: str, log: Log, progress: Progress, **words: Any) -> Result:
        result = function(*given, **checked(function, words), log=log, progress=progress)
        for image, why in getattr(result, "broken", {}).items():
            log(f"left out {image}: {why}")
        return result

    return command_of(run, [function], name=name, doc=purpose(function), example=example, arguments=arguments)


def first_sentence(text: str) -> str:
    """Return the first sentence of a help text, as click tells it."""
    return click.Command(None, help=text).get_short_help_str(limit=1000)


def picture_example(name: str) -> str:
    """Return an example of `simdino show NAME`, which writes to a folder unless it has a place of its own."""
    out = keywords(PICTURES[name])["out"].default
    return f"show {name} runs/photos photos/ --out {'pictures' if out is Parameter.empty else out}"


evaluate = CommandTable(
    "evaluate",
    PROTOCOLS,
    sentence=lambda protocol: first_sentence(protocol.text),
    make=lambda name: protocol_command(PROTOCOLS[name]),
    help="Score ENCODER (a run folder, a file of weights, timm:NAME or hf:NAME) by a protocol.",
    epilog="Example: simdino evaluate knn runs/photos --data photos/",
)
show = CommandTable(
    "show",
    PICTURES,
    sentence=lambda picture: first_sentence(purpose(picture)),
    make=lambda name: function_command(PICTURES[name], name=name, example=picture_example(name)),
    help="Draw what ENCODER (a run folder, a file of weights, timm:NAME or hf:NAME) sees in IMAGES. These are a "
    "picture, a folder, a .zip, a .tar, a list file or a built-in set.",
    epilog="Example: simdino show attention runs/photos photos/ --out pictures",
)
embed = function_command(embed_to, name="embed", example="embed runs/photos photos/ --out features.parquet")
classify = function_command(
    classify_to, name="classify", example="classify classifier.safetensors photos/ --out predictions.csv"
)
export = function_command(export_to, name="export", example="export runs/photos --to hf --out photos-hf")
runs = function_command(list_runs, name="runs", example="runs runs/")
