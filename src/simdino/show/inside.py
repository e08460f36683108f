"""What an encoder sees in pictures: what it attends to, its patch features as colours, and the objects it parts."""

from __future__ import annotations

from pathlib import Path

from PIL.Image import Image
from torch import Tensor

from simdino.config import PositionRule
from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.data.pictures import open_pictures, read_pictures
from simdino.features.attention import MASS, AttentionMaps, attention_maps, default_size, mass_mask
from simdino.features.dense import check_size
from simdino.features.pca import Principal, principal_pictures
from simdino.feedback import Progress, no_bar
from simdino.files import check_folder
from simdino.models.encoder import Encoder
from simdino.models.weights import on_device
from simdino.show.gallery import COUNT, Gallery, write_gallery
from simdino.show.overlay import coloured, heat, kept, tinted, to_image, with_heat
from simdino.show.sheets import to_picture
from simdino.show.tiles import PAGE_TILE, Tile, contact_sheet

SHEET_PATCHES = 28  # a side, for the masks on a run's page


def read(
    images: str, encoder: Encoder, *, count: int, size: int | None
) -> tuple[list[str], list[Tensor], dict[str, str]]:
    """`read_pictures` in what the encoder takes: no smaller than they are looked at."""
    check_size(encoder, size)
    at_least = 2 * (size or default_size(encoder))
    source = open_pictures(images).with_bits(encoder.preprocess.bits)
    return read_pictures(source, channels=encoder.in_chans, count=count, at_least=at_least)


def show_attention(
    encoder: str, images: str, out: Path, *,
    mass: float = MASS, size: int | None = None, count: int = COUNT, device: str = "auto",
    positions: PositionRule | None = None, progress: Progress = no_bar,
) -> Gallery:  # fmt: skip
    """Draw what the class token of the last block attends to: the mean over heads, and the patches that hold `mass` of
    it; on the page of a picture every head too.

    images: a picture, or whatever `open_dataset` takes, of which at most `count` are drawn. size: the short side at
    which pictures are looked at, see `features.attention`. out: the folder to write to.
    Raises InputError for an encoder whose attention cannot be read, and where there is no picture."""
    check_folder(out, option="--out")
    model = on_device(encoder, device=device, positions=positions)
    model.last_attention()  # refuses at once what has none
    names, pictures, broken = read(images, model, count=count, size=size)
    maps = [attention_maps(model, picture, size=size) for picture in progress(pictures, "attention", len(pictures))]
    rows = [mean_tiles(one, mass) for one in maps]
    pages = [[row, *head_tiles(one, mass)] for row, one in zip(rows, maps, strict=True)]
    return write_gallery(out, names, pages, rows, broken)


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


def show_pca(
    encoder: str, images: str, out: Path, *,
    foreground: bool = True, size: int | None = None, count: int = COUNT, device: str = "auto",
    positions: PositionRule | None = None,
) -> Gallery:  # fmt: skip
    """Draw patch features as colours, joint over all pictures: like parts have like colours. foreground: whether the
    background is told apart and left out. The other words are those of `show_attention`.

    Raises InputError for an encoder without patch tokens, and where there is no picture."""
    check_folder(out, option="--out")
    model = on_device(encoder, device=device, positions=positions)
    names, pictures, broken = read(images, model, count=count, size=size)
    found = principal_pictures(model, pictures, size=size, foreground=foreground)
    rows = [principal_tiles(one, foreground=foreground) for one in found]
    return write_gallery(out, names, [[row] for row in rows], rows, broken)


def principal_tiles(principal: Principal, *, foreground: bool) -> list[Tile]:
    """The picture, its patches in colours, and where asked for what was taken for foreground."""
    image, front = principal.image, principal.foreground
    tiles = [("image", to_picture(image)), ("features", coloured(image, principal.colours, front))]
    return [*tiles, ("foreground", kept(image, front))] if foreground else tiles


def show_masks(
    encoder: str, images: str, out: Path, *,
    masks: int = 3, tau: float = 0.15, size: int | None = None, count: int = COUNT, device: str = "auto",
    positions: PositionRule | None = None, progress: Progress = no_bar,
) -> Gallery:  # fmt: skip
    """Draw the objects that MaskCut parts, at most `masks` in a picture. tau, size: see `maskcut`; the size is
    480 unless given, less where that is more than 60 patches. The other words are those of `show_attention`.

    Raises InputError for an encoder whose keys cannot be read, and where there is no picture."""
    check_folder(out, option="--out")
    model = on_device(encoder, device=device, positions=positions)
    model.last_attention()
    check_size(model, size, pairs=True)
    names, pictures, broken = read(images, model, count=count, size=size)
    watched = progress(pictures, "masks", len(pictures))
    rows = [mask_tiles(model, one, masks=masks, tau=tau, size=size) for one in watched]
    return write_gallery(out, names, [[row] for row in rows], rows, broken)


def mask_tiles(encoder: Encoder, picture: Tensor, *, masks: int = 3, tau: float = 0.15, size: int | None) -> list[Tile]:
    """The picture, and its objects in colours."""
    from simdino.evaluate.discovery.maskcut import maskcut  # noqa: PLC0415 (scipy)

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
