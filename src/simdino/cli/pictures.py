"""show: pictures of what an encoder sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import click

from simdino.cli.options import AT_LEAST_1, COSINE, PIXELS, Number, device_option, positions_option
from simdino.cli.words import Commands, answer, json_option
from simdino.settings import Range


@dataclass(frozen=True)
class Asked:
    """What every picture is of."""

    encoder: str
    images: str


@click.group(cls=Commands, epilog="Example: simdino show runs/photos photos/ attention --out pictures")
@click.argument("encoder")
@click.argument("images")
@click.pass_context
def show(ctx: click.Context, encoder: str, images: str) -> None:
    """Draw what ENCODER (a run folder, a file of weights, timm:NAME or hf:NAME) sees in IMAGES.

    IMAGES: a picture, a folder, a .zip, a .tar, a list file or a built-in set. Each picture gets a page of its own,
    and sheet.png shows all.
    """
    ctx.obj = Asked(encoder, images)


def shared(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every picture."""
    options = (
        click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write the pictures to."),
        click.option("--count", type=AT_LEAST_1, default=12, show_default=True, help="Pictures drawn, at most."),
        positions_option,
        device_option,
        json_option,
        click.pass_obj,
    )
    return reduce(lambda found, option: option(found), reversed(options), command)


size_option = click.option("--size", type=PIXELS, help="Short side in pixels.  [default: twice the encoder's own]")


@show.command(epilog="Example: simdino show runs/photos photos/ attention --mass 0.6 --out pictures")
@click.option(
    "--mass", type=Number(float, Range(above=0, at_most=1)), default=0.6, show_default=True,
    help="Share of the attention that a mask keeps.",
)  # fmt: skip
@size_option
@shared
def attention(asked: Asked, as_json: bool, **words: Any) -> None:
    """What the class token attends to in the last block, by head and in the mean."""
    from simdino.show.console import watched
    from simdino.show.inside import show_attention

    result = show_attention(asked.encoder, asked.images, **words, progress=watched)
    answer(result.as_dict(), [str(result)], as_json=as_json)


@show.command(epilog="Example: simdino show runs/photos photos/ pca --out pictures")
@click.option(
    "--foreground/--no-foreground", default=True, show_default=True, help="Colour what is in front; or everything."
)
@size_option
@shared
def pca(asked: Asked, as_json: bool, **words: Any) -> None:
    """Patch features as colours: like parts of all pictures have like colours."""
    from simdino.show.inside import show_pca

    result = show_pca(asked.encoder, asked.images, **words)
    answer(result.as_dict(), [str(result)], as_json=as_json)


@show.command(epilog="Example: simdino show runs/photos photos/ masks --masks 3 --out pictures")
@click.option("--masks", type=AT_LEAST_1, default=3, show_default=True, help="Objects in a picture, at most.")
@click.option("--tau", type=COSINE, default=0.15, show_default=True, help="Cosine above which patches belong together.")
@click.option("--size", type=PIXELS, help="Side in pixels.  [default: 480, or 60 patches where that is less]")
@shared
def masks(asked: Asked, as_json: bool, **words: Any) -> None:
    """Objects found without labels, by MaskCut."""
    from simdino.show.console import watched
    from simdino.show.inside import show_masks

    result = show_masks(asked.encoder, asked.images, **words, progress=watched)
    answer(result.as_dict(), [str(result)], as_json=as_json)


@show.command(epilog="Example: simdino show runs/photos new-photos/ neighbours --bank photos/ --out pictures")
@click.option("--bank", help="Images to look in.  [default: the training images of the run]")
@click.option("--k", type=AT_LEAST_1, default=5, show_default=True, help="Neighbours of each picture.")
@shared
def neighbours(asked: Asked, as_json: bool, **words: Any) -> None:
    """The most alike images in a bank."""
    from simdino.show.console import watched
    from simdino.show.nearest import show_neighbours

    result = show_neighbours(asked.encoder, asked.images, **words, progress=watched)
    answer(result.as_dict(), [str(result)], as_json=as_json)
