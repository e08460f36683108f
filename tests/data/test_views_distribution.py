"""Two thousand views of ours and of DINO's own transforms (torchvision v1 on PIL images) look alike: moments of their
colours and sharpness, for the first global, the second global and the local views."""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from simdino.config import ViewsConfig
from simdino.data.base import Source
from simdino.data.decode import decode
from simdino.data.loader import Batches, Loader

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from textbook import MEAN, STD, Views

pytestmark = pytest.mark.slow

IMAGES, SIZE, LOCAL = 670, 48, 24
CONFIG = ViewsConfig(local_views=1, global_size=SIZE, local_size=LOCAL)


class Photos(Source):
    """A few JPEG files again and again: what differs is drawn."""

    def __init__(self, files: list[bytes], count: int) -> None:
        super().__init__("photos", [f"{i}.jpg" for i in range(count)])
        self.files = files

    def read(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
        return decode(self.files[i % len(self.files)], self.names[i], channels=channels, at_least=at_least).pixels


def photo(seed: int) -> bytes:
    """Shading, edges and texture of a picture's size and colours."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:120, 0:160] / 120
    layers = [
        128 + 60 * np.sin(rng.uniform(2, 9) * x + rng.uniform(0, 6)) * np.cos(rng.uniform(2, 9) * y + channel)
        + 50 * ((x * rng.uniform(2, 6)).astype(int) % 2) + rng.normal(0, 12, x.shape)
        for channel in range(3)
    ]  # fmt: skip
    file = io.BytesIO()
    Image.fromarray(np.stack(layers, -1).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def statistics(views: Tensor) -> np.ndarray:
    """Of views [N, 3, h, w]: mean and deviation of each channel, colourfulness and sharpness, [N, 8]."""
    pixels = views * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)
    sharpness = pixels.diff(dim=-1).abs().mean((1, 2, 3))
    colour = (pixels - pixels.mean(1, keepdim=True)).abs().mean((1, 2, 3))
    numbers = [*pixels.mean((2, 3)).unbind(1), *pixels.std((2, 3)).unbind(1), colour, sharpness]
    return torch.stack(numbers, 1).numpy()


@pytest.fixture(scope="module")
def both() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Statistics of first global, second global and local views: ours, and the textbook's."""
    files = [photo(seed) for seed in range(10)]
    batches = Batches(Photos(files, IMAGES), CONFIG, batch=IMAGES, channels=3, seed=0)
    made = Loader(batches, mean=MEAN, std=STD, device=torch.device("cpu"), workers=0).views(batches[0][0])
    assert made.local_views is not None
    ours = [statistics(views) for views in (*made.global_views, made.local_views[0])]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random.seed(0)
        textbook = Views(size=SIZE, local_size=LOCAL, local_views=1)
        theirs = [textbook(files[i % len(files)]) for i in range(IMAGES)]
    return ours, [statistics(torch.stack(views)) for views in zip(*theirs, strict=True)]


@pytest.mark.parametrize("group", [0, 1, 2], ids=["first global", "second global", "local"])
def test_moments_and_sharpness_are_the_textbooks(both: tuple[list[np.ndarray], list[np.ndarray]], group: int) -> None:
    ours, theirs = both[0][group], both[1][group]
    error = np.sqrt(ours.var(0) / len(ours) + theirs.var(0) / len(theirs))
    apart = np.abs(ours.mean(0) - theirs.mean(0))
    assert (apart < 4 * error + 0.02 * theirs.mean(0)).all(), apart / error
    spread = ours.std(0) / theirs.std(0)
    assert ((spread > 0.85) & (spread < 1.18)).all(), spread


def test_views_without_blur_would_be_told_from_it(both: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    """The first global view is always blurred, the second hardly ever: the sharpness sees it."""
    first, second = (both[0][group][:, -1] for group in (0, 1))
    assert second.mean() > 1.3 * first.mean()
