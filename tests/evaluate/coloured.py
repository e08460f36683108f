"""Small encoders and sets of images whose classes are colours: what the tests of protocols with labels share."""

from __future__ import annotations

import numpy as np
import torch

from simdino.config import EncoderConfig
from simdino.contracts import Preprocess
from simdino.data.base import ArraySource
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder

COLOURS = {"blue": (60, 60, 200), "green": (60, 200, 60), "red": (200, 60, 60)}
PREPROCESS = Preprocess(resize=9, crop=8, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3)


def make(name: str = "vit", *, depth: int = 5, drop_path: float = 0.0) -> Encoder:
    """A narrow ViT (or another encoder by name) with random weights."""
    torch.manual_seed(3)
    shape = {"embed_dim": 16, "depth": depth, "num_heads": 2, "patch_size": 4} if name == "vit" else {"patch_size": 4}
    if name.startswith("timm:"):
        shape = {}
    return make_encoder(EncoderConfig(name=name, image_size=8, drop_path=drop_path, **shape), PREPROCESS).eval()


def colours(each: int, *, seed: int, name: str = "colours", classes: int = 3, spread: int = 30) -> ArraySource:
    """`each` images of each colour, in turn."""
    random = np.random.default_rng(seed)
    labels = np.arange(each * classes) % classes
    means = np.array(list(COLOURS.values())[:classes])[labels]
    noise = random.integers(-spread, spread + 1, (len(labels), 10, 12, 3))
    images = (means[:, None, None] + noise).clip(0, 255).astype(np.uint8)
    names = [f"{name}/{seed}/{i}" for i in range(len(labels))]
    return ArraySource(name, images, names, labels, list(COLOURS)[:classes])


def both(each: int = 16, **about: int) -> tuple[ArraySource, ArraySource]:
    """Training and validation images."""
    return colours(each, seed=0, **about), colours(7, seed=1, **about)
