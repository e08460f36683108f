"""Seconds of a training step of DINOv2's 52 linear heads beside one head, the encoder's forward pass included.

    python benchmarks/linear.py

A ViT-S/16 with random weights in its fastest precision, a batch of 64 prepared images, one thread. One head is what
DINO trains: on the class tokens of the last 4 blocks. Beside them the same 52 heads as modules of torch with one
SGD of 52 groups, as DINOv2's linear.py at b8931f7 has them. Stores benchmarks/results/linear.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product

import torch
from timing import pin, store, take_turns
from torch import Tensor, nn
from torch.nn import functional as F

from simdino.config import EncoderConfig
from simdino.contracts import Preprocess
from simdino.evaluate.classification.probe import RECIPES, Probe
from simdino.evaluate.classification.training import Length
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder

BATCH = 64
LENGTH = Length(batch=BATCH, steps=1000, steps_per_epoch=100)


def encoder_for(size: int) -> Encoder:
    config = EncoderConfig(name="vit_small", image_size=size, patch_size=16)
    preprocess = Preprocess(resize=size, crop=size, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    return make_encoder(config, preprocess).eval()


def probe(encoder: Encoder, protocol: str, classes: int) -> Probe:
    recipe = RECIPES[protocol]
    layers = list(recipe.layers)
    return Probe(encoder, layers, recipe, classes=classes, length=LENGTH, seed=0, precision=None)


def written_out(encoder: Encoder, images: Tensor, labels: Tensor, classes: int) -> Callable[[], object]:
    """A step of 52 modules, their losses summed."""
    recipe, reader = RECIPES["dinov2"], probe(encoder, "dinov2", classes).reader
    heads = [[nn.Linear(width, classes) for _ in recipe.rates] for width in reader.widths()]
    groups = [
        {"params": head.parameters(), "lr": rate * BATCH / 256}
        for stack in heads
        for head, rate in zip(stack, recipe.rates, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        features = reader(images)
        pairs = [(head, x) for stack, x in zip(heads, features, strict=True) for head in stack]
        torch.stack([F.cross_entropy(head(x), labels) for head, x in pairs]).sum().backward()
        optimizer.step()

    return step


def rows_of(size: int, classes: int, *, repeats: int) -> list[dict[str, object]]:
    encoder = encoder_for(size)
    images, labels = torch.randn(BATCH, 3, size, size), torch.randint(classes, (BATCH,))
    one, grid = probe(encoder, "dino", classes), probe(encoder, "dinov2", classes)
    cases: dict[str, Callable[[], object]] = {
        "1 head": lambda: one.step(images, labels, 0),
        "52 heads, stacked (ours)": lambda: grid.step(images, labels, 0),
        "52 heads, as modules": written_out(encoder, images, labels, classes),
        "the encoder alone": lambda: grid.reader(images),
    }
    timings = take_turns(cases, repeats=repeats)
    return [
        {
            "image": size, "classes": classes, "what": name, "seconds a step": t.median,
            "fastest and slowest": f"{t.low:.3f} to {t.high:.3f}",
            "times one head": t.median / timings["1 head"].median,
        }
        for name, t in timings.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 224])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    pin(1)
    torch.manual_seed(0)
    cases = product(given.sizes, given.classes)
    rows = [row for size, classes in cases for row in rows_of(size, classes, repeats=given.repeats)]
    settings = {"encoder": "vit_small/16", "batch": BATCH, "classes": given.classes, "sizes": given.sizes}
    store("linear", {**settings, "threads": 1, "repeats": given.repeats}, rows)


if __name__ == "__main__":
    main()
