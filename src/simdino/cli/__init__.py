"""Words -> Config -> one library call. No logic lives here.

Heavy modules are imported inside the commands, so that help and typing errors answer at once. The parser is click:
it knows the nearest option, ends with exit code 2, and its errors can be shown as the one line we want (tyro draws a
box of several). Under torchrun the first process talks for all.
"""

import sys
from importlib import import_module

import click

from simdino.cli.terminal import CommandTable, fail, speak_any_encoding

COMMANDS = {
    "pretrain": ("training", "Train an encoder on the images of DATA."),
    "evaluate": ("made", "Score ENCODER (a run folder, a file of weights, timm:NAME or hf:NAME) by a protocol."),
    "embed": ("made", "Write a table with path, label and feature vector of every image."),
    "classify": ("made", "Write the likeliest classes of every image of IMAGES, by a CLASSIFIER."),
    "show": ("made", "Draw what ENCODER (a run folder, a file of weights, timm:NAME or hf:NAME) sees in IMAGES."),
    "export": ("made", "Write ENCODER (a run folder, a file of weights, hf:NAME) for another library."),
    "plan": ("training", "Say what a run on DATA would cost: hours, memory, operations; nothing is written."),
    "inspect": ("training", "Count, measure and check the images of DATA; show the recipe a run would take."),
    "runs": ("made", "List all runs below FOLDER: data, method, steps, k-NN, verdict, when; which are training now."),
    "report": ("training", "Write one self-contained HTML page about one run, or several side by side."),
}
"""The module of each command, imported when the command is run, and the first sentence of its help."""


def command(name: str) -> click.Command:
    """Import a command."""
    return getattr(import_module(f"simdino.cli.{COMMANDS[name][0]}"), name)


cli = CommandTable(
    "simdino",
    COMMANDS,
    sentence=lambda known: known[1],
    make=command,
    help="Pretrain image encoders on your own images, without labels.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example: simdino pretrain photos/",
)
click.version_option(package_name="simdino")(cli)


def explain(error: Exception) -> tuple[str, int] | None:
    """The line and the exit code of an error that a person can do something about; None for our own mistakes."""
    from torch import OutOfMemoryError

    from simdino.contracts import InputError

    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, OutOfMemoryError):
        return f"out of memory on the device; lower --batch, or give --micro-batch ({error})", 1
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return f"out of memory; give smaller sizes, or less at once ({error})", 1
    return (str(error), 1) if isinstance(error, OSError) else None


def refuse_empty(words: list[str]) -> None:
    """Raise a usage error for a word without anything in it, as an unset variable of a shell leaves: it would be taken
    for an option that was not given, or for the folder here."""
    for before, word in zip(["simdino", *words], words, strict=False):
        if not word or (word.startswith("--") and word.endswith("=")):
            raise click.UsageError(f"what follows {word or before} is empty: give a value, or leave it out")


def main(args: list[str] | None = None) -> None:
    """Run a command; bad input ends with one line and exit code 2, a failing disk or memory with exit code 1."""
    speak_any_encoding()
    try:
        refuse_empty(sys.argv[1:] if args is None else args)
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
