"""The last block's attention: its queries and keys, and what the class token attends to in a picture (DINO,
visualize_attention.py at 7c446df), for pictures of any shape.

The input of the attention is read while an ordinary forward pass runs, so that the pass keeps its fast attention, and
queries and keys are computed from it again. For our own encoders and timm's transformers with plain attention.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from simdino.contracts import InputError, precise
from simdino.data.pictures import fitted
from simdino.features.extract import inputs, patch_of, sizes_explained
from simdino.models.encoder import Encoder, evaluating


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The last attention's view of N images: queries and keys of every token, class token first, patches last."""

    queries: Tensor  # [N, K, T, D/K]
    keys: Tensor  # [N, K, T, D/K]; CRATE's are its queries
    grid: tuple[int, int]  # (h, w) of the last h w tokens

    def patch_keys(self) -> Tensor:
        """Keys of the patches, heads joined: [N, P, D]."""
        patches = self.grid[0] * self.grid[1]
        return self.keys[:, :, -patches:].transpose(1, 2).flatten(2)

    def class_attention(self) -> Tensor:
        """What each head's class token attends to among the patches: [N, K, h, w]. The softmax runs over all tokens,
        so that the class token's own share and the registers' are missing from the sum."""
        query, keys = precise(self.queries[:, :, :1]), precise(self.keys)
        attention = (query * query.shape[-1] ** -0.5 @ keys.mT).softmax(-1)[:, :, 0]
        return attention[..., -(self.grid[0] * self.grid[1]) :].unflatten(-1, self.grid)


@torch.no_grad()
def last_heads(encoder: Encoder, images: Tensor) -> Heads:
    """Queries and keys of the last block, of images [N, C, H, W] prepared as the encoder wants them.

    Raises InputError for an encoder whose last block has no attention that could be read, and for a size that it does
    not take."""
    attention, project = encoder.last_attention()
    patch, seen = patch_of(encoder), list[Tensor]()
    hook = attention.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        with evaluating(encoder), sizes_explained(encoder, images):
            encoder(images)
            queries, keys = project(seen[-1])
    finally:
        hook.remove()
    return Heads(queries=queries, keys=keys, grid=(images.shape[-2] // patch, images.shape[-1] // patch))


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
    """The attention of every head of the last block for a picture uint8 [C, H, W]. size: see `looked_at`.

    Raises InputError for an encoder without an attention that can be read."""
    shown = looked_at(encoder, image, size=size)
    if not encoder.has_class_token:
        raise InputError(f"encoder {encoder.config.name} has no class token that would attend: take a ViT that has one")
    heads = last_heads(encoder, inputs(encoder, shown[None]))
    return AttentionMaps(image=shown, heads=heads.class_attention()[0].float().cpu())


def default_size(encoder: Encoder) -> int:
    """The short side at which pictures are looked at unless one is given."""
    return 2 * encoder.preprocess.crop


def looked_at(encoder: Encoder, image: Tensor, *, size: int | None = None) -> Tensor:
    """A picture uint8 [C, H, W] in whole patches, with its aspect; less than a patch is cut off.

    size: its short side in pixels, rounded down to whole patches. The default is twice the size that the encoder was
    trained on, as DINO's 480 is of 224. Raises InputError for an encoder without patches."""
    return fitted(image, short=size or default_size(encoder), multiple=patch_of(encoder))


def mass_mask(attention: Tensor, mass: float) -> Tensor:
    """The patches that hold the given share of the attention, the strongest first: bool [..., h, w] of [..., h, w].

    Sorted from the weakest, those stay whose running sum, of a total of 1, is above 1 - mass."""
    if not 0 < mass <= 1:
        raise InputError(f"--mass {mass} must be above 0 and at most 1")
    values, order = attention.double().flatten(-2).sort(dim=-1, stable=True)
    kept = (values / values.sum(-1, keepdim=True)).cumsum(-1) > 1 - mass
    return torch.zeros_like(kept).scatter(-1, order, kept).view(attention.shape)
