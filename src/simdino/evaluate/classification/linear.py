"""Linear probes: heads on frozen features of random crops, the protocols of DINO, DINOv2 and SimDINOv2.

DINO: eval_linear.py at 7c446df. DINOv2: dinov2/eval/linear.py at b8931f7. SimDINOv2: simdinov2/eval/linear.py at
8149fc4. One forward pass of the encoder serves all heads of a grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simdino.config import Interpolation, Precision
from simdino.contracts import InputError
from simdino.cosine import cosine
from simdino.data.base import Source
from simdino.evaluate.classification.classifier import Classifier
from simdino.evaluate.classification.heads import Stack
from simdino.evaluate.classification.training import Data, Length, batches, labelled, same_classes, score
from simdino.features.extract import Progress, unwatched
from simdino.features.readout import Layers, Reader, readable
from simdino.models.encoder import Encoder
from simdino.models.weights import to_stderr


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A protocol: each of `layers` is read by a head for each of `rates`, the learning rates at a batch of 256."""

    layers: tuple[Layers, ...]
    rates: tuple[float, ...]
    epochs: int
    per_step: bool  # whether the cosine moves every step, or every epoch
    interpolation: Interpolation = "bicubic"  # of the crops that heads are trained on


RECIPES: dict[str, Recipe] = {
    "dino": Recipe(layers=(Layers(blocks=4),), rates=(1e-3,), epochs=100, per_step=False, interpolation="bilinear"),
    "dinov2": Recipe(
        layers=tuple(Layers(blocks=n, avgpool=mean) for n in (1, 4) for mean in (False, True)),
        rates=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1),
        epochs=10, per_step=True,
    ),
    "simdinov2": Recipe(
        layers=tuple(Layers(blocks=n, avgpool=True) for n in (1, 2)),
        rates=(2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2),
        epochs=10, per_step=True,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HeadScore:
    """One head of a grid. Accuracies in percent, on the held-out images."""

    blocks: int  # whose class tokens it reads
    avgpool: bool  # and the mean patch
    lr: float  # its own at the start: the protocol's times batch / 256
    top1: float
    top5: float

    def __str__(self) -> str:
        return f"{Layers(blocks=self.blocks, avgpool=self.avgpool)}, lr {self.lr:.3g}"


@dataclass(frozen=True, kw_only=True)
class LinearResult:
    """What linear heads reach. Accuracies in percent; `top1` and `top5` are the best head's on `reported_on`."""

    protocol: str
    top1: float
    top5: float
    best: HeadScore
    heads: list[HeadScore]
    chosen_on: str
    reported_on: str
    train_images: int
    held_out_images: int
    test_images: int | None
    batch: int
    steps: int
    broken: dict[str, str]
    classifier: Classifier = field(repr=False, compare=False)

    def __str__(self) -> str:
        chosen = f"best of {len(self.heads)} heads: {self.best}" if len(self.heads) > 1 else str(self.best)
        same = self.reported_on == self.chosen_on and len(self.heads) > 1
        return (
            f"linear, {self.protocol}, {self.steps} steps of {self.batch} images: {self.top1:.2f} % (top-5 "
            f"{self.top5:.2f} %) on {self.reported_on}; {chosen}{', chosen on these images' if same else ''}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without the classifier."""
        shown = {name: value for name, value in vars(self).items() if name != "classifier"}
        return shown | {"best": asdict(self.best), "heads": [asdict(head) for head in self.heads]}


def linear(
    encoder: Encoder, data: Data, *,
    protocol: str = "dinov2", avgpool: bool = False, epochs: float | None = None, steps: int | None = None,
    batch: int | None = None, test: str | Path | Source | None = None, seed: int = 0,
    precision: Precision | None = None, workers: int = 0,
    log: Callable[[str], None] = to_stderr, progress: Progress = unwatched,
) -> LinearResult:  # fmt: skip
    """Train linear heads on the frozen encoder's features and score them on held-out images.

    SGD with momentum 0.9 and no weight decay on the cross-entropy of random crops and flips, cosine to 0:

    - "dino": one head on the class tokens of the last 4 blocks, or with `avgpool` on the class token of the last block
      and the mean of its patches; lr 0.001 batch/256, 100 epochs, the cosine moves once an epoch; crops are bilinear,
      where those of the others are bicubic;
    - "dinov2": 52 heads: last 1 or 4 blocks, with or without the mean patch, 13 learning rates from 1e-5 to 0.1 times
      batch/256; 10 epochs, the cosine moves every step;
    - "simdinov2": 16 heads: last 1 or 2 blocks with the mean patch, 8 learning rates from 2e-4 to 0.05.

    An encoder without so many blocks, or without patches, is read as far as it goes, which is said in a line. The best
    head of a grid is chosen on the held-out images and reported on the same ones, as DINOv2 does: a little too well.
    test: further labelled images of the same classes, on which the chosen head is reported instead.

    epochs or steps: the length. batch: 128 unless given, halved for small data until an epoch has 30 steps, but not
    below 16. precision: arithmetic of the encoder; heads are float32. The encoder is left in eval mode.

    Raises InputError for an unknown protocol, without labels or held-out images, with one class only, and where
    `avgpool` is asked of another protocol or of an encoder without patches.
    """
    if protocol not in RECIPES:
        raise InputError(f"unknown protocol {protocol!r} of linear heads: give one of {', '.join(RECIPES)}")
    if avgpool and protocol != "dino":
        raise InputError(f"--avgpool has no effect here: {protocol} says itself which heads read the mean patch")
    recipe = RECIPES[protocol]
    train, held_out = labelled(data, task="linear")
    tested = None if test is None else same_classes(test, train.classes, task="--test")
    length = Length.of(len(train), epochs=epochs, steps=steps, batch=batch, usual=recipe.epochs)
    layers = readable(encoder, [Layers(avgpool=True)] if avgpool else recipe.layers, log=log)
    if avgpool and not layers[0].avgpool:
        raise InputError(f"--avgpool: encoder {encoder.config.name} has no patches to take the mean of")
    probe = Probe(encoder, layers, recipe, classes=len(train.classes), length=length, seed=seed, precision=precision)

    broken: dict[str, str] = {}
    place: dict[str, Any] = {"device": probe.reader.device, "workers": workers, "broken": broken}
    stream = batches(train, encoder.preprocess, length, seed=seed, interpolation=recipe.interpolation, **place)
    for step, (images, labels, _) in enumerate(progress(stream, f"linear heads on {train.name}", length.steps)):
        probe.step(images, labels, step)
    heads = probe.heads(*score(probe.logits, held_out, encoder.preprocess, progress=progress, **place))
    number = max(range(len(heads)), key=lambda i: heads[i].top1)
    best, classifier = heads[number], probe.classifier(number, train.classes)
    top1, top5 = best.top1, best.top5
    if tested is not None:
        (top1,), (top5,) = score(classifier.each, tested, encoder.preprocess, progress=progress, **place)
    return LinearResult(
        protocol=protocol, top1=top1, top5=top5, best=best, heads=heads,
        chosen_on="held-out images", reported_on="held-out images" if tested is None else f"images of {tested.name}",
        train_images=len(train), held_out_images=len(held_out), test_images=None if tested is None else len(tested),
        batch=length.batch, steps=length.steps, broken=broken, classifier=classifier,
    )  # fmt: skip


class Probe:
    """All heads of a grid and the encoder they read: a stack of heads for each of the layers."""

    def __init__(
        self, encoder: Encoder, layers: list[Layers], recipe: Recipe, *,
        classes: int, length: Length, seed: int, precision: Precision | None,
    ) -> None:  # fmt: skip
        self.reader = Reader(encoder, layers, precision=precision)
        self.recipe, self.length = recipe, length
        self.rates = [rate * length.batch / 256 for rate in recipe.rates]
        random = torch.Generator().manual_seed(seed)
        self.stacks = [
            Stack(self.rates, width=width, classes=classes, device=self.reader.device, random=random)
            for width in self.reader.widths()
        ]

    @torch.no_grad()
    def step(self, images: Tensor, labels: Tensor, step: int) -> None:
        """Train every head on one batch; `step` is its number."""
        moved = step if self.recipe.per_step else step - step % self.length.steps_per_epoch
        share = cosine(moved, self.length.steps, start=1.0, end=0.0)
        for stack, features in zip(self.stacks, self.reader(images), strict=True):
            stack.step(features, labels, share=share)

    def logits(self, images: Tensor) -> Tensor:
        """Of every head: [N, heads, K], those of the first stack first."""
        found = zip(self.stacks, self.reader(images), strict=True)
        return torch.cat([stack.logits(features) for stack, features in found], dim=1)

    def heads(self, top1: list[float], top5: list[float]) -> list[HeadScore]:
        """What the heads are and what they reach, in the order of `logits`."""
        kinds = [(layers, rate) for layers in self.reader.layers for rate in self.rates]
        return [
            HeadScore(blocks=layers.blocks, avgpool=layers.avgpool, lr=rate, top1=first, top5=five)
            for (layers, rate), first, five in zip(kinds, top1, top5, strict=True)
        ]

    def classifier(self, number: int, classes: tuple[str, ...]) -> Classifier:
        """A head by its number in `logits`, with its encoder."""
        which, head = divmod(number, len(self.rates))
        stack = self.stacks[which]
        return Classifier(
            encoder=self.reader.encoder, layers=self.reader.layers[which], classes=classes,
            weight=stack.weight[head].clone(), bias=stack.bias[head].clone(),
        )  # fmt: skip
