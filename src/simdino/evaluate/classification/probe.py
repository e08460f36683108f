"""Grids of linear heads trained side by side on frozen features, and the recipes of DINO, DINOv2 and SimDINOv2.

DINO: eval_linear.py at 7c446df. DINOv2: dinov2/eval/linear.py at b8931f7. SimDINOv2: simdinov2/eval/linear.py at
8149fc4. One forward pass of the encoder serves all heads of a grid."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simdino.config import Interpolation, Precision
from simdino.contracts import InputError
from simdino.cosine import cosine
from simdino.evaluate.classification.classifier import Classifier
from simdino.evaluate.classification.training import STD, Length
from simdino.features.readout import Layers, Reader, readable
from simdino.feedback import Log
from simdino.models.encoder import Encoder

MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe: each of `layers` is read by a head for each of `rates`, the learning rates at a batch of 256."""

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


def layers_of(encoder: Encoder, protocol: str, *, avgpool: bool, log: Log) -> list[Layers]:
    """What the heads of a protocol read, as far as the encoder has it. avgpool: dino's other choice. Raises InputError
    where that has no effect, or needs patches that the encoder lacks."""
    if avgpool and protocol != "dino":
        raise InputError(f"--avgpool has no effect here: {protocol} says itself which heads read the mean patch")
    found = readable(encoder, [Layers(avgpool=True)] if avgpool else RECIPES[protocol].layers, log=log)
    if avgpool and not found[0].avgpool:
        raise InputError(f"--avgpool: encoder {encoder.config.name} has no patches to take the mean of")
    return found


class Stack:
    """H linear heads with K classes that read the same features and differ in their learning rate. Each is what
    torch.nn.Linear trained alone by torch.optim.SGD(momentum=0.9) on the mean cross-entropy is.

    Their weights lie in one tensor [H, K, width], so that the logits of all are one matrix product and their gradients
    another, added to the momentum where it lies: the gradient of a cross-entropy is softmax minus one-hot, no graph is
    needed."""

    def __init__(
        self, rates: Sequence[float], *, width: int, classes: int, device: torch.device, random: torch.Generator
    ) -> None:
        self.rates = torch.tensor(rates, device=device)
        weight = torch.empty(len(rates), classes, width).normal_(std=STD, generator=random)
        self.weight, self.bias = weight.to(device), torch.zeros(len(rates), classes, device=device)
        self.weight_momentum, self.bias_momentum = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    def logits(self, features: Tensor) -> Tensor:
        """float32 [N, width] -> [N, H, K]."""
        flat = torch.addmm(self.bias.flatten(), features, self.weight.flatten(0, 1).T)
        return flat.unflatten(1, self.bias.shape)

    def step(self, features: Tensor, labels: Tensor, *, share: float) -> None:
        """One step of SGD of every head at `share` of its learning rate.

        features: float32 [N, width]. labels: int64 [N]."""
        error = self.logits(features).softmax(-1)
        error[torch.arange(len(labels), device=labels.device), :, labels] -= 1
        error /= len(labels)
        self.weight_momentum.flatten(0, 1).addmm_(error.flatten(1).T, features, beta=MOMENTUM)
        self.bias_momentum.mul_(MOMENTUM).add_(error.sum(0))
        rates = (-share * self.rates)[:, None]
        self.weight.addcmul_(self.weight_momentum, rates[..., None])
        self.bias.addcmul_(self.bias_momentum, rates)


@dataclass(frozen=True, kw_only=True)
class HeadScore:
    """One head of a grid. Accuracies in percent, on the validation images."""

    blocks: int  # whose class tokens it reads
    avgpool: bool  # and the mean patch
    lr: float  # its own at the start: the protocol's times batch / 256
    top1: float
    top5: float

    def __str__(self) -> str:
        return f"{Layers(blocks=self.blocks, avgpool=self.avgpool)}, lr {self.lr:.3g}"


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
