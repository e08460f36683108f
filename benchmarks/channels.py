"""Cost of views by the number of channels: 2 x 224 + 10 x 96 px of images of 462 x 393 in memory, on one thread.

    python benchmarks/channels.py

Three channels of 8 bits are the colours of photographs, with hue, grey and solarisation. Others are measurements, each
with its own brightness and contrast. Stores benchmarks/results/channels.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from timing import pin, store, take_turns
from torch import Tensor

from simdino.config import ViewsConfig
from simdino.data.base import Source
from simdino.data.loader import Batches, Loader

SIZE = 393, 462
CASES = {"3, 8 bits": (3, False), "6, 8 bits": (6, False), "3, 16 bits": (3, True), "6, 16 bits": (6, True),
         "13, 16 bits": (13, True)}  # fmt: skip
"""Channels, and whether the images are deep: float32 from there on."""


class InMemory(Source):
    """Images of random numbers, smooth enough to be resized as photographs are."""

    def __init__(self, count: int, channels: int, *, deep: bool) -> None:
        super().__init__("random", [str(i) for i in range(count)])
        coarse = torch.rand(count, channels, 12, 12, generator=torch.Generator().manual_seed(0))
        images = torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")
        self.images = images if deep else (255 * images).round().to(torch.uint8)

    def read(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
        return self.images[i]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    pin(1)

    def views(batches: Batches, loader: Loader) -> object:
        return loader.views(batches[0][0])

    cases: dict[str, Callable[[], object]] = {}
    for name, (channels, deep) in CASES.items():
        source = InMemory(given.images, channels, deep=deep)
        batches = Batches(source, ViewsConfig(), batch=given.images, channels=channels, seed=0, deep=deep)
        law = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
        cases[name] = partial(views, batches, Loader(batches, **law, device=torch.device("cpu"), workers=0))
    timings = take_turns(cases, repeats=given.repeats)
    colours = timings["3, 8 bits"].median
    rows = [
        {"channels": name, "images/s": given.images / t.median, "times the cost of colours": t.median / colours}
        for name, t in timings.items()
    ]
    store("channels", {"images": given.images, "threads": 1, "repeats": given.repeats}, rows)


if __name__ == "__main__":
    main()
