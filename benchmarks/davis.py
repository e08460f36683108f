"""DAVIS label propagation: raw colours, a random ViT and trained encoders, and memory at two lengths of video.

    python benchmarks/davis.py path/to/DAVIS --size 240 --encoders "SimDINO, 5 min=runs/a" "DINOv2, 5 min=runs/b"

Each case runs in a process of its own, on all frames and on the first ten of each sequence: its peak of memory is that
process's, imports included. The random ViT and the patches of raw colours are those of the first encoder. Seconds a
frame are CPU time of one thread, reading and scoring included. Stores benchmarks/results/davis.json.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from timing import pin, store

from simdino.evaluate.baselines import random_twin
from simdino.evaluate.video import Propagation
from simdino.evaluate.video.propagate import colours_of, follow_all, patches_of
from simdino.models.weights import load_encoder

SHORT = 10  # frames
BASELINES = ("raw colours", "random initialisation")


def run(name: str, encoder: str, data: str, size: int, out: str | None) -> dict[str, Any]:
    """One case on one set of videos, in this process."""
    pin(1)
    trained = load_encoder(encoder)
    look = colours_of(trained) if name == BASELINES[0] else patches_of(trained)
    if name == BASELINES[1]:
        look = patches_of(random_twin(trained))
    started = time.process_time()
    result = follow_all(look, trained, Path(data), Propagation(size=size), out=None if out is None else Path(out))
    seconds = time.process_time() - started
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    assert result.j is not None and result.f is not None
    each = {f"J, {one.sequence} {one.object}": one.j.mean for one in result.objects}
    scores = {"J&F": result.jf, "J": result.j.mean, "F": result.f.mean, **each}
    return {"year": result.year, "frames": result.frames, **scores, "s/frame": seconds / result.frames, "peak MB": peak}


def shortened(data: Path, folder: Path) -> Path:
    """The data with the first frames of each sequence."""
    shutil.copytree(data / "ImageSets", folder / "ImageSets")
    for part in ("JPEGImages", "Annotations"):
        for sequence in sorted((data / part).glob("*/*")):
            place = folder / sequence.relative_to(data)
            place.mkdir(parents=True)
            for frame in sorted(sequence.iterdir())[:SHORT]:
                (place / frame.name).symlink_to(frame.resolve())
    return folder


def alone(*given: Any) -> dict[str, Any]:
    """`runs.run` in a new process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(run, given)


def row(name: str, encoder: str, data: Path, short: Path, size: int, out: Path | None) -> dict[str, Any]:
    """A line of the table."""
    masks = None if out is None else str(out / name.replace(" ", "-").replace(",", ""))
    long = alone(name, encoder, str(data), size, masks)
    brief = alone(name, encoder, str(short), size, None)
    peaks = {f"peak MB, {one.pop('frames')} frames": round(one.pop("peak MB")) for one in (brief, long)}
    return {"data": data.name, "size": size, "features": name, **long, **peaks}


def cases(encoders: Sequence[str]) -> list[tuple[str, str]]:
    """(name of the row, encoder) of the baselines and of NAME=ENCODER."""
    named = [(name, encoder) for name, _, encoder in (word.rpartition("=") for word in encoders)]
    return [*((name, named[0][1]) for name in BASELINES), *named]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoders", nargs="+", required=True, help="NAME=ENCODER")
    parser.add_argument("--size", type=int, default=480, help="short side of a frame in pixels")
    parser.add_argument("--out", type=Path, help="write the masks here, a folder a row")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        short = shortened(given.data, Path(folder) / given.data.name)
        rows = [row(*case, given.data, short, given.size, given.out) for case in cases(given.encoders)]
    store("davis", {"threads": 1, "size": given.size}, rows, keys=("data", "size", "features"))


if __name__ == "__main__":
    main()
