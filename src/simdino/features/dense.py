"""Images of any size -> patch features: what the protocols that look at places share."""

from __future__ import annotations

import torch
from torch import Tensor

from simdino.config import Precision
from simdino.contracts import InputError, Tokens
from simdino.device import fastest, make_autocast, refuse_beyond_memory
from simdino.features.extract import inputs
from simdino.models.catalogue import kind_of
from simdino.models.encoder import Encoder, eager, evaluating


def patch_of(encoder: Encoder) -> int:
    """The side of the encoder's patches. Raises InputError for one without."""
    if encoder.patch_size is None:
        raise InputError(
            f"encoder {encoder.config.name} has no patches, which this task compares: take a ViT or a CRATE"
        )
    return encoder.patch_size


def check_size(encoder: Encoder, size: int | None, *, images: int = 1, pairs: bool = False) -> None:
    """Raise InputError for a --size at which images cannot be looked at in the memory of the encoder's device.

    size: their shorter side in pixels; None where it follows the images. images: how many at once. pairs: whether every
    patch is compared with every other."""
    if size is None:
        return
    device, tokens = encoder.device, (size // encoder.patch_size) ** 2 if encoder.patch_size else 0
    shape = kind_of(encoder.config.name).complete(encoder.config)
    heads = shape.num_heads or 0 if device.type == "cpu" else 0  # GPUs hold no matrix of attention
    needed = {
        "pixels": 5.0 * images * encoder.in_chans * size**2,  # as uint8 and as float32
        "tokens": 4.0 * images * tokens * encoder.embed_dim,
        "attention": 2.0 * images * heads * tokens**2,  # in bfloat16
        "pairs of patches": 4.0 * tokens**2 if pairs else 0.0,
    }
    refuse_beyond_memory(needed, device=device, words=f"--size {size}")


@torch.no_grad()
def tokens_of(encoder: Encoder, given: Tensor, *, patches: bool = True, precision: Precision | None = None) -> Tokens:
    """Tokens after the final norm of prepared images [N, C, H, W]. precision: arithmetic of the encoder; the fastest on
    its device unless given."""
    with evaluating(encoder), make_autocast(given.device, precision or fastest(str(given.device))), eager(encoder):
        return encoder(given, patches=patches)


def patch_features(encoder: Encoder, images: Tensor, *, precision: Precision | None = None) -> Tensor:
    """Patch tokens, float32 [N, h, w, D], of uint8 images [N, C, H, W] whose sides the patch size divides. precision:
    see `tokens_of`.

    Raises InputError for an encoder without patch tokens."""
    patch_of(encoder)
    tokens = tokens_of(encoder, inputs(encoder, images), precision=precision)
    if tokens.patches is None or tokens.grid is None:
        raise InputError(f"encoder {encoder.config.name} tells no patch tokens apart: take a ViT or a CRATE")
    return tokens.patches.float().unflatten(1, tokens.grid)
