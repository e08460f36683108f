"""For each given image, the images of a data set that an encoder finds most alike."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from simdino.config import PositionRule
from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.data.pictures import open_pictures, read_pictures
from simdino.data.sources import open_dataset
from simdino.data.views import centre
from simdino.evaluate.classification.neighbours import nearest
from simdino.features.extract import Features, extract
from simdino.feedback import Progress, no_bar
from simdino.files import check_folder
from simdino.models.encoder import Encoder
from simdino.models.weights import on_device
from simdino.runs.evaluations import trained_on
from simdino.show.gallery import COUNT, Gallery, save
from simdino.show.sheets import neighbours_sheet


def show_neighbours(
    encoder: str,
    images: str,
    out: Path,
    *,
    bank: str | None = None,
    k: int = 5,
    count: int = COUNT,
    device: str = "auto",
    positions: PositionRule | None = None,
    progress: Progress = no_bar,
) -> Gallery:
    """Draw, for each image, the `k` images with the greatest cosine in a bank. A copy of the image itself is left out.

    images: an image, or whatever `open_dataset` takes, of which at most `count` are drawn. bank: whatever
    `open_dataset` takes; the training images of the encoder's run unless given. out: the folder to write to. Raises
    InputError where there is no readable image, or the bank has fewer than two."""
    check_folder(out, option="--out")
    model = on_device(encoder, device=device, positions=positions)
    given = open_pictures(images)
    source = (
        open_dataset(bank) if bank is not None else open_dataset(trained_on(Path(encoder), option="--bank"), "train")
    )
    names, _, broken = read_pictures(given, channels=model.in_chans, count=count, at_least=2 * model.preprocess.resize)
    asked = given.select([given.names.index(name) for name in names])
    queries, features = extract(model, asked), extract(model, source, progress=progress)
    if len(features) < 2:
        raise InputError(f"the bank {source.name} has {len(features)} readable image: give --bank with more")
    shown = [centred(asked, name, model) for name in queries.names]
    near = [
        nearest_images(one, vector, features, source, model, k=k)
        for one, vector in zip(shown, queries.vectors, strict=True)
    ]
    pages = [neighbours_sheet([one], [others]) for one, others in zip(shown, near, strict=True)]
    return save(out, queries.names, pages, neighbours_sheet(shown, near), broken)


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
    """Return an image as the encoder gets it: uint8 [C, crop, crop]."""
    i = source.names.index(name)
    source = source.with_bits(encoder.preprocess.bits)
    image = source.read(i, encoder.in_chans, at_least=2 * encoder.preprocess.resize)
    return centre(image, encoder.preprocess, sides=source.sides(i))
