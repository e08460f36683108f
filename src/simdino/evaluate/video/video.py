"""DAVIS: the first frame's objects followed through the video by patch features, and how well."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from simdino.evaluate.layouts import Layout, as_folder
from simdino.evaluate.protocol import as_protocol
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import ABOVE_0, AT_LEAST_1, PIXELS, Exif, Option
from simdino.result import Result, Table, plain
from simdino.settings import Range

if TYPE_CHECKING:
    from simdino.evaluate.video.metrics import Measure, ObjectScores
    from simdino.models.encoder import Encoder

Year = Literal["2016", "2017"]
DAVIS = Layout(text="Folder of DAVIS: JPEGImages/, Annotations/, ImageSets/.", open=as_folder, required=True)


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


@as_protocol(DAVIS, example="video runs/photos --data DAVIS/ --out masks/")
def video(
    encoder: Encoder, data: Path, *,
    out: Annotated[Path | None, Option("Write masks as OUT/SEQUENCE/00000.png.", result=False)] = None,
    year: Annotated[Year | None, Option("Which list.", default="2017 where it is there")] = None,
    size: Annotated[int, Option("Short side of a frame in pixels.", PIXELS)] = Propagation.size,
    last_frames: Annotated[
        int, Option("Frames compared with besides the first.", AT_LEAST_1)
    ] = Propagation.last_frames,
    radius: Annotated[
        int, Option("Patches to each side that are compared with.", Range(at_least=0, at_most=10_000))
    ] = Propagation.radius,
    nearest: Annotated[int, Option("Patches that give their labels.", AT_LEAST_1)] = Propagation.nearest,
    temperature: Annotated[
        float, Option("Their weights are exp(cosine / temperature).", ABOVE_0)
    ] = Propagation.temperature,
    baselines: Annotated[bool, Option("Random initialisation and raw colours beside it.", result=False)] = False,
    exif: Exif = "turn", log: Log = to_stderr, progress: Progress = no_bar,
) -> Table[VideoResult]:  # fmt: skip
    """DAVIS label propagation: the first frame's objects followed by patch features; J, F and J&F.

    data: the folder of DAVIS, see `sequences`. out: the masks of every frame have the annotations' colours; those of
    the baselines are not written. Sequences with a mask of the first frame alone are followed and not scored.

    Raises InputError for an encoder without patches, an unknown layout, damaged files, and where `out` cannot be
    written to."""
    from simdino.data.annotated import tell_turned
    from simdino.evaluate.baselines import compared
    from simdino.evaluate.video.following import follow_all
    from simdino.evaluate.video.propagate import colours_of, patches_of
    from simdino.features.dense import check_size

    recipe = Propagation(size=size, last_frames=last_frames, radius=radius, nearest=nearest, temperature=temperature)
    check_size(encoder, size)
    looks = {name: patches_of(one) for name, one in compared(encoder, baselines=baselines)}
    if baselines:
        looks["raw colours"] = colours_of(encoder)
    rows: dict[str, list[VideoResult]] = {}
    for name, look in looks.items():
        place = out if name == "encoder" else None
        found = follow_all(look, encoder, data, recipe, out=place, year=year, exif=exif, progress=progress)
        rows[name] = [found]
    own = rows["encoder"][0]
    tell_turned(own.turned, of=own.frames, exif=exif, log=log)
    return Table(rows=rows, each=({"year": own.year},), broken={})
