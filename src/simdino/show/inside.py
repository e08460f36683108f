"""The tiles of pictures: what an encoder attends to, its patch features as colours, and the objects it parts."""

from __future__ import annotations

from PIL.Image import Image
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.data.pictures import read_pictures
from simdino.data.sources import open_dataset
from simdino.evaluate.discovery import COUNT as OBJECTS
from simdino.evaluate.discovery import TAU
from simdino.features.attention import AttentionMaps, attention_maps, default_size, mass_mask
from simdino.features.extract import check_size
from simdino.features.pca import Principal
from simdino.models.encoder import Encoder
from simdino.show.overlay import coloured, heat, kept, tinted, to_image, with_heat
from simdino.show.sheets import to_picture
from simdino.show.tiles import PAGE_TILE, Tile, contact_sheet
from simdino.show.words import COUNT, MASS

SHEET_PATCHES = 28  # a side, for the masks on a run's page


def read(
    images: str, encoder: Encoder, *, count: int, size: int | None
) -> tuple[list[str], list[Tensor], dict[str, str]]:
    """`read_pictures` in what the encoder takes: no smaller than they are looked at."""
    check_size(encoder, size)
    at_least = 2 * (size or default_size(encoder))
    source = open_dataset(images).with_bits(encoder.preprocess.bits)
    return read_pictures(source, channels=encoder.in_chans, count=count, at_least=at_least)


def mean_tiles(maps: AttentionMaps, mass: float) -> list[Tile]:
    """The picture, the mean over heads, and where most of that lies."""
    return [
        ("image", to_picture(maps.image)),
        ("mean of the heads", with_heat(maps.image, maps.mean)),
        (f"{100 * mass:.0f} % of it", kept(maps.image, mass_mask(maps.mean, mass))),
    ]


def head_tiles(maps: AttentionMaps, mass: float) -> list[list[Tile]]:
    """The heads by themselves, and below each where most of it lies."""
    size = (maps.image.shape[1], maps.image.shape[2])
    numbered = list(enumerate(maps.heads, start=1))
    return [
        [(f"head {i}", to_image(heat(head, size=size))) for i, head in numbered],
        [(f"{100 * mass:.0f} % of head {i}", kept(maps.image, mass_mask(head, mass))) for i, head in numbered],
    ]


def principal_tiles(principal: Principal, *, foreground: bool) -> list[Tile]:
    """The picture, its patches in colours, and where asked for what was taken for foreground."""
    image, front = principal.image, principal.foreground
    tiles = [("image", to_picture(image)), ("features", coloured(image, principal.colours, front))]
    return [*tiles, ("foreground", kept(image, front))] if foreground else tiles


def mask_tiles(
    encoder: Encoder, picture: Tensor, *, masks: int = OBJECTS, tau: float = TAU["maskcut"], size: int | None
) -> list[Tile]:
    """The picture, and its objects in colours."""
    from simdino.evaluate.discovery.maskcut import maskcut  # scipy

    found = maskcut(encoder, picture, count=masks, tau=tau, size=size)
    return [("image", to_picture(picture)), ("objects", tinted(picture, found, longest=2 * PAGE_TILE))]


def inside_sheets(encoder: Encoder, source: Source, *, count: int = COUNT) -> dict[str, Image]:
    """Contact sheets "attention" and "masks" of a few images, looked at in twice the size of training (masks with 28
    patches a side at most, for the time they take): what a run's page shows. None of an encoder whose attention cannot
    be read, and no attention of one without a class token.

    Raises InputError where no image can be read."""
    try:
        encoder.last_attention()
    except InputError:
        return {}
    size = default_size(encoder)
    coarser = min(size, SHEET_PATCHES * (encoder.patch_size or 1))
    _, pictures, _ = read_pictures(source, channels=encoder.in_chans, count=count, at_least=2 * size)
    masks = [mask_tiles(encoder, picture, size=coarser) for picture in pictures]
    if not encoder.has_class_token:
        return {"masks": contact_sheet(masks)}
    attention = [mean_tiles(attention_maps(encoder, picture), MASS) for picture in pictures]
    return {"attention": contact_sheet(attention), "masks": contact_sheet(masks)}
