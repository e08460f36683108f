"""What the diagnostics without labels find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from simdino.result import Result

if TYPE_CHECKING:
    from simdino.features.spectra import Spectrum


Status = Literal["collapsed", "low rank", "healthy"]


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
