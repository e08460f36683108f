"""Small pictures, a narrow encoder, and a call of `simdino embed` that ends in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from simdino.config import EncoderConfig
from simdino.contracts import Preprocess
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder

BATCH = 16
COUNT = 7 * BATCH - 5
BROKEN = {"b/003.png", "a/050.png", "b/051.png", f"b/{COUNT - 2:03d}.png"}
ODD = "a/caf\udce9\n.png"  # a byte that is not UTF-8, and a line break


def write_photos(folder: Path) -> Path:
    """COUNT small pictures of two classes, some of them torn, one with an odd name."""
    for i in range(COUNT - 1):
        path = folder / "ab"[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (folder / ODD).write_bytes((folder / "a/000.png").read_bytes())
    for name in BROKEN:
        (folder / name).write_bytes(b"torn")
    return folder


def toy(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    preprocess = Preprocess(resize=18, crop=16, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    narrow = EncoderConfig(name="vit_pico", image_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2)
    return make_encoder(narrow, preprocess).eval()


def quiet(line: str) -> None:
    """Say nothing."""


def numbers(path: Path) -> np.ndarray:
    return np.array(pq.read_table(path).column(2).to_pylist(), dtype=np.float32)


class Stop(Exception):
    """What ends a call in the middle."""


def stopped_after(images: int) -> Any:
    """Progress that ends the call once so many images have been embedded."""

    def progress(items: Any, what: str, total: int) -> Iterator[Any]:
        for i, item in enumerate(items):
            if i * BATCH >= images:
                raise Stop
            yield item

    return progress
