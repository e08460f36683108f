"""One vector a picture, as the protocols of retrieval and copy detection make it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.data.opening import BrokenImage
from simdino.data.views import resize
from simdino.features.extract import inputs, patch_maps, patch_of, tokens_of
from simdino.feedback import Progress
from simdino.models.encoder import Encoder

POWER, LEAST = 4, 1e-6  # of GeM
FLOOR = 1e-5  # of the largest variance: smaller ones are raised to it before whitening

Describe = Callable[[Tensor], Tensor]
"""A picture uint8 [C, H, W] -> its vector [D]. Raises InputError for an encoder that cannot make one."""


def landmark_descriptor(encoder: Encoder, *, size: int, scales: Sequence[float]) -> Describe:
    """The class token of the whole picture, its long side at most `size` px; with several scales the mean of theirs.

    Sides are cut at the right and below to multiples of the patch size, as DINO's patch embedding does."""

    def describe(image: Tensor) -> Tensor:
        pixels = inputs(encoder, thumbnail(image, size)[None])
        return torch.stack([class_tokens(encoder, at_scale(encoder, pixels, scale))[0] for scale in scales]).mean(0)

    return describe


def copy_descriptor(encoder: Encoder, *, size: int) -> Describe:
    """[class token ; generalised mean of the patch tokens], 2 D numbers, of the picture as a square of `size` px (the
    next multiple of the patch size below)."""
    patch = patch_of(encoder)
    side = max(patch, size // patch * patch)

    def describe(image: Tensor) -> Tensor:
        tokens = tokens_of(encoder, inputs(encoder, resize(image, side)[None]))
        return torch.cat([tokens.cls[0].float(), generalised_mean(patch_maps(encoder, tokens)[0].flatten(0, 1))])

    return describe


def generalised_mean(patches: Tensor) -> Tensor:
    """[P, D] -> [D]: the fourth root of the mean fourth power of what is above 0 (GeM, Radenović et al. 2018)."""
    return patches.clamp(min=LEAST).pow(POWER).mean(0).pow(1 / POWER)


def thumbnail(image: Tensor, size: int) -> Tensor:
    """uint8 [C, H, W] with its long side brought down to `size` px, in proportion; a smaller one as it is."""
    height, width = image.shape[1:]
    long = max(height, width)
    if long <= size:
        return image
    return resize(image, (max(1, round(height * size / long)), max(1, round(width * size / long))))


def at_scale(encoder: Encoder, pixels: Tensor, scale: float) -> Tensor:
    """[1, C, H, W] made smaller and cut to whole patches, one at least each way."""
    patch = encoder.patch_size or 1
    sides = [max(patch, int(side * scale)) for side in pixels.shape[2:]]
    if sides != list(pixels.shape[2:]):
        pixels = F.interpolate(pixels, sides, mode="bilinear", align_corners=False)
    return pixels[..., : sides[0] // patch * patch, : sides[1] // patch * patch]


def class_tokens(encoder: Encoder, given: Tensor) -> Tensor:
    """Class tokens float32 [N, D] on the CPU of prepared images [N, C, H, W]."""
    return tokens_of(encoder, given, patches=False).cls.float().cpu()


@dataclass(frozen=True, kw_only=True)
class DescriptorSet:
    """What a source's readable pictures are described by."""

    vectors: Tensor  # float32 [n, D]
    kept: list[int]  # their positions in the source
    broken: dict[str, str]  # names of the others, and what is wrong


def described(describe: Describe, source: Source, encoder: Encoder, *, what: str, progress: Progress) -> DescriptorSet:
    """Vectors of a source's pictures. what: what a progress bar calls them.

    Raises InputError where none is readable."""
    vectors, kept, broken = [], [], {}
    source = source.with_bits(encoder.preprocess.bits)
    for i in progress(range(len(source)), what, len(source)):
        try:
            image = source.read(i, encoder.in_chans)
        except BrokenImage as error:
            broken[source.names[i]] = error.reason
            continue
        vectors.append(describe(image).cpu())
        kept.append(i)
    if not kept:
        name, why = next(iter(broken.items()))
        raise InputError(f"data: no readable picture among the {what}: {len(broken)} tried ({name}: {why})")
    return DescriptorSet(vectors=torch.stack(vectors), kept=kept, broken=broken)


class Whitening:
    """Takes off the mean of other pictures' vectors, and brings the directions in which these vary to variance 1."""

    def __init__(self, vectors: Tensor) -> None:
        """vectors: [n, D] to learn from. Raises InputError for fewer than two."""
        if len(vectors) < 2:
            raise InputError("whitening is learned from many pictures, more than a vector has numbers; received one")
        vectors = vectors.double()
        self.mean = vectors.mean(0)
        centred = vectors - self.mean
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(vectors))
        self.axes = axes / variances.clamp(min=float(variances.max()) * FLOOR).sqrt()

    def __call__(self, vectors: Tensor) -> Tensor:
        """[n, D] -> float32 [n, D]."""
        return ((vectors.double() - self.mean) @ self.axes).float()
