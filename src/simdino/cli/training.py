"""pretrain, inspect, report: what a run needs, makes and shows."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import Any

import click

from simdino.cli.words import PngFile, answer, fail, json_option, log, option_of
from simdino.options import Options

Command = Callable[..., None]


def every_option(command: Command) -> Command:
    """Give a command an option for every field of Options."""
    return reduce(lambda given, field: option_of(field.name)(given), reversed(fields(Options)), command)


@click.command(epilog="Example: simdino pretrain photos/ --minutes 30 --out runs/photos")
@click.argument("data", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/NAME-OF-DATA]")
@click.option(
    "--resume",
    "run",
    type=click.Path(path_type=Path),
    help="Continue this run; DATA: where its images are now.",
)
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

    if data is None and run is None:
        raise click.UsageError("give DATA for a new run, or --resume RUN to continue one")
    bar = ProgressBar()
    try:
        if run is not None:
            own = "--resume goes on with the run's own configuration"
            refuse_given(ctx, allowed={"data", "run", "as_json"}, why=own)
            from simdino import resume

            done = resume(run, data, progress=bar.progress, log=log)
        else:
            from simdino import pretraining
            from simdino.plan import plan, run_folder

            assert data is not None
            folder = out or run_folder(data)
            planned = plan(data, Options(**words), folder, log=log)
            done = pretraining.pretrain(planned, folder, progress=bar.progress, log=log)
    except NotFinite as error:
        fail(str(error), code=1)
    finally:
        bar.close()
    answer(done.summary(), done.lines(), as_json=as_json)
    if done.interrupted is not None:
        name = signal.Signals(done.interrupted).name
        log(f"stopped by {name}, saved; go on with: simdino pretrain --resume {done.folder}")
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


@click.command(epilog="Example: simdino inspect photos/")
@click.argument("data")
@click.option("--sheet", type=PngFile(path_type=Path), help="Write a sheet of augmented views to this PNG file.")
@option_of("train")
@option_of("val")
@option_of("class_depth")
@json_option
def inspect(data: str, sheet: Path | None, as_json: bool, **words: Any) -> None:
    """Count, measure and check the images of DATA; show the recipe a run would take."""
    from simdino.plan import inspect_data

    result, lines = inspect_data(data, Options(**words), sheet=sheet)
    answer(result, lines, as_json=as_json)


@click.command(epilog="Example: simdino report runs/a runs/b --out comparison.html")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="HTML file.  [default: RUN/report.html]")
@json_option
def report(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write one self-contained HTML page about one run, or several side by side."""
    from simdino.show.report import write_report

    page = write_report(runs, out)
    answer({"report": str(page)}, [f"wrote {page}"], as_json=as_json)
