"""evaluate discover: objects found without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from simdino.cli.words import (
    AT_LEAST_1,
    COSINE,
    PIXELS,
    Choice,
    answer,
    device_option,
    exif_option,
    json_option,
    log,
    positions_option,
)


@click.command(epilog="Example: simdino evaluate runs/photos discover --data photos/ --out objects.json")
@click.option("--data", required=True, help="Images; with images/ and masks/, or PASCAL VOC's folders, scores too.")
@click.option("--annotations", help="JSON file of COCO's form about the images in --data: average precision.")
@click.option(
    "--method", type=Choice(["maskcut", "tokencut"]), default="maskcut", show_default=True,
    help="Several masks an image, or one box.",
)  # fmt: skip
@click.option("--masks", "count", type=AT_LEAST_1, help="Objects in an image, at most.  [default: 3]")
@click.option("--tau", type=COSINE, help="Cosine above which patches belong together.  [default: 0.15; tokencut 0.2]")
@click.option("--size", type=PIXELS, help="Side in pixels.  [default: 480, or 60 patches where that is less]")
@click.option("--crf", is_flag=True, help="Fit masks to the edges of the image (pip install 'simdino[crf]').")
@click.option("--limit", type=AT_LEAST_1, help="Look at no more than the first so many images.")
@click.option("--out", type=click.Path(path_type=Path), help="Write what is found as JSON of COCO's form.")
@positions_option
@exif_option
@device_option
@json_option
@click.pass_obj
def discover(encoder: str, as_json: bool, **words: Any) -> None:
    """Objects without labels, by MaskCut or TokenCut: CorLoc, IoU, COCO's average precision."""
    from simdino.evaluate.discovery.discover import evaluate_discover
    from simdino.show.console import watched

    result = evaluate_discover(encoder, **words, log=log, progress=watched)
    answer(result.as_dict(), [str(result)], as_json=as_json)
