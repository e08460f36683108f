"""evaluate and embed: what an encoder is worth, and its features."""

from __future__ import annotations

from pathlib import Path

import click

from simdino.cli.words import ABOVE_0, Choice, Commands, answer, device_option, json_option, say


@click.group(cls=Commands, epilog="Example: simdino evaluate runs/photos knn --data photos/")
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
    from simdino.show.console import watched

    table = evaluate_knn(
        encoder, data, k=k, temperature=temperature, baselines=baselines, device=device, say=say, watch=watched
    )
    answer(
        {name: result.as_dict() for name, result in table.items()},
        [f"{n:<24}{r}" for n, r in table.items()],
        as_json=as_json,
    )


@click.command(epilog="Example: simdino embed runs/photos photos/ --out features.parquet")
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
