"""How long the map of a folder takes to open, and how large it is.

    python benchmarks/map.py path/to/imagenette128 --encoder runs/photos

`simdino show map` lays out --images images, with the encoder given or a random one of the default kind. Then headless
Chromium opens the page --repeats times, each time in a new browser: seconds from the navigation until the page says
that it is ready and two frames have been drawn. Stores benchmarks/results/map.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from timing import store

from simdino.config import EncoderConfig
from simdino.contracts import Preprocess
from simdino.models.catalogue import make_encoder
from simdino.models.weights import save_encoder

sys.path.append(str(Path(__file__).parents[1] / "tests" / "show"))
from browser import browser


def random_encoder(path: Path) -> Path:
    """An untrained encoder for 64 px."""
    preprocess = Preprocess(resize=64, crop=64, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    save_encoder(make_encoder(EncoderConfig(name="conv_nano", image_size=64), preprocess).eval(), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder, page = given.encoder or random_encoder(folder / "encoder.safetensors"), folder / "map.html"
        words = [sys.executable, "-m", "simdino", "show", "map", str(encoder), given.data, "--out", str(page)]
        started = time.perf_counter()
        subprocess.run([*words, "--count", str(given.images)], check=True)
        made = time.perf_counter() - started
        seconds: list[float] = []
        for i in range(given.repeats):
            (folder / str(i)).mkdir()
            with browser(folder / str(i)) as window:
                seconds.append(window.open(page))
        megabytes = page.stat().st_size / 1e6
    row = {"images": given.images, "seconds": median(seconds), "slowest": max(seconds), "MB": megabytes}
    store("map", {"repeats": given.repeats, "data": Path(given.data).name}, [{**row, "seconds to make it": made}])


if __name__ == "__main__":
    main()
