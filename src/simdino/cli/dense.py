"""evaluate segment: what patch tokens tell of every pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simdino.cli.labelled import seed_option, workers_option
from simdino.cli.words import (
    AT_LEAST_1,
    BATCH,
    PIXELS,
    STEPS,
    answer,
    device_option,
    exif_option,
    json_option,
    log,
    positions_option,
)


@click.command(epilog="Example: simdino evaluate runs/photos segment --data ADEChallengeData2016/ --steps 40000")
@click.option("--data", required=True, help="Folder with images/ and masks/ (docs/evaluation/segmentation.md).")
@click.option(
    "--layers", type=AT_LEAST_1, default=1, show_default=True, help="Last blocks whose patch tokens are read."
)
@click.option("--steps", type=STEPS, help="Length in batches.  [default: 10 passes, but 300 to 2,000 steps]")
@click.option("--batch", type=BATCH, default=16, show_default=True, help="Crops a step.")
@click.option(
    "--size", type=PIXELS,
    help="Side of crops and windows in pixels, short side of test images.  [default: 512 for an encoder of images of "
    "224, in proportion for others; not more than 512, nor than the images have]",
)  # fmt: skip
@click.option("--masks", type=click.Path(path_type=Path), help="Folder for the predicted masks, as indexed PNGs.")
@seed_option
@workers_option
@positions_option
@exif_option
@device_option
@json_option
@click.pass_obj
def segment(encoder: str, as_json: bool, **words: Any) -> None:
    """A linear head on frozen patch tokens that tells the class of each pixel: mIoU, as DINOv2 measures ADE20K."""
    from simdino.evaluate.segmentation.linear import evaluate_segment
    from simdino.show.console import watched

    result = evaluate_segment(encoder, **words, log=log, progress=watched)
    answer(result.as_dict(), [*result.lines(), str(result)], as_json=as_json)
