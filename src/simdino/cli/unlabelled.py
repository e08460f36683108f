"""evaluate health: what features tell of an encoder without any label."""

from __future__ import annotations

from pathlib import Path

import click

from simdino.cli.words import AT_LEAST_2, answer, device_option, json_option, log, number_of, positions_option
from simdino.config import Named
from simdino.methods.simdino import RateConfig


@click.command(epilog="Example: simdino evaluate runs/photos health --data photos/")
@click.option("--data", help="Images; no labels are read.  [default: what the run was trained on]")
@click.option("--images", type=AT_LEAST_2, default=2000, show_default=True, help="Images looked at, at most.")
@click.option("--view-images", type=AT_LEAST_2, default=100, show_default=True, help="Of these, seen in random views.")
@click.option("--views", type=AT_LEAST_2, default=10, show_default=True, help="Random views of each of those.")
@click.option(
    "--eps",
    type=number_of(RateConfig, "eps"),
    default=0.05**0.5,
    show_default="√0.05",
    help="Distortion of the coding rate.",
)
@click.option("--checkpoints", is_flag=True, help="Every checkpoint that the run kept, beside its k-NN while training.")
@positions_option
@device_option
@json_option
@click.pass_obj
def health(
    encoder: Named, data: str | None, images: int, view_images: int, views: int, eps: float, checkpoints: bool,
    device: str, as_json: bool,
) -> None:  # fmt: skip
    """Ranks, spread and collapse of features without labels: RankMe, LiDAR, alpha-ReQ, coding rate and others."""
    from simdino.evaluate.diagnostics.checkpoints import measure_checkpoints
    from simdino.evaluate.diagnostics.encoder import evaluate_health
    from simdino.show.console import watched

    counts = {"images": images, "view_images": view_images, "views": views}
    if checkpoints:
        if encoder.positions is not None:
            raise click.UsageError("--positions has no effect with --checkpoints: a run has its own rule")
        result = measure_checkpoints(Path(encoder), data, **counts, eps=eps, device=device, log=log, progress=watched)
    else:
        result = evaluate_health(encoder, data, **counts, eps=eps, device=device, log=log, progress=watched)
    answer(result.as_dict(), [str(result)], as_json=as_json)
