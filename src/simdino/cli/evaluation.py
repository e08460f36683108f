"""evaluate and embed: what an encoder is worth, and its features."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from simdino.cli.words import (
    ABOVE_0,
    AT_LEAST_1,
    WORKERS,
    Choice,
    Commands,
    answer,
    device_option,
    different,
    folders_of,
    json_option,
    log,
    option_of,
    positions_option,
)
from simdino.config import Named, PositionRule

reduced_option = click.option(
    "--reduced", is_flag=True, help="Decode large JPEGs at a half or a quarter: faster, not quite the same numbers."
)


@click.group(cls=Commands, epilog="Example: simdino evaluate runs/photos knn --data photos/")
@click.argument("encoder")
@click.pass_context
def evaluate(ctx: click.Context, encoder: str) -> None:
    """Score ENCODER (a run folder, a file of weights, timm:NAME or hf:NAME) by a protocol."""
    ctx.obj = Named(encoder)


@evaluate.command(epilog="Example: simdino evaluate runs/photos knn --data photos/")
@click.option("--data", help="Labelled images.  [default: what the run was trained on]")
@click.option(
    "--k",
    "ks",
    type=AT_LEAST_1,
    multiple=True,
    callback=different,
    default=(20,),
    show_default=True,
    help="Neighbours that vote; several from one pass: --k 10 --k 20.",
)
@click.option(
    "--temperature", type=ABOVE_0, default=0.07, show_default=True, help="Votes are exp(cosine / temperature)."
)
@click.option("--leave-one-out", is_flag=True, help="All images of --data, each classified by the others.")
@click.option(
    "--baselines/--no-baselines",
    default=True,
    show_default=True,
    help="Random initialisation and raw pixels beside it.",
)
@click.option(
    "--precision",
    type=Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Products that look for candidates; their cosines are float32.",
)
@reduced_option
@positions_option
@device_option
@json_option
@click.pass_obj
@folders_of("data")
def knn(
    encoder: str,
    data: str | None,
    ks: tuple[int, ...],
    temperature: float,
    leave_one_out: bool,
    baselines: bool,
    precision: Literal["float32", "bfloat16"],
    reduced: bool,
    device: str,
    as_json: bool,
) -> None:
    """Weighted k-nearest neighbours: held-out images against all training images. Reports of a run show its scores.

    With --json an object for each row of the table; with several --k a list of them.
    """
    from simdino.evaluate.classification.knn_scores import evaluate_knn
    from simdino.show.console import watched

    table = evaluate_knn(
        encoder,
        data,
        ks=ks,
        temperature=temperature,
        leave_one_out=leave_one_out,
        baselines=baselines,
        precision=precision,
        reduced=reduced,
        device=device,
        log=log,
        progress=watched,
    )
    plain = {name: [result.as_dict() for result in results] for name, results in table.items()}
    answer(
        {name: results[0] if len(ks) == 1 else results for name, results in plain.items()},
        [f"{name:<24}{result}" for name, results in table.items() for result in results],
        as_json=as_json,
    )


@click.command(epilog="Example: simdino embed runs/photos photos/ --out features.parquet")
@click.argument("encoder")
@click.argument("images")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="features.parquet",
    show_default=True,
    help="Table: .parquet or .csv.",
)
@click.option("--split", type=Choice(["all", "train", "val"]), default="all", show_default=True, help="Which images.")
@click.option(
    "--workers",
    type=WORKERS,
    default=0,
    show_default=True,
    help="Processes that read images.",
)
@reduced_option
@option_of("positions")
@device_option
@json_option
@folders_of("images")
def embed(
    encoder: str, images: str, out: Path, split: str, workers: int, reduced: bool, positions: PositionRule | None,
    device: str, as_json: bool,
) -> None:  # fmt: skip
    """Write a table with path, label and feature vector of every image."""
    from simdino import embed as extract
    from simdino import load_encoder
    from simdino.evaluate.classification.knn_scores import check_table, write_features
    from simdino.precision import present_device

    check_table(out)
    model = load_encoder(encoder, positions=positions).to(present_device(device))
    features = extract(model, images, split=split, workers=workers, reduced=reduced)
    write_features(features, out)
    for name, reason in features.broken.items():
        log(f"left out {name}: {reason}")
    result = {"out": str(out), "images": len(features), "width": features.vectors.shape[1], "broken": features.broken}
    answer(result, [f"{len(features)} vectors of {features.vectors.shape[1]} numbers in {out}"], as_json=as_json)
