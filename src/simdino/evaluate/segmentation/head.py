"""A linear head on frozen patch tokens that tells the class of every pixel, and its training: DINOv2's protocol.

Batch norm and a 1 x 1 convolution, the logits enlarged bilinearly (dinov2/eval/segmentation/models/decode_heads/
linear_head.py at b8931f7, trained by mmseg 0.27).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simdino.config import Precision
from simdino.contracts import InputError
from simdino.evaluate.segmentation.masks import IGNORED
from simdino.features.extract import IN_CACHE, arithmetic, patch_maps, patch_of
from simdino.models.encoder import Encoder, evaluating

LR, WEIGHT_DECAY, BETAS = 1e-3, 1e-4, (0.9, 0.999)
WARMUP, WARMUP_RATIO = 1500 / 40_000, 1e-6  # share of the steps, and of the rate at the first
STD = 0.01  # of the weights at the start
PATCHES = IN_CACHE * 14**2  # encoded at once on a CPU: as many as `features` does
LOGITS = 2**26  # enlarged at once, 256 MiB


class Segmenter(nn.Module):
    """Images float32 [N, C, H, W] of any size, normalised -> logits [N, K, h, w] of each patch of the padded images.

    The encoder is frozen and in eval mode; `head` alone is trained. layers: of how many last blocks the head reads the
    patch tokens, each after the final norm. precision: arithmetic of the encoder; the fastest on its device unless
    given; the head computes in float32.

    Raises InputError for an encoder without patches, and without so many blocks."""

    def __init__(
        self, encoder: Encoder, *, classes: int, layers: int, size: int, seed: int, precision: Precision | None = None
    ) -> None:
        super().__init__()
        self.patch, self.layers, self.classes = patch_of(encoder), layers, classes
        self.encoder = encoder.eval()
        self.device = encoder.device
        self.autocast = arithmetic(encoder, precision)
        blank = torch.zeros(1, encoder.in_chans, size, size, device=self.device)
        self.head = make_head(self.features(blank).shape[1], classes, seed=seed).to(self.device)

    def forward(self, images: Tensor) -> Tensor:
        """See above."""
        return self.head(self.features(images))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Patch tokens float32 [N, layers x D, h, w] of the padded images."""
        images = padded(images, self.patch)
        at_once = max(1, PATCHES * self.patch**2 // (images.shape[-2] * images.shape[-1]))
        with evaluating(self.encoder), self.autocast:
            parts = images.split(at_once if self.device.type == "cpu" else len(images))
            return torch.cat([self._tokens(part) for part in parts])

    def _tokens(self, images: Tensor) -> Tensor:
        maps = [patch_maps(self.encoder, tokens) for tokens in self.encoder.last_blocks(images, self.layers)]
        return torch.cat([one.permute(0, 3, 1, 2) for one in maps], dim=1)


def make_head(width: int, classes: int, *, seed: int) -> nn.Sequential:
    """Batch norm of each channel, then a 1 x 1 convolution: weights N(0, 0.01), bias 0."""
    convolution = nn.Conv2d(width, classes, 1, device="meta").to_empty(device="cpu")  # draws nothing
    nn.init.normal_(convolution.weight, std=STD, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(convolution.bias)  # pyright: ignore[reportArgumentType]
    return nn.Sequential(nn.BatchNorm2d(width), convolution)


def padding(side: int, patch: int) -> tuple[int, int]:
    """Pixels before and after a side until the patch divides it."""
    free = -side % patch
    return free // 2, free - free // 2


def padded(images: Tensor, patch: int) -> Tensor:
    """Zeros around [N, C, H, W], as many on each side, until the patch divides the sides."""
    height, width = images.shape[-2:]
    return F.pad(images, (*padding(width, patch), *padding(height, patch)))


def enlarged(logits: Tensor, sides: tuple[int, int], patch: int) -> Tensor:
    """Logits [N, K, h, w] of padded images -> [N, K, H, W] of the images of these sides, without the padding."""
    height, width = sides
    logits = F.interpolate(logits, [patch * cells for cells in logits.shape[-2:]], mode="bilinear")
    top, left = padding(height, patch)[0], padding(width, patch)[0]
    return logits[..., top : top + height, left : left + width]


def loss_and_gradient(logits: Tensor, masks: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """The cross-entropy of the enlarged logits, and its gradient with respect to `logits` [N, K, h, w].

    The mean is over all pixels, those that are ignored (255) included, as in mmseg (avg_non_ignore False): a crop half
    of which is ignored weighs half. A few images at a time, as the enlarged logits of a batch are gigabytes.

    masks: int64 [N, H, W]."""
    leaf, loss = logits.detach().requires_grad_(), logits.new_zeros(())
    sides = (masks.shape[1], masks.shape[2])
    at_once = max(1, LOGITS // (logits.shape[1] * sides[0] * sides[1]))
    for part, truth in zip(leaf.split(at_once), masks.split(at_once), strict=True):
        grown = enlarged(part, sides, patch)
        share = F.cross_entropy(grown, truth, ignore_index=IGNORED, reduction="sum") / masks.numel()
        share.backward()
        loss += share.detach()
    assert leaf.grad is not None
    return loss, leaf.grad


def poly(step: int, steps: int) -> float:
    """The learning rate's share at a step, the first is 0: a line from 1 to 0 at `steps`, and over the first 3.75 %
    (1,500 of 40,000) a line from 1e-6 to 1 times that (mmcv's poly policy of power 1 with linear warm-up)."""
    share, warmup = 1 - step / steps, round(WARMUP * steps)
    return share * (1 - (1 - step / warmup) * (1 - WARMUP_RATIO)) if step < warmup else share


def train_head(model: Segmenter, batches: Iterable[tuple[Tensor, Tensor]], *, steps: int, lr: float = LR) -> float:
    """Train the head by AdamW on `steps` batches of crops float32 [B, C, S, S] and masks int64 [B, S, S]: the last
    loss. Raises InputError when it is no longer finite."""
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY)
    model.head.train()
    loss = torch.tensor(0.0)
    for step, (crops, masks) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = lr * poly(step, steps)
        logits = model(crops.to(model.device))
        loss, gradient = loss_and_gradient(logits, masks.to(model.device), model.patch)
        optimizer.zero_grad()
        logits.backward(gradient)
        optimizer.step()
    model.head.eval()
    if not loss.isfinite():
        name = model.encoder.config.name
        raise InputError(f"segment: the loss is {float(loss)}: the patch tokens of encoder {name} are not all finite")
    return float(loss)
