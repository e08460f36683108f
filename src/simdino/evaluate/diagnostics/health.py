"""Health without labels: what an encoder's features look like, on images and on augmented views of images.

One sampled set of images gives the spectrum of class tokens (`features.spectra.Spectrum`). A smaller one, each image
in several random views, tells whether features follow the image or the augmentation: LiDAR at the encoder's output, and
after every block the share of variance between images. All in float32: rounding to bfloat16 is noise that looks like
rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from simdino.errors import InputError
from simdino.evaluate.layouts import IMAGES
from simdino.evaluate.protocol import as_protocol
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import AT_LEAST_2, Option, range_of
from simdino.methods.simdino import RateConfig

if TYPE_CHECKING:
    from simdino.data.base import Source
    from simdino.evaluate.diagnostics.checkpoints import History
    from simdino.evaluate.diagnostics.monitors import Health
    from simdino.models.encoder import Encoder

EPS = range_of(RateConfig, "eps")


@as_protocol(IMAGES, example="health runs/photos --data photos/")
def health(
    encoder: Encoder, data: Source, *,
    images: Annotated[int, Option("Images looked at, at most.", AT_LEAST_2)] = 2000,
    view_images: Annotated[int, Option("Of these, seen in random views.", AT_LEAST_2)] = 100,
    views: Annotated[int, Option("Random views of each of those.", AT_LEAST_2)] = 10,
    eps: Annotated[float, Option("Distortion of the coding rate.", EPS, "√0.05")] = RateConfig.eps,
    checkpoints: Annotated[
        bool, Option("Every checkpoint that the run kept, beside its k-NN while training.")
    ] = False,
    seed: int = 0, workers: int = 0, run: Path | None = None, log: Log = to_stderr, progress: Progress = no_bar,
) -> Health | History:  # fmt: skip
    """Ranks, spread and collapse of features without labels: RankMe, LiDAR, alpha-ReQ, coding rate and others.

    images: by a fixed shuffle, give the spectrum; at most `view_images` of them are seen in `views` random views each
    (`monitors.view_law`). eps: the distortion. seed: of the views.

    Raises InputError for fewer than two readable images, and for checkpoints of what is no run."""
    from simdino.evaluate.diagnostics.checkpoints import compare_checkpoints
    from simdino.evaluate.diagnostics.monitors import measure
    from simdino.runs.evaluations import metadata_of

    metadata = None if run is None else metadata_of(run)
    settings: dict[str, Any] = {
        "images": images, "view_images": view_images, "views": views, "eps": eps,
        "method": metadata.config.run.method if metadata else None,
    }  # fmt: skip
    if checkpoints:
        if run is None:
            raise InputError("--checkpoints compares those of a run: give its folder, not a loaded encoder")
        return compare_checkpoints(encoder, run, data, progress=progress, **settings)
    return measure(encoder, data, seed=seed, workers=workers, progress=progress, **settings)
