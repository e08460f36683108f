"""Words -> Config -> one library call. No logic lives here.

Heavy modules are imported inside the commands, so that help and typing errors answer at once. The parser is click:
it knows the nearest option, ends with exit code 2, and its errors can be shown as the one line we want (tyro draws a
box of several). Under torchrun the first process talks for all.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import click

from simdino.options import Options

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

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does, with a suggestion."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(f"no such command {args[0]!r}{nearest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


def nearest(word: str, known: Iterable[str]) -> str:
    """A suggestion, or nothing."""
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def every_option(command: Command) -> Command:
    """Give a command an option for every field of Options."""
    hints = get_type_hints(Options)
    for field in reversed(fields(Options)):
        word, kind = "--" + field.name.replace("_", "-"), hints[field.name]
        bare = (
            next((part for part in get_args(kind) if part is not type(None)), kind)
            if get_origin(kind) is not Literal
            else kind
        )
        if bare is bool:
            word += f"/--no-{field.name}"
        chosen = Choice(get_args(bare)) if get_origin(bare) is Literal else bare
        shown = field.default is not None
        add = click.option(
            word, field.name, type=chosen, default=field.default, show_default=shown, help=field.metadata["help"]
        )
        command = add(command)
    return command


class PngFile(click.Path):
    """A file whose name says what is written to it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click does, but the name ends in .png."""
        path = super().convert(value, param, ctx)
        if Path(str(path)).suffix.lower() != ".png":
            self.fail(f"{value!r} does not end in .png", param, ctx)
        return path


ABOVE_0 = click.FloatRange(min=0, min_open=True)
device_option = click.option(
    "--device", default="auto", show_default=True, help="Where the encoder runs: auto, cpu, cuda, cuda:1, mps."
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; the rest on stderr.")


def first() -> bool:
    """Whether this process is alone or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """A line for a person."""
    if first():
        click.echo(line, err=True)


def answer(result: dict[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """A command's result: JSON for programs, lines for people."""
    if first():
        click.echo(json.dumps(result) if as_json else "\n".join(lines))


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example: simdino pretrain photos/",
)
@click.version_option(package_name="simdino")
def cli() -> None:
    """Pretrain image encoders on your own images, without labels."""


@cli.command(epilog="Example: simdino pretrain photos/ --minutes 30 --out runs/photos")
@click.argument("data", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/NAME-OF-DATA]")
@click.option("--resume", "run", type=click.Path(path_type=Path), help="Continue this run; takes no other option.")
@every_option
@json_option
@click.pass_context
def pretrain(
    ctx: click.Context, data: str | None, out: Path | None, run: Path | None, as_json: bool, **words: Any
) -> None:
    """Train an encoder on the images of DATA.

    DATA: a folder, a .zip, a .tar, a list file, or digits, fashion-mnist, cifar10, imagenette. With several GPUs or
    processes: torchrun --nproc-per-node=8 -m simdino pretrain DATA
    """
    from simdino.show.console import ProgressBar
    from simdino.train.step import NotFinite

    if (data is None) == (run is None):
        raise click.UsageError("give DATA for a new run, or --resume RUN to continue one")
    bar = ProgressBar()
    try:
        if run is not None:
            refuse_given(ctx, allowed={"run", "as_json"}, why="--resume goes on with the run's own configuration")
            from simdino import resume

            done = resume(run, watch=bar.watch, say=say)
        else:
            from simdino.pretrain import plan, run_folder
            from simdino.pretrain import pretrain as train

            assert data is not None
            folder = out or run_folder(data)
            done = train(plan(data, Options(**words), folder, say=say), folder, watch=bar.watch, say=say)
    except NotFinite as error:
        fail(str(error), code=1)
    finally:
        bar.close()
    answer(done.summary(), done.lines(), as_json=as_json)
    if done.interrupted is not None:
        name = signal.Signals(done.interrupted).name
        say(f"stopped by {name}, saved; go on with: simdino pretrain --resume {done.folder}")
        sys.exit(128 + done.interrupted)


def refuse_given(ctx: click.Context, *, allowed: set[str], why: str) -> None:
    """Raise a usage error for words that were typed but would have no effect."""
    given = [
        name
        for name in ctx.params
        if name not in allowed and ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"--{given[0].replace('_', '-')} has no effect here: {why}")


@cli.group(cls=Commands, epilog="Example: simdino evaluate runs/photos knn --data photos/")
@click.argument("encoder")
@click.pass_context
def evaluate(ctx: click.Context, encoder: str) -> None:
    """Score ENCODER (a run folder, a file of weights, timm:NAME or hf:NAME) by a protocol."""
    ctx.obj = encoder


@evaluate.command(epilog="Example: simdino evaluate runs/photos knn --data photos/")
@click.option("--data", help="Labelled images.  [default: what the run was trained on]")
@click.option("--k", type=click.IntRange(min=1), default=20, show_default=True, help="Neighbours that vote.")
@click.option(
    "--temperature", type=ABOVE_0, default=0.07, show_default=True, help="Votes are exp(cosine / temperature)."
)
@click.option(
    "--baselines/--no-baselines",
    default=True,
    show_default=True,
    help="Random initialisation and raw pixels beside it.",
)
@device_option
@json_option
@click.pass_obj
def knn(
    encoder: str, data: str | None, k: int, temperature: float, baselines: bool, device: str, as_json: bool
) -> None:
    """Weighted k-nearest neighbours: held-out images against all training images. Reports of a run show its scores."""
    from simdino.evaluate.report import evaluate_knn

    table = evaluate_knn(encoder, data, k=k, temperature=temperature, baselines=baselines, device=device, say=say)
    answer(
        {name: result.as_dict() for name, result in table.items()},
        [f"{n:<24}{r}" for n, r in table.items()],
        as_json=as_json,
    )


@cli.command(epilog="Example: simdino embed runs/photos photos/ --out features.parquet")
@click.argument("encoder")
@click.argument("images")
@click.option(
    "--out", type=click.Path(path_type=Path), default="features.parquet", show_default=True, help="Parquet file."
)
@click.option("--split", type=Choice(["all", "train", "val"]), default="all", show_default=True, help="Which images.")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Processes that read images.")
@device_option
@json_option
def embed(encoder: str, images: str, out: Path, split: str, workers: int, device: str, as_json: bool) -> None:
    """Write a table with path, label and feature vector of every image."""
    from simdino import embed as extract
    from simdino import load_encoder
    from simdino.evaluate.report import write_parquet
    from simdino.precision import present_device

    features = extract(load_encoder(encoder).to(present_device(device)), images, split=split, workers=workers)
    write_parquet(features, out)
    for name, reason in features.broken.items():
        say(f"left out {name}: {reason}")
    result = {"out": str(out), "images": len(features), "width": features.vectors.shape[1], "broken": features.broken}
    answer(result, [f"{len(features)} vectors of {features.vectors.shape[1]} numbers in {out}"], as_json=as_json)


@cli.command(epilog="Example: simdino inspect photos/")
@click.argument("data")
@click.option("--sheet", type=PngFile(path_type=Path), help="Write a sheet of augmented views to this PNG file.")
@json_option
def inspect(data: str, sheet: Path | None, as_json: bool) -> None:
    """Count, measure and check the images of DATA; show the recipe a run would take."""
    from simdino.pretrain import inspect_data

    result, lines = inspect_data(data, sheet=sheet)
    answer(result, lines, as_json=as_json)


@cli.command(epilog="Example: simdino report runs/a runs/b --out comparison.html")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="HTML file.  [default: RUN/report.html]")
@json_option
def report(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write one self-contained HTML page about one run, or several side by side."""
    from simdino.show.report import write_report

    page = write_report(runs, out)
    answer({"report": str(page)}, [f"wrote {page}"], as_json=as_json)


def fail(message: str, *, code: int) -> NoReturn:
    """End with one line."""
    click.echo(f"simdino: {' '.join(message.split())}", err=True)
    sys.exit(code)


def explain(error: Exception) -> tuple[str, int] | None:
    """The line and the exit code of an error that a person can do something about; None for our own mistakes."""
    from torch import OutOfMemoryError

    from simdino.contracts import InputError

    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, OutOfMemoryError):
        return f"out of memory on the device; lower --batch, or give --micro-batch ({error})", 1
    return (str(error), 1) if isinstance(error, OSError) else None


def main(args: list[str] | None = None) -> None:
    """Run a command; bad input ends with one line and exit code 2, a failing disk or memory with exit code 1."""
    try:
        cli.main(args=args, prog_name="simdino", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        fail(error.format_message(), code=2)
    except (click.Abort, KeyboardInterrupt):
        fail("interrupted", code=130)
    except Exception as error:
        if (known := explain(error)) is None:
            raise
        fail(known[0], code=known[1])


if __name__ == "__main__":
    main()
