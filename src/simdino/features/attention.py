"""What the class token attends to in a picture (DINO, visualize_attention.py at 7c446df), for pictures of any shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.pictures import fitted
from simdino.features.extract import inputs
from simdino.features.intermediate import last_heads
from simdino.models.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class AttentionMaps:
    """The last block's attention of the class token to the patches of one picture."""

    image: Tensor  # uint8 [C, H, W], the picture as it was looked at: H = h patch, W = w patch
    heads: Tensor  # float32 [K, h, w]; what went to the class token and to registers is missing from the sum

    @property
    def mean(self) -> Tensor:
        """Over heads: [h, w]."""
        return self.heads.mean(0)


@torch.inference_mode()
def attention_maps(encoder: Encoder, image: Tensor, *, size: int | None = None) -> AttentionMaps:
    """The attention of every head of the last block for a picture uint8 [C, H, W].

    size: its short side in pixels when looked at, rounded down to whole patches; the aspect is kept and less than a
    patch cut off. The default is twice the size the encoder was trained on, as DINO's 480 is of 224.
    Raises InputError for an encoder without an attention that can be read."""
    if encoder.patch_size is None:
        raise InputError(f"encoder {encoder.config.name} has no patches to attend to: take a ViT or a CRATE")
    if not encoder.has_class_token:
        raise InputError(f"encoder {encoder.config.name} has no class token that would attend: take a ViT that has one")
    shown = fitted(image, short=size or default_size(encoder), multiple=encoder.patch_size)
    try:
        heads = last_heads(encoder.eval(), inputs(encoder, shown[None]))
    except AssertionError:  # timm's word for a size that a model cannot take
        raise wrong_size(encoder, shown) from None
    return AttentionMaps(image=shown, heads=heads.class_attention()[0].float().cpu())


def default_size(encoder: Encoder) -> int:
    """The short side at which pictures are looked at unless one is given."""
    return 2 * encoder.preprocess.crop


def wrong_size(encoder: Encoder, image: Tensor) -> InputError:
    """The error for a picture in a size that an encoder cannot take."""
    height, width = image.shape[1:]
    return InputError(
        f"encoder {encoder.config.name} does not take images of {width}x{height} pixels: give --size "
        f"{encoder.preprocess.crop} and square pictures, or take an encoder of ours"
    )


def mass_mask(attention: Tensor, mass: float) -> Tensor:
    """The patches that hold the given share of the attention, the strongest first: bool [..., h, w] of [..., h, w].

    Sorted from the weakest, those stay whose running sum, of a total of 1, is above 1 - mass."""
    if not 0 < mass <= 1:
        raise InputError(f"--mass {mass} must be above 0 and at most 1")
    flat = attention.double().flatten(-2)
    values, order = flat.sort(dim=-1, stable=True)
    kept = (values / values.sum(-1, keepdim=True)).cumsum(-1) > 1 - mass
    return torch.zeros_like(kept).scatter(-1, order, kept).view(attention.shape)
