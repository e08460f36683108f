"""Training with labels: how long it takes, batches of crops, an encoder trained with a head, and the score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simdino.config import Interpolation, Precision, ViewsConfig
from simdino.contracts import InputError
from simdino.cosine import warmup_cosine
from simdino.data.base import Source
from simdino.data.loader import Batches, Loader
from simdino.device import make_autocast
from simdino.features.extract import BATCH, collected, inputs, prepared
from simdino.feedback import Log, Progress
from simdino.models.encoder import Encoder
from simdino.models.groups import parameter_groups, set_values
from simdino.models.layers import drop_rates

FULL_BATCH, SMALL_BATCH, STEPS_PER_EPOCH = 128, 16, 30
AT_ONCE = 64  # images scored at once: the logits of a grid are many
BETAS = (0.9, 0.999)
STD = 0.01  # of a head's weights at the start


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long something is trained: `steps` batches of `batch` images, `steps_per_epoch` of them an epoch."""

    batch: int
    steps: int
    steps_per_epoch: int

    @classmethod
    def of(
        cls, images: int, *, epochs: float | None, steps: int | None, batch: int | None, usual: float
    ) -> Length:  # fmt: skip
        """From what a person gave; `usual` epochs of batches of 128 images unless given, halved for small data until
        an epoch has 30 of them, but not below 16. Raises InputError for steps and epochs together."""
        if epochs is not None and steps is not None:
            raise InputError("give one of --steps and --epochs")
        if batch is None:
            batch = FULL_BATCH
            while batch > SMALL_BATCH and images // batch < STEPS_PER_EPOCH:
                batch //= 2
            batch = min(batch, images)
        per_epoch = max(1, images // batch)
        steps = steps or max(1, round((epochs or usual) * per_epoch))
        return cls(batch=batch, steps=steps, steps_per_epoch=per_epoch)


def batches(
    source: Source, encoder: Encoder, length: Length, *,
    seed: int, workers: int, broken: dict[str, str], interpolation: Interpolation = "bicubic",
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
    """Yields (crops float32 [B, C, H, W] as the encoder takes them, labels int64 [B], both on its device, keys int64
    [B]).

    Each crop is 0.08 to 1 of its image's area at an aspect of 3/4 to 4/3 and half of them are mirrored
    (torchvision's RandomResizedCrop and flip), drawn from the image's counter: the same for any number of workers. A
    broken image is replaced by another and noted in `broken`."""
    assert source.labels is not None
    preprocess, device = encoder.preprocess, encoder.device
    config = ViewsConfig(
        global_views=1, local_views=0, global_size=preprocess.crop, global_scale=(0.08, 1.0), jitter=0.0, grey=0.0,
        blur=(0.0, 0.0, 0.0), solarize=(0.0, 0.0, 0.0), interpolation=interpolation,
    )  # fmt: skip
    labels = torch.from_numpy(source.labels)
    stream = Batches(
        source.with_values(preprocess.values), config, batch=length.batch, channels=preprocess.channels, seed=seed,
        deep=preprocess.values is not None, whole=True,
    )  # fmt: skip
    loader = Loader(stream, mean=preprocess.mean, std=preprocess.std, device=device, workers=workers)
    for views, unreadable in loader.steps(0, length.steps):
        broken |= {source.names[i]: reason for i, reason in unreadable.items()}
        yield views.global_views[0], labels[views.ids].to(device), views.keys


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


def set_drop_path(encoder: Encoder, rate: float, *, log: Log) -> float:
    """Give the blocks their drop rates; the rate that the encoder then has, which is 0 where it drops none by keys."""
    if encoder.rates is not None:
        encoder.rates = drop_rates(encoder.depth, rate, encoder.config.drop_path_rule)
        return rate
    if rate:
        log(f"encoder {encoder.config.name} has no drop path that could be drawn per image: it trains without")
    return 0.0


def fine_tune(
    model: EncoderWithHead, stream: Iterable[tuple[Tensor, Tensor, Tensor]], length: Length, *,
    lr: float, layer_decay: float, weight_decay: float, warmup: int, label_smoothing: float, precision: Precision,
) -> float:  # fmt: skip
    """Train encoder and head on (images, labels, keys) of every step: the last loss.

    lr: the head's at its peak, after `warmup` steps. Raises InputError when the loss at the end of an epoch is no
    longer finite."""
    device = model.encoder.device
    autocast = make_autocast(device, precision)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    groups = parameter_groups(model, layer_decay=layer_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=True)
    loss = torch.tensor(0.0)
    for step, (images, labels, keys) in enumerate(stream, start=1):
        rate = warmup_cosine(step, length.steps + 1, warmup=max(1, warmup), peak=lr, end=0.0)
        set_values(optimizer, lr=rate, weight_decay=weight_decay)
        with autocast:
            logits = model(images, keys)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if step % length.steps_per_epoch == 0 or step == length.steps:
            check_finite(loss, step)
    return loss.item()


def check_finite(loss: Tensor, steps: int) -> None:
    """Raise InputError for a loss that is none: too large a learning rate."""
    if not loss.isfinite():
        raise InputError(f"fine-tuning diverged: the loss is {loss.item()} after {steps} steps; give a smaller --lr")


def score(
    predict: Callable[[Tensor], Tensor], source: Source, encoder: Encoder, *,
    workers: int, progress: Progress, broken: dict[str, str],
) -> tuple[list[float], list[float]]:  # fmt: skip
    """Top-1 and top-5 accuracies in percent, of each of H classifiers, on the readable images of a source.

    predict: images float32 [N, C, H, W], prepared for the encoder without randomness -> logits [N, H, K]. With fewer
    than five classes top-5 counts all of them. Raises InputError where no image can be read."""

    def answers(images: Tensor) -> Tensor:
        return torch.cat([ranked(predict(part)).cpu() for part in inputs(encoder, images).split(AT_ONCE)])

    stream = prepared(source, encoder.preprocess, workers=workers)
    stream = progress(stream, f"scores on {source.name}", ceil(len(source) / BATCH))
    found = collected(source, stream, answers)
    broken |= found.broken
    assert found.labels is not None
    right = found.vectors == torch.from_numpy(found.labels)[:, None, None]
    hits = torch.stack([right[..., 0], right.any(-1)]).sum(1).double()  # [2, H]
    top1, top5 = (100 * hits / len(found)).tolist()
    return top1, top5


def ranked(logits: Tensor) -> Tensor:
    """The likeliest five classes, int64 [N, H, 5 or K] of logits [N, H, K]. Where a logit is not finite, as those of a
    diverged head, all are -1: the answer is wrong."""
    best = logits.topk(min(5, logits.shape[-1])).indices
    return best.where(logits.isfinite().all(-1, keepdim=True), -1)
