"""An encoder with a head in training: its optimizer, schedule and drop path."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simdino.config import Precision
from simdino.contracts import InputError
from simdino.cosine import warmup_cosine
from simdino.device import make_autocast
from simdino.evaluate.classification.heads import STD
from simdino.evaluate.classification.training import Length
from simdino.feedback import Log
from simdino.models.encoder import Encoder
from simdino.models.groups import parameter_groups, set_values
from simdino.models.layers import drop_rates
from simdino.models.vit import PatchTransformer

BETAS = (0.9, 0.999)


class EncoderWithHead(nn.Module):
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


def check_finite(loss: Tensor, steps: int) -> None:
    """Raise InputError for a loss that is none: too large a learning rate."""
    if not loss.isfinite():
        raise InputError(f"fine-tuning diverged: the loss is {float(loss)} after {steps} steps; give a smaller --lr")


def set_drop_path(encoder: Encoder, rate: float, *, log: Log) -> float:
    """Give the blocks their drop rates; the rate that the encoder then has, which is 0 for models of timm."""
    if isinstance(encoder, PatchTransformer):
        encoder.rates = drop_rates(encoder.depth, rate, encoder.config.drop_path_rule)
        return rate
    if rate:
        log(f"encoder {encoder.config.name} has no drop path that could be drawn per image: it trains without")
    return 0.0


class Trainer:
    """The optimizer of an `EncoderWithHead` and its schedule. `lr` is the head's at its peak."""

    def __init__(
        self, model: EncoderWithHead, length: Length, *,
        lr: float, layer_decay: float, weight_decay: float, warmup: int, label_smoothing: float, precision: Precision,
    ) -> None:  # fmt: skip
        self.model, self.length, self.lr, self.weight_decay = model, length, lr, weight_decay
        self.warmup, self.label_smoothing = warmup, label_smoothing
        device = model.encoder.device
        self.autocast = make_autocast(device, precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        groups = parameter_groups(model, layer_decay=layer_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=True)

    def train(self, stream: Iterable[tuple[Tensor, Tensor, Tensor]]) -> float:
        """Train on (images, labels, keys) of every step: the last loss. Raises InputError when one at the end of an
        epoch is no longer finite."""
        loss = torch.tensor(0.0)
        for step, (images, labels, keys) in enumerate(stream):
            loss = self.step(images, labels, keys, step)
            if (step + 1) % self.length.steps_per_epoch == 0 or step + 1 == self.length.steps:
                check_finite(loss, step + 1)
        return float(loss)

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
