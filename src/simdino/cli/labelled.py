"""linear, logistic, finetune, classify: what an encoder makes of labels, and a classifier at work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from simdino.cli.evaluation import evaluate
from simdino.cli.words import (
    ABOVE_0,
    AT_LEAST_1,
    BATCH,
    SEED,
    STEPS,
    WORKERS,
    Choice,
    Number,
    Numbers,
    answer,
    device_option,
    folders_of,
    json_option,
    log,
    number_of,
    positions_option,
)
from simdino.config import EncoderConfig, OptimConfig
from simdino.settings import SHARE, Range

Command = Callable[..., None]
DATA_HELP = "Labelled images.  [default: what the run was trained on]"
PROTOCOLS = ["dino", "dinov2", "simdinov2"]

data_option = click.option("--data", help=DATA_HELP)
out_option = click.option(
    "--out", type=click.Path(path_type=Path), help="Save the classifier to this .safetensors file."
)
seed_option = click.option("--seed", type=SEED, default=0, show_default=True, help="Of every random draw.")
workers_option = click.option(
    "--workers",
    type=WORKERS,
    default=0,
    show_default=True,
    help="Processes that read images.",
)
steps_option = click.option("--steps", type=STEPS, help="Length in batches, instead of --epochs.")
batch_option = click.option(
    "--batch", type=BATCH,
    help="Images a step.  [default: 128, halved for small data until an epoch has 30 steps, but not below 16]",
)  # fmt: skip


@evaluate.command(epilog="Example: simdino evaluate runs/photos linear --data photos/ --out classifier.safetensors")
@data_option
@click.option(
    "--protocol", type=Choice(PROTOCOLS), default="dinov2", show_default=True,
    help="dino: 1 head on 4 blocks; dinov2: a grid of 52 heads; simdinov2: of 16.",
)  # fmt: skip
@click.option("--avgpool", is_flag=True, help="dino: the last block's class token and mean patch instead.")
@click.option("--epochs", type=ABOVE_0, help="Passes over the training images.  [default: 100 for dino, 10 for grids]")
@steps_option
@batch_option
@click.option("--test", help="Further labelled images, on which the chosen head is reported.")
@seed_option
@out_option
@workers_option
@positions_option
@device_option
@json_option
@click.pass_obj
@folders_of("data")
def linear(encoder: str, as_json: bool, **words: Any) -> None:
    """Linear heads on frozen features of random crops, scored on held-out images."""
    from simdino.evaluate.classification.probes import evaluate_linear
    from simdino.show.console import watched

    result = evaluate_linear(encoder, **words, log=log, progress=watched)
    answer(result.as_dict(), [str(result)], as_json=as_json)


@evaluate.command(epilog="Example: simdino evaluate runs/photos logistic --data photos/ --shots 1,5 --percent 1,10")
@data_option
@click.option(
    "--grid", type=Number(int, Range(at_least=1, at_most=10_000)), default=45, show_default=True,
    help="Strengths of the penalty that are tried, from 1e-6 to 1e5.",
)  # fmt: skip
@click.option(
    "--shots", type=Numbers(int, AT_LEAST_1.range), default="", help="Images of each class, such as 1,2,5,10."
)
@click.option(
    "--percent",
    type=Numbers(float, Range(above=0, at_most=100)),
    default="",
    help="Shares of the training images, such as 1,10.",
)
@click.option(
    "--draws", type=Number(int, Range(at_least=1, at_most=10_000)), default=5, show_default=True,
    help="Draws of each of --shots and --percent.",
)  # fmt: skip
@seed_option
@out_option
@workers_option
@positions_option
@device_option
@json_option
@click.pass_obj
@folders_of("data")
def logistic(encoder: str, percent: list[float], as_json: bool, **words: Any) -> None:
    """Logistic regression on class tokens, with all labels and with few."""
    from simdino.evaluate.classification.probes import evaluate_logistic
    from simdino.show.console import watched

    shares = [share / 100 for share in percent]
    result, few = evaluate_logistic(encoder, **words, shares=shares, log=log, progress=watched)
    table = {"all": result.as_dict(), "few": [one.as_dict() for one in few]}
    answer(table, [str(result), *map(str, few)], as_json=as_json)


@evaluate.command(epilog="Example: simdino evaluate runs/photos finetune --data photos/ --out classifier.safetensors")
@data_option
@click.option("--epochs", type=ABOVE_0, help="Passes over the training images.  [default: 30]")
@steps_option
@batch_option
@click.option(
    "--lr",
    type=number_of(OptimConfig, "lr"),
    default=1e-3,
    show_default=True,
    help="Of the head at its peak, times batch / 256.",
)
@click.option(
    "--layer-decay",
    type=number_of(OptimConfig, "layer_decay"),
    default=0.75,
    show_default=True,
    help="Of the learning rate, by layer.",
)
@click.option(
    "--weight-decay",
    type=number_of(OptimConfig, "weight_decay"),
    default=0.05,
    show_default=True,
    help="Of matrices and tokens.",
)
@click.option(
    "--label-smoothing",
    type=Number(float, SHARE),
    default=0.1,
    show_default=True,
    help="Share of a label given to all classes.",
)
@click.option(
    "--drop-path",
    type=number_of(EncoderConfig, "drop_path"),
    default=0.1,
    show_default=True,
    help="Of the last block, from 0 at the first.",
)
@seed_option
@out_option
@workers_option
@positions_option
@device_option
@json_option
@click.pass_obj
@folders_of("data")
def finetune(encoder: str, as_json: bool, **words: Any) -> None:
    """Train the whole encoder and a head on labels, scored on held-out images."""
    from simdino.evaluate.classification.probes import evaluate_finetune
    from simdino.show.console import watched

    result = evaluate_finetune(encoder, **words, log=log, progress=watched)
    answer(result.as_dict(), [str(result)], as_json=as_json)


@click.command(epilog="Example: simdino classify classifier.safetensors photos/ --out predictions.csv")
@click.argument("classifier")
@click.argument("images")
@click.option("--out", type=click.Path(path_type=Path), default="predictions.csv", show_default=True, help="CSV file.")
@workers_option
@device_option
@json_option
def classify(classifier: str, images: str, out: Path, workers: int, device: str, as_json: bool) -> None:
    """Write the likeliest classes of every image of IMAGES, by a CLASSIFIER that evaluate saved with --out."""
    from simdino.evaluate.classification.classifier import classify_to
    from simdino.show.console import watched

    found = classify_to(classifier, images, out, workers=workers, device=device, log=log, progress=watched)
    answer({"out": str(out), **found.as_dict()}, [f"{found}; written to {out}"], as_json=as_json)
