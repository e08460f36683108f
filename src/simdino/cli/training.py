"""pretrain, plan, inspect, report: what a run needs, makes and shows."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from simdino.cli.options import KeywordOption, SettingOption
from simdino.cli.terminal import answer, fail, first, json_option, log
from simdino.forecasting import forecast
from simdino.keywords import STEPS, Keyword, Option, keywords
from simdino.options import Options, every_setting, setting_of, typed

PATH = click.Path(path_type=Path)
GROUPS = ("data", "method", "length", "optimisation", "views", "machine")
"""The headings of the help, in this order."""


ENDING = tuple(
    Keyword(name=name, kind=int | None, default=None, option=Option(text, STEPS, default=default))
    for name, text, default in (
        ("cool_down", "With --resume of a --schedule wsd: so many steps that end it, in a new folder.", None),
        ("at", "With --cool-down: after which step.", "the newest of the trunk"),
    )
)


SPEED = tuple(one.path[6:] for one in every_setting().values() if one.word and one.path.startswith("speed."))
"""The settings that a run may go on with other values of, by their names in SpeedConfig."""


class Grouped(click.Command):
    """A command whose help has its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A section for each heading, and one for what is no setting."""
        rows: dict[str, list[tuple[str, str]]] = {name: [] for name in (*GROUPS, "options")}
        for one in self.get_params(ctx):
            if isinstance(one, click.Option) and (row := one.get_help_record(ctx)) is not None:
                rows[one.setting.heading if isinstance(one, SettingOption) else "options"].append(row)
        for name, found in rows.items():
            with formatter.section(name.capitalize()):
                formatter.write_dl(found)


ANY_SETTING = click.option(
    "--set", "settings", multiple=True, metavar="PATH=VALUE",
    help="Any setting, such as views.jitter=0.2 or optim.weight_decay=0.1; docs/configuration.md lists them.",
)  # fmt: skip
SHORT_WORDS = [SettingOption(one) for one in every_setting().values() if one.word]


@click.command(cls=Grouped, epilog="Example: simdino pretrain photos/ --minutes 30 --out runs/photos")
@click.argument("data", required=False)
@click.option("--out", type=PATH, help="Run folder.  [default: runs/NAME-OF-DATA]")
@click.option("--resume", "run", type=PATH, help="Continue this run; DATA: where its images are now.")
@ANY_SETTING
@json_option
@click.pass_context
def pretrain(
    ctx: click.Context, data: str | None, out: Path | None, run: Path | None, settings: tuple[str, ...],
    as_json: bool, **words: Any,
) -> None:  # fmt: skip
    """Train an encoder on the images of DATA.

    DATA: a folder, a .zip, a .tar, a list file, or digits, scattered-digits, fashion-mnist, cifar10, imagenette. What
    is not given follows the images, the length of the run and the machine. With several GPUs or processes: torchrun
    --nproc-per-node=8 -m simdino pretrain DATA
    """
    from simdino.show.console import ProgressBar
    from simdino.train.step import NotFinite

    if data is None and run is None:
        raise click.UsageError("give DATA for a new run, or --resume RUN to continue one")
    going_on: dict[str, Any] = {one.name: words.pop(one.name) for one in ENDING}
    if wrong := [problem for one in ENDING if (problem := one.problem(going_on[one.name]))]:
        raise click.UsageError("; ".join(wrong))
    if run is None:
        refuse_given(ctx, allowed={one.name for one in ctx.command.params} - set(going_on), why="it needs --resume RUN")
    bar = ProgressBar()
    try:
        if run is not None:
            own = "--resume goes on with the run's own configuration, but for options of the machine"
            going_on |= {"out": out, **{name: words[name] for name in ("steps", "guard", "stop_below")}}
            speed = {name: words[name] for name in SPEED if words[name] is not None}
            refuse_given(ctx, allowed={"data", "run", "as_json", *going_on, *speed}, why=own)
            from simdino import resume

            done = resume(run, data, **going_on, speed=speed, progress=bar.progress, log=log)
        else:
            from simdino import pretraining
            from simdino.plan import plan as decide
            from simdino.plan import run_folder
            from simdino.runs.folder import goes_on

            assert data is not None
            folder = out or run_folder(data)
            options = Options(typed(settings), **words)
            planned = None if goes_on(folder) else decide(data, options, folder, log=log)
            if planned is None:
                done = pretraining.resume(folder, progress=bar.progress, log=log)
            else:
                done = pretraining.pretrain(planned, folder, progress=bar.progress, log=log)
    except NotFinite as error:
        fail(str(error), code=1)
    finally:
        bar.close()
    answer(done.summary(), done.lines(), as_json=as_json)
    if done.interrupted is not None:
        name = signal.Signals(done.interrupted).name
        log(f"stopped by {name}, saved; go on with: simdino pretrain --resume {done.folder}")
        if name == "SIGUSR1" and first() and (job := os.environ.get("SLURM_JOB_ID")):
            log(requeue(job))
        sys.exit(128 + done.interrupted)
    if done.ended_early:
        sys.exit(1)


pretrain.params += [KeywordOption(one) for one in ENDING]
pretrain.params += SHORT_WORDS


def requeue(job: str) -> str:
    """Tell Slurm to start a job again, and return a line on it. Its command then goes on, see `runs.folder.goes_on`."""
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"warning: job {job} is not requeued: scontrol cannot be run ({error.strerror})"
    failed = done.returncode and (done.stderr.strip() or f"exit code {done.returncode}")
    return f"warning: job {job} is not requeued: {failed}" if failed else f"job {job} is requeued, and will go on"


def refuse_given(ctx: click.Context, *, allowed: set[str], why: str) -> None:
    """Raise a usage error for words that were typed but would have no effect."""
    for one in ctx.command.params:
        typed_it = ctx.get_parameter_source(str(one.name)) == click.core.ParameterSource.COMMANDLINE
        if typed_it and one.name not in allowed:
            raise click.UsageError(f"{one.opts[0]} has no effect here: {why}")


@click.command(cls=Grouped, epilog="Example: simdino plan photos/ --epochs 100 --encoder vit_small")
@click.argument("data")
@ANY_SETTING
@json_option
def plan(data: str, settings: tuple[str, ...], as_json: bool, **words: Any) -> None:
    """Say what a run on DATA would cost: hours, memory, operations; nothing is written.

    A few steps are taken on this machine. Told are also the MFU, which micro-batch and workers to take, and the hours
    on 1, 8 and 64 GPUs. The options are those of simdino pretrain, and the run is the one that it would make.
    """
    asked = {name: words.pop(name) for name in keywords(forecast)}
    given = {name: value for name, value in asked.items() if value is not None}
    told = forecast(data, **given, settings=typed(settings), log=log, **words)
    answer(told.as_dict(), told.lines(), as_json=as_json)


plan.params += [KeywordOption(one) for one in keywords(forecast).values()]
plan.params += SHORT_WORDS


@click.command(
    epilog="Example: simdino inspect photos/",
    params=[
        click.Argument(["data"]),
        click.Option(["--sheet"], type=PATH, help="Write a sheet of augmented views to this PNG file."),
        *(SettingOption(setting_of(word)) for word in ("train", "val", "class_depth", "channels", "values", "kind")),
    ],
)
@json_option
def inspect(data: str, sheet: Path | None, as_json: bool, **words: Any) -> None:
    """Count, measure and check the images of DATA; show the recipe a run would take."""
    from simdino.plan import inspect_data

    if sheet is not None and sheet.suffix.lower() != ".png":
        raise click.UsageError(f"--sheet {sheet} does not end in .png")
    result, lines = inspect_data(data, Options(**words), sheet=sheet)
    answer(result, lines, as_json=as_json)


@click.command(epilog="Example: simdino report runs/a runs/b --out comparison.html")
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, help="HTML file.  [default: RUN/report.html]")
@json_option
def report(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write one self-contained HTML page about one run, or several side by side."""
    from simdino.show.report import write_report

    page = write_report(runs, out)
    answer({"report": str(page)}, [f"wrote {page}"], as_json=as_json)
