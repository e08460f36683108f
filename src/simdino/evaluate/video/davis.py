"""DAVIS: the first frame's objects followed through the video by patch features, and how well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simdino.contracts import InputError
from simdino.data.annotated import Exif, turned_line
from simdino.evaluate.baselines import random_twin
from simdino.evaluate.video.metrics import Measure, ObjectScores, SequenceScore, mean_measure
from simdino.evaluate.video.propagate import Look, Propagation, colours_of, follow, patches_of
from simdino.evaluate.video.sequences import Video, Year, open_davis
from simdino.features.dense import check_size, patch_of
from simdino.features.extract import Progress, unwatched
from simdino.files import check_folder, written
from simdino.models.encoder import Encoder
from simdino.models.weights import load_encoder, to_stderr
from simdino.precision import present_device
from simdino.runs.evaluations import keep_scores

SCORED_FROM = 3  # frames: the first and the last do not count


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """Scores in percent, as published tables have them. Global ones are the unweighted mean over all objects."""

    year: Year
    frames: int  # of all sequences
    objects: tuple[ObjectScores, ...]
    unscored: tuple[str, ...]  # sequences without annotations to compare with
    turned: int = 0  # frames that EXIF turns

    @property
    def j(self) -> Measure | None:
        """Region similarity; None where nothing could be scored."""
        return mean_measure(one.j for one in self.objects) if self.objects else None

    @property
    def f(self) -> Measure | None:
        """Boundary accuracy; None where nothing could be scored."""
        return mean_measure(one.f for one in self.objects) if self.objects else None

    @property
    def jf(self) -> float | None:
        """J&F-Mean, the number that papers compare."""
        return (self.j.mean + self.f.mean) / 2 if self.j and self.f else None

    def __str__(self) -> str:
        if self.j is None or self.f is None:
            return f"no sequence of {len(self.unscored)} could be scored: none has a mask of every frame"
        return (
            f"J&F {self.jf:.1f} %  J {self.j.mean:.1f} (recall {self.j.recall:.1f}, decay {self.j.decay:.1f})  "
            f"F {self.f.mean:.1f} (recall {self.f.recall:.1f}, decay {self.f.decay:.1f}), "
            f"{len(self.objects)} object{'s' * (len(self.objects) != 1)} in {self.frames} frames of DAVIS {self.year}"
            f"{f', {len(self.unscored)} sequences not scored' if self.unscored else ''}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        means = {name: None if one is None else asdict(one) for name, one in (("j", self.j), ("f", self.f))}
        return {**asdict(self), "jf": self.jf, **means}

    def lines(self) -> list[str]:
        """A line for each object."""
        return [f"{o.sequence} {o.object}: J {o.j.mean:.1f}  F {o.f.mean:.1f}" for o in self.objects]


def video(
    encoder: Encoder,
    data: str | Path,
    *,
    out: str | Path | None = None,
    year: Year | None = None,
    recipe: Propagation | None = None,
    exif: Exif = "turn",
    progress: Progress = unwatched,
) -> VideoResult:
    """Label propagation on DAVIS by an encoder's patch tokens, with the official measures.

    data: the folder of DAVIS, see `sequences`. out: where to write the masks, OUT/SEQUENCE/00000.png with the
    annotations' colours, of every frame. year: 2017's list where there are both, unless given. exif: what masks were
    drawn on, see `data.annotated`. progress: given the frames.
    Sequences with a mask of the first frame alone are followed and not scored.

    Raises InputError for an encoder without patches, an unknown layout, damaged files, and where `out` cannot be
    written to."""
    return follow_all(
        patches_of(encoder), encoder, data, out=out, year=year, recipe=recipe, exif=exif, progress=progress
    )


def follow_all(
    look: Look, encoder: Encoder, data: str | Path, *, out: str | Path | None, year: Year | None,
    recipe: Propagation | None, exif: Exif, progress: Progress,
) -> VideoResult:  # fmt: skip
    """`video` with another look at the frames; of the encoder only the patch size and channels count."""
    patch, recipe = patch_of(encoder), recipe or Propagation()
    if out is not None:
        check_folder(Path(out), option="--out")
    year, videos = open_davis(data, year, exif=exif, bits=encoder.preprocess.bits)
    counts = {one.name: count_of(one) for one in videos}
    scores = {one.name: SequenceScore(one.name, counts[one.name]) if one.annotated else None for one in videos}
    frames = sum(len(one) for one in videos)
    todo = masks_of(videos, look, patch, encoder.channels, recipe)
    for one, i, mask in progress(todo, f"frames of DAVIS {year}", frames):
        score = scores[one.name]
        if score is not None and 0 < i < len(one) - 1:
            score.add(mask, one.mask(i))
        if out is not None:
            write_mask(mask, Path(out) / one.name / f"{one.frames[i].stem}.png", one.palette())
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


def evaluate_video(
    encoder: str,
    data: str,
    *,
    out: str | Path | None = None,
    year: Year | None = None,
    recipe: Propagation | None = None,
    exif: Exif = "turn",
    baselines: bool = False,
    device: str = "auto",
    log: Callable[[str], None] = to_stderr,
    progress: Progress = unwatched,
) -> dict[str, VideoResult]:
    """`video` of a saved encoder, and with `baselines` that of the same encoder at random initialisation and of raw
    colours, whose masks are not written. Kept in evaluations.jsonl where `encoder` is a run folder."""
    where, recipe = present_device(device), recipe or Propagation()
    trained = load_encoder(encoder).to(where)
    check_size(trained, recipe.size)
    table = {"encoder": video(trained, data, out=out, year=year, recipe=recipe, exif=exif, progress=progress)}
    if baselines:
        twin = random_twin(trained).to(where)
        for name, look in (("random initialisation", patches_of(twin)), ("raw colours", colours_of(trained))):
            table[name] = follow_all(
                look, trained, data, out=None, year=year, recipe=recipe, exif=exif, progress=progress
            )
    scored = table["encoder"]
    keep_scores(
        encoder, protocol="video", where=data, name=Path(data).resolve().name, counted={"frames": scored.frames},
        settings={"year": scored.year, **asdict(recipe), **({"exif": exif} if exif != "turn" else {})},
        results={name: result.as_dict() for name, result in table.items()},
        said="\n".join(f"{name:<24}{result}" for name, result in table.items()), log=log,
    )  # fmt: skip
    if line := turned_line(scored.turned, of=scored.frames, exif=exif):
        log(line)
    return table
