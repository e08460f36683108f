"""The pictures in a run's report: what its views look like, what its encoder finds alike, and what it looks at."""

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.base import Source, subset
from simdino.data.loader import Loader
from simdino.data.pictures import read_pictures
from simdino.data.views import centre
from simdino.evaluate.monitor import Monitor
from simdino.features.attention import attention_maps, default_size
from simdino.features.extract import Features, extract
from simdino.features.nearest import nearest
from simdino.files import written
from simdino.models.encoder import Encoder
from simdino.show.attention import MASS
from simdino.show.gallery import COUNT
from simdino.show.sheets import contact_sheet, neighbours_sheet, views_sheet
from simdino.show.tiles import mask_tiles, mean_tiles

SHEET_PATCHES = 28  # a side, for the masks on a run's page


def write_views(source: Source, loader: Loader, path: Path, *, count: int = 6, option: str | None = None) -> None:
    """Draw a few images of the first batch and the views made of them, to a PNG file. option: the command-line option
    that named it, see `files.written`."""
    views = loader.views(loader.batches[0][0])
    pick = slice(0, min(count, len(views.ids)))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (loader.mean, loader.std))

    def to_pixels(x: Tensor) -> Tensor:
        return ((x[:, pick].cpu() * std + mean) * 255).round().clamp(0, 255).byte()

    originals = [source.read(int(i), loader.batches.channels) for i in views.ids[pick]]
    local = None if views.local_views is None else to_pixels(views.local_views)
    with written(path, option=option) as aside:
        views_sheet(originals, to_pixels(views.global_views), local).save(aside, "PNG")


def keep_pictures(folder: Path, encoder: Encoder, monitor: Monitor) -> None:
    """Write the pictures of a finished run's report, of validation images: neighbours, attention and masks.

    Raises InputError where none of the images can be read."""
    sheets = {"neighbours": neighbours_picture(encoder, monitor), **inside_sheets(encoder, monitor.queries)}
    for name, sheet in sheets.items():
        with written(folder / "pictures" / f"{name}.png") as aside:
            sheet.save(aside, "PNG", optimize=True)


def neighbours_picture(encoder: Encoder, monitor: Monitor, *, count: int = 12, k: int = 5) -> Image:
    """Draw a few of the monitor's queries with their nearest images in its bank, and class names where there are
    labels."""
    asked = subset(monitor.queries, count)
    bank, queries = (
        extract(encoder, source, precision=monitor.precision, workers=monitor.workers)
        for source in (monitor.bank, asked)
    )
    _, _, index = next(nearest(bank.vectors, queries.vectors, k=min(k, len(bank))))
    near = index.tolist()

    def picture(source: Source, name: str) -> Tensor:
        return centre(source.read(source.names.index(name), encoder.in_chans), encoder.preprocess)

    known = bank.labels is not None and queries.labels is not None
    return neighbours_sheet(
        [picture(asked, name) for name in queries.names],
        [[picture(monitor.bank, bank.names[i]) for i in row] for row in near],
        class_names(queries, range(len(queries))) if known else None,
        [class_names(bank, row) for row in near] if known else None,
    )


def class_names(features: Features, rows: Iterable[int]) -> list[str]:
    """Return the class names of some rows."""
    assert features.labels is not None
    return [features.classes[features.labels[i]] for i in rows]


def inside_sheets(encoder: Encoder, source: Source, *, count: int = COUNT) -> dict[str, Image]:
    """Draw contact sheets "attention" and "masks" of a few images, looked at in twice the size of training (masks with
    28 patches a side at most, for the time they take). There is none of an encoder whose attention cannot be read, and
    no attention of one without a class token.

    Raises InputError where no image can be read."""
    from simdino.evaluate.discovery.maskcut import maskcut  # scipy

    try:
        encoder.last_attention()
    except InputError:
        return {}
    size = default_size(encoder)
    coarser = min(size, SHEET_PATCHES * (encoder.patch_size or 1))
    _, pictures, _ = read_pictures(source, channels=encoder.in_chans, count=count, at_least=2 * size)
    sheets = {"masks": contact_sheet([mask_tiles(one, maskcut(encoder, one, size=coarser)) for one in pictures])}
    if encoder.has_class_token:
        sheets["attention"] = contact_sheet([mean_tiles(attention_maps(encoder, one), MASS) for one in pictures])
    return sheets


def nearest_images(
    picture: Tensor, vector: Tensor, bank: Features, source: Source, encoder: Encoder, *, k: int
) -> list[Tensor]:
    """Return the `k` images of the bank nearest to an image's feature, as the encoder gets them, without one copy of
    itself."""
    _, _, order = next(nearest(bank.vectors, vector[None], k=min(k + 1, len(bank))))
    found = [centred(source, bank.names[i], encoder) for i in order[0].tolist()]
    own = next((i for i, image in enumerate(found) if torch.equal(image, picture)), len(found))
    return (found[:own] + found[own + 1 :])[:k]


def centred(source: Source, name: str, encoder: Encoder) -> Tensor:
    """Return an image as the encoder gets it: [C, crop, crop]."""
    i = source.names.index(name)
    source = source.with_values(encoder.preprocess.values)
    image = source.read(i, encoder.in_chans, at_least=2 * encoder.preprocess.resize)
    return centre(image, encoder.preprocess, sides=source.sides(i))
