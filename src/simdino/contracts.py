"""The values that flow between the parts.

    images -> Views -> Tokens -> Embeddings -> Loss

Letters used in every shape: V = G + M views (G global, M local), B images in the batch of one process, n images in the
global batch, N images fed to an encoder at once, P patches, S register tokens, D encoder width, d embedding dimension,
C channels, H W pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from simdino.errors import InputError as InputError  # noqa: PLC0414 (part of the contracts)
from simdino.settings import VALUES, Range, Values, setting

AllReduce = Callable[[Tensor], Tensor]
"""A differentiable sum over processes. Every sum over samples in a loss goes through one."""


def identity(x: Tensor) -> Tensor:
    """Return x: the all_reduce of a single process."""
    return x


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes an encoder's input when nothing is random: the short side is resized to `resize` pixels, the
    centre is cropped to `crop` pixels, and each channel is normalised by mean and std, for pixels in [0, 1]. It is
    stored with the weights.

    values: those of the training images that became 0 and 1, where they had more than 8 bits; further deep images are
    scaled alike. None: there were none, and images are of 8 bits."""

    resize: int = setting(text="Short side in pixels.", range=Range(1, 2**16))
    crop: int = setting(text="Side of the square in pixels.", range=Range(1, 2**16))
    channels: int = setting(text="Channels of the input.", range=Range(1, 1024))
    mean: tuple[float, ...] = setting(text="Mean of each channel.", range=Range(-10, 10))
    std: tuple[float, ...] = setting(text="Std of each channel.", range=Range(above=0, at_most=10))
    values: Values | None = setting(None, "Values of deep training images that became 0 and 1.", VALUES)


@dataclass(frozen=True, kw_only=True)
class Views:
    """Several random views of each image of a batch.

    `keys` are the images' rng keys, a function of (seed, epoch, sample id): every later random draw for an image (drop
    path, say) comes from its key, so that results do not depend on how a batch is split. `indices` are positions in the
    global batch, which the shards scope of the coding rate and KoLeo read."""

    global_views: Tensor  # float [G, B, C, H, W]
    local_views: Tensor | None  # float [M, B, C, h, w]
    ids: Tensor  # int64 [B]
    keys: Tensor  # int64 [B]
    indices: Tensor  # int64 [B]
    masks: Tensor | None = None  # bool [G, B, P], the patches hidden from the student

    def split(self, size: int | None) -> Sequence[Views]:
        """Return micro-batches of `size` images (the last may be smaller); None: one of all."""
        size = size or len(self.ids)
        return [self._take(slice(i, i + size)) for i in range(0, len(self.ids), size)]

    def _take(self, part: slice) -> Views:
        return Views(
            global_views=self.global_views[:, part],
            local_views=None if self.local_views is None else self.local_views[:, part],
            ids=self.ids[part],
            keys=self.keys[part],
            indices=self.indices[part],
            masks=None if self.masks is None else self.masks[:, part],
        )


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """An encoder's output for N images."""

    cls: Tensor  # [N, D]
    patches: Tensor | None  # [N, P, D]
    registers: Tensor | None = None  # [N, S, D]
    grid: tuple[int, int] | None = None  # (h, w) with h * w = P


@dataclass(frozen=True, kw_only=True)
class Logits:
    """Prototype logits [..., K], computed on request for a few rows at a time: those of a whole batch are gigabytes."""

    features: Tensor  # [..., n, d], unit norm
    weight: Tensor  # [K, d], the prototypes

    def of(self, rows: slice) -> Tensor:
        """Return the logits of some of the n rows [..., rows, K], in float32 or better, outside autocast: divided by
        the teacher's temperature, bfloat16's rounding of a cosine would be several per cent of a probability."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return torch.nn.functional.linear(precise(self.features[..., rows, :]), self.weight)


@dataclass(frozen=True, kw_only=True)
class Patches:
    """The m masked patches of a batch: the student embeds the mask token, the teacher the patch itself."""

    features: Tensor  # [m, d], unit norm
    weights: Tensor  # [m], one over the number of masked patches in the patch's crop
    keys: Tensor  # int64 [m], the rng key of the patch's crop; patches of a crop lie together
    indices: Tensor  # int64 [m], the position of the patch's image in the global batch
    logits: Logits | None = None  # [1, m, K], where the head has prototypes

    def with_prototypes_of(self, other: Patches) -> Patches:
        """Return these patches with the prototypes of others by the same network."""
        if self.logits is None or other.logits is None:
            return self
        return replace(self, logits=replace(self.logits, weight=other.logits.weight))


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """What the losses compare: unit vectors, one per view and image. The first G of the V views are global."""

    cls: Tensor  # [V, B, d], unit norm
    backbone: Tensor  # [V, B, D], the class tokens before the projector
    indices: Tensor  # int64 [B], positions in the global batch
    logits: Logits | None = None  # [V, B, K], where the head has prototypes
    patches: Patches | None = None  # where views have masks

    def with_prototypes_of(self, others: Sequence[Embeddings]) -> Embeddings:
        """Return these embeddings with the prototypes of the first of others by the same network, if there are any.
        Each pass makes its own, and those of every micro-batch of a batch would be kept: 65,536 are 67 MB."""
        logits, patches = self.logits, self.patches
        for other in others[:1]:
            if logits is not None and other.logits is not None:
                logits = replace(logits, weight=other.logits.weight)
            if patches is not None and other.patches is not None:
                patches = patches.with_prototypes_of(other.patches)
        return replace(self, logits=logits, patches=patches)

    def targets(self, global_views: int) -> Embeddings:
        """Return what a teacher with the student's weights would embed: the global views, without the graph."""
        logits = self.logits
        if logits is not None:
            logits = Logits(features=logits.features[:global_views].detach(), weight=logits.weight.detach())
        return Embeddings(
            cls=self.cls[:global_views].detach(),
            backbone=self.backbone[:global_views].detach(),
            indices=self.indices,
            logits=logits,
        )


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss of the global batch: the number to minimise, its named terms, and numbers that tell a healthy run from a
    sick one. Terms and health are detached scalars; `total` carries the graph."""

    total: Tensor
    terms: dict[str, Tensor]
    health: dict[str, Tensor] = field(default_factory=dict)


def precise(x: Tensor) -> Tensor:
    """Return `x` in float32, or in its own dtype where that is more precise."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unit(x: Tensor) -> Tensor:
    """Return unit vectors along the last axis, computed in float32 or better. A zero vector stays zero, not NaN."""
    return torch.nn.functional.normalize(precise(x), dim=-1)
