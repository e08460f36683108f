"""What an encoder computes on the way, for those who look inside: its last blocks, keys and attention.

Read from the inputs of the last block's attention while an ordinary forward pass runs, so that the pass keeps its fast
attention, and recomputed for the tokens asked for. Our own encoders and timm's transformers with plain attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simdino.contracts import InputError, Tokens, precise
from simdino.models.encoder import Encoder, eager


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
    attention, project = encoder.last_attention()
    grid = grid_of(encoder, images)
    with eager(encoder), inputs_of(attention) as seen:
        encoder(images)
        queries, keys = project(seen[-1])
    return Heads(queries=queries, keys=keys, grid=grid)


@torch.no_grad()
def last_blocks(encoder: Encoder, images: Tensor, *, count: int) -> list[Tokens]:
    """Tokens after each of the last `count` blocks, each through the final norm, the last block's last: what the linear
    protocols of DINO and DINOv2 read. One is what the encoder gives itself.

    Raises InputError where an encoder has no such blocks, or fewer."""
    with eager(encoder):
        return encoder.last_blocks(images, count)


def grid_of(encoder: Encoder, images: Tensor) -> tuple[int, int]:
    """The patches (h, w) of images."""
    if encoder.patch_size is None:
        raise InputError(f"encoder {encoder.config.name} has no patch tokens: a patch task needs a transformer")
    return images.shape[-2] // encoder.patch_size, images.shape[-1] // encoder.patch_size


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The first argument of every call of a module while the body runs."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        yield seen
    finally:
        hook.remove()
