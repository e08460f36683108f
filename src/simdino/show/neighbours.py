"""For each given picture, the images of a bank that an encoder finds most alike."""

from pathlib import Path
from typing import Annotated

from simdino.errors import InputError
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import AT_LEAST_1, Device, Option, Positions
from simdino.show.gallery import COUNT, Count, Gallery, Out, encoder_and_images, write_gallery


def show_neighbours(
    encoder: str, images: str, *,
    out: Out,
    bank: Annotated[str | None, Option("Images to look in.", default="the training images of the run")] = None,
    k: Annotated[int, Option("Neighbours of each picture.", AT_LEAST_1)] = 5,
    count: Count = COUNT, positions: Positions = None, device: Device = "auto",
    log: Log = to_stderr, progress: Progress = no_bar,
) -> Gallery:  # fmt: skip
    """The most alike images in a bank.

    They are the `k` images with the greatest cosine; a copy of the picture itself is left out. Raises InputError where
    there is no readable picture, or the bank has fewer than two."""
    from simdino.data.sources import open_dataset
    from simdino.features.extract import extract
    from simdino.runs.evaluations import trained_on
    from simdino.show.pictures import centred, nearest_images
    from simdino.show.sheets import neighbours_sheet

    model, names, _, broken = encoder_and_images(
        encoder, images, out=out, count=count, positions=positions, device=device
    )
    given = open_dataset(images)
    asked = given.select([given.names.index(name) for name in names])
    if bank is not None:
        source = open_dataset(bank)
    else:
        source = open_dataset(trained_on(Path(encoder), option="--bank"), "train")
    queries, features = extract(model, asked), extract(model, source, progress=progress)
    if len(features) < 2:
        raise InputError(f"the bank {source.name} has {len(features)} readable image: give --bank with more")
    shown = [centred(asked, name, model) for name in queries.names]
    found = zip(shown, queries.vectors, strict=True)
    near = [nearest_images(one, vector, features, source, model, k=k) for one, vector in found]
    pages = [neighbours_sheet([one], [others]) for one, others in zip(shown, near, strict=True)]
    return write_gallery(out, queries.names, pages, neighbours_sheet(shown, near), broken)
