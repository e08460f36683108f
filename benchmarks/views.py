"""Images per second of the views: 2 x 224 + 10 x 96 px of photos of 462 x 393, JPEG to float, on one thread.

    pip install -r benchmarks/requirements.txt
    python benchmarks/views.py path/to/photos

Ours beside torchvision's transforms on PIL images (DINO's own), lightly and lightly-train, which are left out where
they are not installed. Stores benchmarks/results/views.json.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from textbook import MEAN, STD, Views
from timing import pin, store, take_turns

from simdino.config import ViewsConfig
from simdino.data.base import Source
from simdino.data.decode import decode
from simdino.data.loader import Batches, Loader
from simdino.data.sources import open_dataset

SIZE = 462, 393  # the mean of ImageNet's photos
CONFIG = ViewsConfig()


class Photos(Source):
    """JPEG files in memory."""

    def __init__(self, files: Sequence[bytes]) -> None:
        super().__init__("photos", [f"{i}.jpg" for i in range(len(files))])
        self.files = files

    def read(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> torch.Tensor:
        return decode(self.files[i], self.names[i], channels=channels, at_least=at_least).pixels


def photos(folder: str, count: int) -> list[bytes]:
    """Images of a folder, evenly chosen, brought to one size and written as JPEG."""
    source = open_dataset(folder)
    files = []
    for i in np.linspace(0, len(source) - 1, count).round().astype(int):
        image = Image.fromarray(source.read(int(i), 3).permute(1, 2, 0).numpy()).resize(SIZE, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    return files


def peers(files: Sequence[bytes]) -> dict[str, Callable[[], object]]:
    """The transforms of other projects, where they are installed, in their own defaults at these sizes."""
    found: dict[str, Callable[[], object]] = {}
    try:
        from lightly.transforms import DINOTransform  # noqa: PLC0415

        theirs = DINOTransform(n_local_views=10)
        found["lightly DINOTransform"] = lambda: [theirs(Image.open(io.BytesIO(f)).convert("RGB")) for f in files]
    except ImportError:
        print("lightly is not installed: left out")
    os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"
    try:
        from lightly_train._methods.dino.dino_transform import DINOTransform as Theirs  # noqa: PLC0415
        from lightly_train._methods.dino.dino_transform import DINOTransformArgs  # noqa: PLC0415

        arguments = DINOTransformArgs()
        assert arguments.local_view is not None
        arguments.local_view.num_views = 10
        arguments.resolve_auto()
        transform = Theirs(arguments)
        found["lightly-train DINO"] = lambda: [
            transform({"image": np.asarray(Image.open(io.BytesIO(f)).convert("RGB"))}) for f in files
        ]
    except ImportError:
        print("lightly-train is not installed: left out")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder of photos")
    parser.add_argument("--photos", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    pin(1)
    files = photos(given.data, given.photos)
    batches = Batches(Photos(files), CONFIG, batch=len(files), channels=3, seed=0)
    loader = Loader(batches, mean=MEAN, std=STD, device=torch.device("cpu"), workers=0)
    textbook = Views()
    cases: dict[str, Callable[[], object]] = {
        "decoding alone (Pillow)": lambda: [decode(f, "", channels=3).pixels for f in files],
        "ours, JPEG to uint8 crops": lambda: batches[0],
        "ours, JPEG to float views": lambda: loader.views(batches[0][0]),
        "torchvision on PIL (DINO's)": lambda: [textbook(f) for f in files],
        **peers(files),
    }
    timings = take_turns(cases, repeats=given.repeats)
    ours = timings["ours, JPEG to float views"].median
    rows = [
        {
            "pipeline": name,
            "images/s": len(files) / t.median,
            "slowest and fastest": f"{len(files) / t.high:.0f} to {len(files) / t.low:.0f}",
            "ours (float views) is faster by": t.median / ours,
        }
        for name, t in timings.items()
    ]
    kilobytes = sum(map(len, files)) / len(files) / 1e3
    store("views", {"photos": len(files), "kB each": round(kilobytes), "threads": 1, "repeats": given.repeats}, rows)


if __name__ == "__main__":
    main()
