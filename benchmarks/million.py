"""What a folder of a million images costs before step 1: seconds and memory, with and without an index.

    python benchmarks/million.py --files 1000000

Small JPEGs in 1,000 class folders of train/ and val/ are made below --folder (4 KB of disk each; they are deleted
afterwards unless --keep). Each is a file of its own: hard links to one would be one image. Each measurement is a new
process, whose imports do not count: the images are opened as training and validation images, their fingerprints are
taken, the statistics are measured on 1,000 of them and the first batch of 64 is read. "No index" lists the folder, and
its memory includes that. The operating system has the folders in its cache in both cases. Stores
benchmarks/results/million.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from timing import store

CLASSES, SHARE = 1000, 0.05  # folders, and the share of the images that is in val/
PICTURES, SIDE = 48, 48


def make(root: Path, files: int) -> None:
    """Write so many files in class folders of train/ and val/."""
    rng = np.random.default_rng(0)
    pictures: list[bytes] = []
    for _ in range(PICTURES):
        out = io.BytesIO()
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(out, "JPEG", quality=80)
        pictures.append(out.getvalue())
    for split, share in (("train", 1 - SHARE), ("val", SHARE)):
        for c in range(CLASSES):
            folder = root / split / f"n{c:08d}"
            folder.mkdir(parents=True)
            for i in range(round(share * files / CLASSES)):
                (folder / f"n{c:08d}_{i:05d}.jpg").write_bytes(pictures[(7 * i + c) % PICTURES])


def memory(field: str) -> float:
    """Megabytes of this process: VmRSS now, VmHWM at most."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(field)) / 1024


def measure(root: str) -> dict[str, float]:
    """Seconds of each stage and megabytes of all, in this process."""
    from simdino.config import ViewsConfig  # noqa: PLC0415
    from simdino.data.loader import Batches  # noqa: PLC0415
    from simdino.data.sources import open_splits  # noqa: PLC0415
    from simdino.data.survey import measure_dataset  # noqa: PLC0415
    from simdino.runs.folder import data_metadata  # noqa: PLC0415

    before, seconds, started = memory("VmRSS"), {}, time.perf_counter()

    def stage(name: str) -> None:
        nonlocal started
        seconds[name], started = time.perf_counter() - started, time.perf_counter()

    images = open_splits(root)
    stage("open")
    held, peak = memory("VmRSS") - before, memory("VmHWM") - before
    data_metadata(*images)
    stage("fingerprints")
    views = ViewsConfig(global_size=32, local_size=16, local_views=2)
    assert len(Batches(images.train, views, batch=64, channels=3, seed=0)[0][0].ids) == 64
    stage("first batch")
    total = sum(seconds.values())
    measure_dataset(images.train)
    stage("statistics")
    counted = len(images.train) + len(images.val)
    return {"files": counted, **seconds, "to the first batch": total, "MB held": held, "MB at most": peak}


def measured(root: Path, index: Path | str) -> dict[str, float]:
    """The same in a process of its own. index: where its indices are, or "off"."""
    words = [sys.executable, __file__, "--measure", str(root)]
    environment = {**os.environ, "SIMDINO_INDEX": str(index)}
    return json.loads(subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where they are made")
    parser.add_argument("--keep", action="store_true", help="leave them there for the next run")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure)))
        return
    root = given.folder / f"simdino-{given.files}"
    if not root.exists():
        make(root, given.files)
        time.sleep(3)  # an index is kept of folders that have not changed a moment ago
    with tempfile.TemporaryDirectory() as indices:
        cases = (("no index", indices), ("an index", indices), ("switched off", "off"))
        rows = [{"case": case, **measured(root, index)} for case, index in cases]
    if not given.keep:
        shutil.rmtree(root)
    store("million", {"classes": CLASSES, "side": SIDE}, rows)


if __name__ == "__main__":
    main()
