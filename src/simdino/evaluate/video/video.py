"""DAVIS: the first frame's objects followed through the video by patch features, and how well."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from simdino.evaluate.layouts import Layout, as_folder
from simdino.evaluate.protocol import as_protocol
from simdino.evaluate.video import Propagation, Year
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.keywords import ABOVE_0, AT_LEAST_1, PIXELS, Exif, Option
from simdino.result import Table
from simdino.settings import Range

if TYPE_CHECKING:
    from simdino.evaluate.video.metrics import VideoResult
    from simdino.models.encoder import Encoder

DAVIS = Layout(text="Folder of DAVIS: JPEGImages/, Annotations/, ImageSets/.", open=as_folder, required=True)


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
    from simdino.evaluate.video.propagate import colours_of, follow_all, patches_of
    from simdino.features.extract import check_size

    recipe = Propagation(size=size, last_frames=last_frames, radius=radius, nearest=nearest, temperature=temperature)
    check_size(encoder, size)
    looks = {name: patches_of(one) for name, one in compared(encoder, baselines=baselines)}
    if baselines:
        looks["raw colours"] = colours_of(encoder)
    follow = partial(follow_all, encoder=encoder, data=data, recipe=recipe, year=year, exif=exif, progress=progress)
    rows = {name: [follow(look, out=out if name == "encoder" else None)] for name, look in looks.items()}
    own = rows["encoder"][0]
    tell_turned(own.turned, of=own.frames, exif=exif, log=log)
    return Table(rows=rows, each=({"year": own.year},), broken={})
