"""Fine-tuning: the whole encoder and a linear head, trained on labels.

The recipe that BEiT and MAE made usual: AdamW, learning rates that fall from layer to layer towards the stem, warm-up
and cosine, label smoothing, drop path."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simdino.config import Precision
from simdino.contracts import InputError
from simdino.cosine import warmup_cosine
from simdino.evaluate.classification.classifier import Classifier
from simdino.evaluate.classification.heads import STD
from simdino.evaluate.classification.training import Data, Length, batches, labelled, score
from simdino.features.extract import Progress, unwatched
from simdino.features.readout import Layers
from simdino.models.encoder import Encoder
from simdino.models.groups import parameter_groups, set_values
from simdino.models.layers import drop_rates
from simdino.models.vit import PatchTransformer
from simdino.models.weights import to_stderr
from simdino.precision import fastest, make_autocast

EPOCHS = 30
BETAS = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What a fine-tuned encoder reaches on the held-out images after the last step. Accuracies in percent."""

    top1: float
    top5: float
    loss: float  # the smoothed cross-entropy of the last batch
    train_images: int
    held_out_images: int
    batch: int
    steps: int
    lr: float  # of the head at its peak
    layer_decay: float
    drop_path: float
    broken: dict[str, str]
    classifier: Classifier = field(repr=False, compare=False)

    def __str__(self) -> str:
        return (
            f"fine-tuned: {self.top1:.2f} % (top-5 {self.top5:.2f} %) of {self.held_out_images} held-out images after "
            f"{self.steps} steps of {self.batch} of the {self.train_images} training images"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without the classifier."""
        return {name: value for name, value in vars(self).items() if name != "classifier"}


class Labelled(nn.Module):
    """An encoder and a linear head on its class token."""

    def __init__(self, encoder: Encoder, *, classes: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.embed_dim, classes, device="meta").to_empty(device="cpu")  # draws nothing
        nn.init.normal_(self.head.weight, std=STD, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, keys: Tensor) -> Tensor:
        """Logits [N, K]. keys: int64 [N], which say what drop path drops."""
        return self.head(self.encoder(images, keys=keys, patches=False).cls)


def finetune(
    encoder: Encoder, data: Data, *,
    epochs: float | None = None, steps: int | None = None, batch: int | None = None, lr: float = 1e-3,
    layer_decay: float = 0.75, weight_decay: float = 0.05, warmup: float = 0.1, label_smoothing: float = 0.1,
    drop_path: float = 0.1, seed: int = 0, precision: Precision | None = None, workers: int = 0,
    log: Callable[[str], None] = to_stderr, progress: Progress = unwatched,
) -> FinetuneResult:  # fmt: skip
    """Train a copy of the encoder and a new linear head on labels, and score it on held-out images.

    Random crops (8 % of the area and up) and flips, cross-entropy, AdamW; the last step's weights are scored, none are
    chosen.

    epochs or steps: the length, 30 epochs unless given. batch: 128 unless given, halved for small data until an epoch
    has 30 steps, but not below 16. lr: the head's at its peak, times batch/256. layer_decay: the learning rate of a
    layer by that of the layer after it. weight_decay: of matrices and tokens. warmup: share of the steps until the
    peak. smoothing: share of the label that goes to all classes alike. drop_path: of the last block, falling to 0 at
    the first; models of timm have none. precision: the fastest on the encoder's device unless given.

    Raises InputError without labels or held-out images, with one class only, for settings out of range, and when the
    loss is no longer finite.
    """
    check_shares(warmup=warmup, label_smoothing=label_smoothing, drop_path=drop_path)
    check_rates(lr=lr, layer_decay=layer_decay, weight_decay=weight_decay)
    train, held_out = labelled(data, task="finetune")
    length = Length.of(len(train), epochs=epochs, steps=steps, batch=batch, usual=EPOCHS)
    device, preprocess = next(encoder.parameters()).device, encoder.preprocess
    model = Labelled(copy.deepcopy(encoder), classes=len(train.classes), seed=seed).to(device).train()
    drop_path = set_drop_path(model.encoder, drop_path, log=log)
    trainer = Trainer(
        model, length, lr=lr * length.batch / 256, layer_decay=layer_decay, weight_decay=weight_decay,
        warmup=round(warmup * length.steps), label_smoothing=label_smoothing,
        precision=precision or fastest(str(device)),
    )  # fmt: skip
    broken: dict[str, str] = {}
    place: dict[str, Any] = {"device": device, "workers": workers, "broken": broken}
    stream, loss = batches(train, preprocess, length, seed=seed, **place), torch.tensor(0.0)
    for step, (images, labels, keys) in enumerate(progress(stream, f"fine-tuning on {train.name}", length.steps)):
        loss = trainer.step(images, labels, keys, step)
        if (step + 1) % length.steps_per_epoch == 0 or step + 1 == length.steps:
            check_finite(loss, step + 1)
    classifier = Classifier(
        encoder=model.encoder.eval(), layers=Layers(), classes=train.classes,
        weight=model.head.weight.detach(), bias=model.head.bias.detach(),
    )  # fmt: skip
    (top1,), (top5,) = score(classifier.each, held_out, preprocess, progress=progress, **place)
    return FinetuneResult(
        top1=top1, top5=top5, loss=float(loss), train_images=len(train), held_out_images=len(held_out),
        batch=length.batch, steps=length.steps, lr=trainer.lr, layer_decay=layer_decay, drop_path=drop_path,
        broken=broken, classifier=classifier,
    )  # fmt: skip


def check_finite(loss: Tensor, steps: int) -> None:
    """Raise InputError for a loss that is none: too large a learning rate."""
    if not loss.isfinite():
        raise InputError(f"fine-tuning diverged: the loss is {float(loss)} after {steps} steps; give a smaller --lr")


def check_shares(**shares: float) -> None:
    """Raise InputError for a number that is no share."""
    for word, value in shares.items():
        if not 0 <= value < 1:
            raise InputError(f"--{word.replace('_', '-')} {value} must be 0 or more and below 1")


def check_rates(*, lr: float, layer_decay: float, weight_decay: float) -> None:
    """Raise InputError for a number out of its range."""
    if not 0 < lr < inf:
        raise InputError(f"--lr {lr} must be above 0")
    if not 0 < layer_decay <= 1:
        raise InputError(f"--layer-decay {layer_decay} must be above 0 and at most 1")
    if not 0 <= weight_decay < inf:
        raise InputError(f"--weight-decay {weight_decay} must be 0 or more")


def set_drop_path(encoder: Encoder, rate: float, *, log: Callable[[str], None]) -> float:
    """Give the blocks their drop rates; the rate that the encoder then has, which is 0 for models of timm."""
    if isinstance(encoder, PatchTransformer):
        encoder.rates = drop_rates(encoder.depth, rate, encoder.config.drop_path_rule)
        return rate
    if rate:
        log(f"encoder {encoder.config.name} has no drop path that could be drawn per image: it trains without")
    return 0.0


class Trainer:
    """The optimizer of a `Labelled` and its schedule. `lr` is the head's at its peak."""

    def __init__(
        self, model: Labelled, length: Length, *,
        lr: float, layer_decay: float, weight_decay: float, warmup: int, label_smoothing: float, precision: Precision,
    ) -> None:  # fmt: skip
        self.model, self.length, self.lr, self.weight_decay = model, length, lr, weight_decay
        self.warmup, self.label_smoothing = warmup, label_smoothing
        device = next(model.parameters()).device
        self.autocast = make_autocast(device, precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        groups = parameter_groups(model, layer_decay=layer_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=True)

    def step(self, images: Tensor, labels: Tensor, keys: Tensor, step: int) -> Tensor:
        """Train on one batch, the `step`-th from 0: the loss."""
        lr = warmup_cosine(step + 1, self.length.steps + 1, warmup=max(1, self.warmup), peak=self.lr, end=0.0)
        set_values(self.optimizer, lr=lr, weight_decay=self.weight_decay)
        with self.autocast:
            logits = self.model(images, keys)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()
