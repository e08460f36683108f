"""What label propagation finds, and the types that its signature and its mathematics share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from simdino.result import Result, plain

if TYPE_CHECKING:
    from simdino.evaluate.video.metrics import Measure, ObjectScores


Year = Literal["2016", "2017"]


@dataclass(frozen=True, kw_only=True)
class Propagation:
    """The recipe; the defaults are DINO's."""

    size: int = 480  # pixels of a frame's short side
    last_frames: int = 7  # frames compared with besides the first
    radius: int = 12  # patches: the window is 2 radius + 1 wide and high, in every frame compared with
    nearest: int = 5  # patches that give their labels, out of all frames' windows together
    temperature: float = 0.1


@dataclass(frozen=True, kw_only=True)
class VideoResult(Result):
    """Scores in percent, as published tables have them. Global ones are the unweighted mean over all objects."""

    year: Year
    frames: int  # of all sequences
    objects: tuple[ObjectScores, ...]
    unscored: tuple[str, ...]  # sequences without annotations to compare with
    turned: int = 0  # frames that EXIF turns

    @property
    def j(self) -> Measure | None:
        """Region similarity; None where nothing could be scored."""
        return self._mean("j")

    @property
    def f(self) -> Measure | None:
        """Boundary accuracy; None where nothing could be scored."""
        return self._mean("f")

    @property
    def jf(self) -> float | None:
        """J&F-Mean, the number that papers compare."""
        return (self.j.mean + self.f.mean) / 2 if self.j and self.f else None

    def _mean(self, name: Literal["j", "f"]) -> Measure | None:
        from simdino.evaluate.video.metrics import mean_measure

        return mean_measure(getattr(one, name) for one in self.objects) if self.objects else None

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
        """Plain values, with the means over all objects."""
        return {**super().as_dict(), "jf": self.jf, "j": plain(self.j), "f": plain(self.f)}

    def lines(self) -> list[str]:
        """A line for each object, then the means."""
        return [f"{o.sequence} {o.object}: J {o.j.mean:.1f}  F {o.f.mean:.1f}" for o in self.objects] + [str(self)]
