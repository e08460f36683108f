"""An encoder whose answer is known: the token of a patch is the code of its colour plus noise, and so is its key."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from simdino.config import EncoderConfig
from simdino.contracts import Preprocess, Tokens
from simdino.models.encoder import Encoder, Projection
from simdino.models.layers import Attention, cut

PATCH = 4
COLOURS = np.array([[20, 20, 20], [230, 20, 20], [20, 230, 20], [20, 20, 230]], dtype=np.uint8)
"""Colour of each region; region 0 is the background."""


def painted(regions: NDArray[np.int64]) -> Tensor:
    """Regions [h, w] of patches -> an image uint8 [3, 4 h, 4 w]."""
    return torch.from_numpy(COLOURS[enlarged(regions)]).permute(2, 0, 1)


def enlarged(regions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Patches -> pixels."""
    return regions.repeat(PATCH, 0).repeat(PATCH, 1)


class Planted(Encoder):
    """Codes of the nearest of `COLOURS` as tokens; the only block's keys are its input."""

    def __init__(self, *, width: int = 8, noise: float = 0.1, size: int = 32) -> None:
        super().__init__()
        self.embed_dim, self.patch_size, self.in_chans, self.depth = width, PATCH, 3, 1
        self.config = EncoderConfig(name="vit_nano", image_size=size, patch_size=PATCH)
        self.preprocess = Preprocess(resize=size, crop=size, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
        self.noise = noise
        attention = Attention(embed_dim=width, num_heads=2)
        with torch.no_grad():
            attention.qkv.weight[width : 2 * width] = torch.eye(width)
            attention.qkv.bias.zero_()
        block = nn.Module()
        block.attn = attention
        self.blocks = nn.ModuleList([block])

    def forward(
        self, images: Tensor, *, keys: Tensor | None = None, masks: Tensor | None = None, patches: bool = True
    ) -> Tokens:
        means = cut(images, PATCH).mean((-1, -2))  # [N, P, 3]
        nearest = torch.cdist(means, torch.from_numpy(COLOURS).float() / 255).argmin(-1)
        tokens = torch.eye(self.embed_dim)[nearest]
        noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0))
        tokens = torch.cat([tokens[:, :1], tokens + self.noise * noise], dim=1)  # a class token first
        self.blocks[0].attn(tokens)
        grid = (images.shape[-2] // PATCH, images.shape[-1] // PATCH)
        return Tokens(cls=tokens[:, 0], patches=tokens[:, 1:], grid=grid)

    def last_attention(self) -> tuple[nn.Module, Projection]:
        attention: Attention = self.blocks[0].attn
        return attention, attention.queries_and_keys
