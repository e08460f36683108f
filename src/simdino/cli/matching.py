"""evaluate video, retrieve: protocols that match places or pictures by their features, without training anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simdino.cli.words import (
    AT_LEAST_1,
    PIXELS,
    Choice,
    answer,
    device_option,
    different,
    exif_option,
    folders_of,
    json_option,
    log,
    positions_option,
)


@click.command(epilog="Example: simdino evaluate runs/photos video --data DAVIS/ --out masks/")
@click.option("--data", required=True, help="Folder of DAVIS: JPEGImages/, Annotations/, ImageSets/.")
@click.option("--out", type=click.Path(path_type=Path), help="Write masks as OUT/SEQUENCE/00000.png.")
@click.option("--year", type=Choice(["2016", "2017"]), help="Which list.  [default: 2017 where it is there]")
@click.option("--size", type=PIXELS, default=480, show_default=True, help="Short side of a frame in pixels.")
@click.option(
    "--baselines/--no-baselines",
    default=False,
    show_default=True,
    help="Random initialisation and raw colours beside it.",
)
@positions_option
@exif_option
@device_option
@json_option
@click.pass_obj
def video(
    encoder: str,
    data: str,
    out: Path | None,
    year: Any,
    size: int,
    baselines: bool,
    device: str,
    as_json: bool,
    exif: Any,
) -> None:
    """DAVIS label propagation: the first frame's objects followed by patch features; J, F and J&F."""
    from simdino.evaluate.video.davis import evaluate_video
    from simdino.evaluate.video.propagate import Propagation
    from simdino.show.console import watched

    table = evaluate_video(
        encoder, data, out=out, year=year, recipe=Propagation(size=size), exif=exif, baselines=baselines,
        device=device, log=log, progress=watched,
    )  # fmt: skip
    answer(
        {name: result.as_dict() for name, result in table.items()},
        [*table["encoder"].lines(), *(f"{name:<24}{result}" for name, result in table.items())],
        as_json=as_json,
    )


@click.command(epilog="Example: simdino evaluate runs/photos retrieve --data photos/ --k 5")
@click.option("--data", help="Pictures.  [default: what the run was trained on]")
@click.option(
    "--layout",
    type=Choice(["auto", "classes", "landmarks", "copies"]),
    default="auto",
    show_default=True,
    help="Class folders, revisited Oxford or Paris (gnd_*.pkl), or originals/ and copies/; auto looks.",
)
@click.option(
    "--k",
    "ks",
    type=AT_LEAST_1,
    multiple=True,
    callback=different,
    help="Classes: precision at k, several as --k 1 --k 5.  [default: 1, 5, 10]",
)
@click.option("--leave-one-out", is_flag=True, help="Classes: each image against all the others, no held-out queries.")
@click.option("--size", type=PIXELS, help="Pixels.  [default: landmarks 224 (long side), copies 320 (square)]")
@click.option("--multiscale", is_flag=True, help="Landmarks: mean over the scales 1, 1/√2, 1/2.")
@click.option("--baselines/--no-baselines", default=False, show_default=True, help="Random initialisation beside it.")
@positions_option
@device_option
@json_option
@click.pass_obj
@folders_of("data")
def retrieve(encoder: str, device: str, as_json: bool, **words: Any) -> None:
    """Retrieval: mean average precision of what lies nearest to each query."""
    from simdino.evaluate.retrieval.scores import evaluate_retrieve
    from simdino.show.console import watched

    table = evaluate_retrieve(encoder, **words, device=device, log=log, progress=watched)
    answer(
        {name: result.as_dict() for name, result in table.items()},
        [f"{name:<24}{result}" for name, result in table.items()],
        as_json=as_json,
    )
