"""The pictures in a run's report: what its views look like, and what its encoder finds alike."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from simdino.data.base import Source, subset
from simdino.data.loader import Loader
from simdino.data.views import centre
from simdino.evaluate.classification.neighbours import nearest
from simdino.evaluate.monitor import Monitor
from simdino.features.extract import Features, extract
from simdino.files import written
from simdino.models.encoder import Encoder
from simdino.show.inside import inside_sheets
from simdino.show.sheets import neighbours_sheet, views_sheet


def views_picture(source: Source, loader: Loader, *, count: int = 6) -> Image:
    """Draw a few images of the first batch and the views made of them."""
    views = loader.views(loader.batches[0])
    pick = slice(0, min(count, len(views.ids)))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (loader.mean, loader.std))

    def to_pixels(x: Tensor) -> Tensor:
        return ((x[:, pick].cpu() * std + mean) * 255).round().clamp(0, 255).byte()

    originals = [source.read(int(i), loader.batches.channels) for i in views.ids[pick]]
    local = None if views.local_views is None else to_pixels(views.local_views)
    return views_sheet(originals, to_pixels(views.global_views), local)


def write_views(source: Source, loader: Loader, path: Path, *, option: str | None = None) -> None:
    """Write `views_picture` to a PNG file. option: the command-line option that named it, see `files.written`."""
    with written(path, option=option) as aside:
        views_picture(source, loader).save(aside, "PNG")


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
