"""What an encoder computes on the way, for those who look inside: its last blocks, keys and attention.

Read from the inputs of the last block's attention while an ordinary forward pass runs, so that the pass keeps its fast
attention, and recomputed for the tokens asked for. Our own encoders and timm's transformers with plain attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simdino.contracts import InputError, Tokens, precise
from simdino.models.adapters import TimmEncoder
from simdino.models.compiled import eager
from simdino.models.crate import SubspaceAttention
from simdino.models.encoder import Encoder
from simdino.models.layers import Attention
from simdino.models.vit import PatchTransformer


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

    Raises InputError for an encoder whose last block has no attention that could be read."""
    attention = last_attention(encoder)
    grid = grid_of(encoder, images)
    with eager(encoder), inputs_of(attention) as seen:
        encoder(images)
        queries, keys = project(attention, seen[-1])
    return Heads(queries=queries, keys=keys, grid=grid)


@torch.no_grad()
def last_blocks(encoder: Encoder, images: Tensor, *, count: int) -> list[Tokens]:
    """Tokens after each of the last `count` blocks, each through the final norm, the last block's last: what the linear
    protocols of DINO and DINOv2 read. One is what the encoder gives itself.

    Raises InputError where an encoder has no such blocks, or fewer."""
    if count == 1:
        return [encoder(images)]
    if not 1 < count <= encoder.depth or not isinstance(encoder, PatchTransformer | TimmEncoder):
        raise no_blocks(encoder, count)
    if isinstance(encoder, TimmEncoder):
        return last_blocks_of_timm(encoder, images, count=count)
    outputs: list[Tensor] = []

    def note(_: nn.Module, __: Any, x: Tensor) -> None:
        outputs.append(x)

    hooks = [block.register_forward_hook(note) for block in encoder.blocks[-count:]]
    try:
        with eager(encoder):
            grid = encoder(images).grid
    finally:
        for hook in hooks:
            hook.remove()
    return [split_tokens(encoder.norm(x), grid) for x in outputs]


def last_blocks_of_timm(encoder: TimmEncoder, images: Tensor, *, count: int) -> list[Tokens]:
    """`last_blocks` by timm's own function for it, which transformers with a class token have. What pools otherwise has
    none that would be its output: a mean of patches, or of two tokens (distilled DeiT)."""
    model = encoder.model
    pooled = getattr(model, "global_pool", None) != "token" or getattr(model, "dist_token", None) is not None
    if encoder.patch_size is None or not has_class_token(encoder) or pooled:
        raise no_blocks(encoder, count)
    try:
        every = model.forward_intermediates(
            images, indices=count, norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
    except (TypeError, AssertionError):  # CaiT and ConViT return no class tokens on the way; fewer blocks than layers
        raise no_blocks(encoder, count) from None
    grid = grid_of(encoder, images)
    return [Tokens(cls=prefix[:, 0], registers=prefix[:, 1:], patches=x, grid=grid) for x, prefix in every]


def has_class_token(encoder: Encoder) -> bool:
    """Whether the first token is one that stands for the whole image."""
    return not isinstance(encoder, TimmEncoder) or getattr(encoder.model, "cls_token", None) is not None


def no_blocks(encoder: Encoder, count: int) -> InputError:
    """The error of an encoder that `last_blocks` cannot read."""
    name = encoder.config.name
    return InputError(
        f"encoder {name} has no {count} last blocks with a class token each (depth {encoder.depth}): ask for 1"
    )


def split_tokens(x: Tensor, grid: tuple[int, int] | None) -> Tokens:
    """[N, 1 + S + P, D] -> Tokens."""
    assert grid is not None
    first = x.shape[1] - grid[0] * grid[1]
    return Tokens(cls=x[:, 0], registers=x[:, 1:first], patches=x[:, first:], grid=grid)


def grid_of(encoder: Encoder, images: Tensor) -> tuple[int, int]:
    """The patches (h, w) of images."""
    if encoder.patch_size is None:
        raise InputError(f"encoder {encoder.config.name} has no patch tokens: a patch task needs a transformer")
    return images.shape[-2] // encoder.patch_size, images.shape[-1] // encoder.patch_size


def last_attention(encoder: Encoder) -> Any:
    """The attention of the last block. Raises InputError where there is none that `project` knows."""
    blocks = encoder.model if isinstance(encoder, TimmEncoder) else encoder
    attention = getattr(getattr(blocks, "blocks", [None])[-1], "attn", None)
    plain = type(attention).__name__ == "Attention" and hasattr(attention, "qkv") and hasattr(attention, "q_norm")
    if not (plain or isinstance(attention, Attention | SubspaceAttention)):
        raise InputError(
            f"the attention of encoder {encoder.config.name} cannot be read: its last block has none, or not the plain "
            f"one of a ViT; take a ViT or a CRATE"
        )
    return attention


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The first argument of every call of a module while the body runs."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        yield seen
    finally:
        hook.remove()


def project(attention: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys [N, K, T, D/K] that an attention makes of its input [N, T, D]."""
    if isinstance(attention, SubspaceAttention):
        codes = attention.project(x)
        return codes, codes
    heads = attention.heads if isinstance(attention, Attention) else attention.num_heads
    queries, keys, _ = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1)
    )  # fmt: skip
    if not isinstance(attention, Attention):  # timm normalises queries and keys where a model asks for it
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    return queries, keys
