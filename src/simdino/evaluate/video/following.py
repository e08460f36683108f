"""The steps of `video`: every sequence followed and scored, and masks written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simdino.contracts import InputError
from simdino.data.annotated import Exif
from simdino.evaluate.video.metrics import SequenceScore
from simdino.evaluate.video.propagate import Look, follow
from simdino.evaluate.video.results import Propagation, VideoResult
from simdino.evaluate.video.sequences import Video, Year, open_davis
from simdino.features.extract import patch_of
from simdino.feedback import Progress, no_bar
from simdino.files import check_folder, written
from simdino.models.encoder import Encoder

SCORED_FROM = 3  # frames: the first and the last do not count


def follow_all(
    look: Look, encoder: Encoder, data: Path, recipe: Propagation, *,
    out: Path | None = None, year: Year | None = None, exif: Exif = "turn", progress: Progress = no_bar,
) -> VideoResult:  # fmt: skip
    """The result of looking at the frames in one way; of the encoder only the patch size and channels count."""
    patch = patch_of(encoder)
    if out is not None:
        check_folder(out, option="--out")
    year, videos = open_davis(data, year, exif=exif, bits=encoder.preprocess.bits)
    counts = {one.name: count_of(one) for one in videos}
    scores = {one.name: SequenceScore(one.name, counts[one.name]) if one.annotated else None for one in videos}
    frames = sum(len(one) for one in videos)
    todo = masks_of(videos, look, patch, encoder.in_chans, recipe)
    for one, i, mask in progress(todo, f"frames of DAVIS {year}", frames):
        score = scores[one.name]
        if score is not None and 0 < i < len(one) - 1:
            score.add(mask, one.mask(i))
        if out is not None:
            write_mask(mask, out / one.name / f"{one.frames[i].stem}.png", one.palette())
    return VideoResult(
        year=year,
        frames=frames,
        objects=tuple(row for score in scores.values() if score is not None for row in score.objects()),
        unscored=tuple(name for name, score in scores.items() if score is None),
        turned=sum(one.turned() for one in videos),
    )


def count_of(one: Video) -> int:
    """Objects in the first mask. Raises InputError for none, and for too few frames to score."""
    count = int(one.mask(0).max(initial=0))
    if not count:
        hint = "" if one.whole else "; 255 is no object in a list of 2017: try --year 2016 where it marks one"
        raise InputError(f"data: sequence {one.name}: the first mask '{one.masks[0]}' has no object to follow{hint}")
    if one.annotated and len(one) < SCORED_FROM:
        raise InputError(
            f"data: sequence {one.name} has {len(one)} frames; the first and the last are not scored, so give 3 or more"
        )
    return count


def masks_of(
    videos: Iterable[Video], look: Look, patch: int, channels: int, recipe: Propagation
) -> Iterator[tuple[Video, int, NDArray[np.uint8]]]:
    """(video, frame, mask) of every frame, one at a time."""
    for one in videos:
        frames = (one.frame(i, channels) for i in range(len(one)))
        for i, mask in enumerate(follow(frames, one.mask(0), look, patch, recipe)):
            yield one, i, mask


def write_mask(mask: NDArray[np.uint8], path: Path, palette: list[int] | None) -> None:
    """An indexed PNG. palette: red, green, blue of each object; where there is none, background black and objects
    white."""
    image, known = Image.fromarray(mask).convert("P"), palette or [0] * 3
    image.putpalette(known + [255] * (3 * 256 - len(known)))  # all 256: Pillow takes fewer bits for fewer colours
    with written(path, option="--out") as aside:
        image.save(aside, "PNG")
