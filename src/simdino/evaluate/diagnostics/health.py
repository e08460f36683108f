"""Health without labels: what an encoder's features look like, on images and on augmented views of images.

One sampled set of images gives the spectrum of class tokens (`features.spectra.Spectrum`). A smaller one, each image
in several random views, tells whether features follow the image or the augmentation: LiDAR at the encoder's output, and
after every block the share of variance between images. All in float32: rounding to bfloat16 is noise that looks like
rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from simdino.errors import InputError
from simdino.evaluate.layouts import IMAGES
from simdino.evaluate.protocol import as_protocol
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import AT_LEAST_2, Option, range_of
from simdino.methods.simdino import RateConfig
from simdino.result import Result

if TYPE_CHECKING:
    from simdino.data.base import Source
    from simdino.evaluate.diagnostics.checkpoints import History
    from simdino.features.spectra import Spectrum
    from simdino.models.encoder import Encoder

Status = Literal["collapsed", "low rank", "healthy"]
EPS = range_of(RateConfig, "eps")


@dataclass(frozen=True, kw_only=True)
class Health(Result):
    """The monitors of an encoder, and what they say."""

    spectrum: Spectrum  # of class tokens, one for an image
    lidar: float  # of class tokens of views
    between_view_share: tuple[float, ...]  # after each block: the share of the variance that lies between images
    patch_rank: float | None  # effective rank of the patch tokens of an image, the mean; None without patches
    view_images: int  # images in the last three ...
    views: int  # ... and views of each
    status: Status
    sentence: str
    broken: dict[str, str]  # images left out, and why

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return self.scores() | {
            "images": self.spectrum.images, "width": self.spectrum.width, "view_images": self.view_images,
            "views": self.views, "status": self.status, "sentence": self.sentence, "broken": self.broken,
        }  # fmt: skip

    def scores(self) -> dict[str, Any]:
        """The monitors by name; those of a run's checkpoints are compared by these."""
        spectral = {name: value for name, value in self.spectrum.as_dict().items() if name not in ("images", "width")}
        return spectral | {
            "lidar": self.lidar, "patch_rank": self.patch_rank, "between_view_share": list(self.between_view_share)
        }  # fmt: skip

    def __str__(self) -> str:
        s, first, last = self.spectrum, *self.spectrum.alpha_range
        rows = [
            ("RankMe", f"{s.rank_me:.1f} of {s.width}"),
            ("effective rank", f"{s.effective_rank:.1f}"),
            ("stable rank", f"{s.stable_rank:.2f}"),
            ("participation ratio", f"{s.participation_ratio:.1f}"),
            ("alpha-ReQ", "none" if s.alpha is None else f"{s.alpha:.2f} (eigenvalues {first} to {last})"),
            ("LiDAR", f"{self.lidar:.1f} of {min(s.width, self.view_images - 1)}"),
            ("expansion", f"{s.expansion_fraction:.3f} of its range (coding rate {s.coding_rate:.1f})"),
            ("uniformity", f"{s.uniformity:.2f}"),
            ("mean cosine", f"{s.mean_cosine:.3f}"),
            ("feature std", f"{s.feature_std:.3f}"),
            ("between-view share", " ".join(f"{x:.2f}" for x in self.between_view_share)),
            *([] if self.patch_rank is None else [("patch rank", f"{self.patch_rank:.1f}")]),
        ]
        return "\n".join([self.sentence, *(f"{name:<20}{value}" for name, value in rows)])


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

    settings: dict[str, Any] = {"images": images, "view_images": view_images, "views": views, "eps": eps}
    if checkpoints:
        if run is None:
            raise InputError("--checkpoints compares those of a run: give its folder, not a loaded encoder")
        return compare_checkpoints(encoder, run, data, progress=progress, **settings)
    return measure(encoder, data, seed=seed, workers=workers, progress=progress, **settings)
