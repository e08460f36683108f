"""Vision transformer: images [N, C, H, W] -> Tokens.

The architecture is that of Dosovitskiy et al. 2020 with DINO's choices (LayerNorm eps 1e-6, truncated normal 0.02), and
optionally registers (Darcet et al. 2023), layer scale, stochastic depth and Dual PatchNorm. The patch size must divide
the image size: the position embedding is learned on one grid and interpolated to others."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from simdino.config import EncoderConfig, PositionRule
from simdino.contracts import InputError, Tokens
from simdino.models.encoder import EVERY_FIELD, Encoder, EncoderKind, Projection, as_configured
from simdino.models.layers import Block, DualPatchNorm, PatchEmbed, drop_rates, kept_branches, resize_positions


class PatchTransformer(Encoder):
    """The parts that ViT and CRATE share: patch, class and register tokens with positions, the blocks, a last norm.

    A subclass sets `branches`, makes `blocks` and `norm`, and initialises everything. A block is called with tokens [N,
    T, D], `kept` (drop path of its branches, or None) and `queries`, the number of leading tokens to compute (None:
    all)."""

    branches: int
    """The number of residual branches of a block that drop path may drop."""

    blocks: nn.ModuleList
    norm: nn.LayerNorm

    def __init__(
        self,
        *,
        patch_embed: PatchEmbed | DualPatchNorm,
        image_size: int,
        in_chans: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        registers: int,
        drop_path: float,
        drop_path_rule: Literal["linear", "uniform"],
        mask_token: bool,
        positions: PositionRule,
    ) -> None:
        super().__init__()
        patch_size = patch_embed.patch_size
        if image_size % patch_size:
            raise ValueError(f"image size {image_size} is not divisible by patch size {patch_size}")
        if embed_dim % num_heads:
            raise ValueError(f"width {embed_dim} is not divisible by {num_heads} heads")
        self.embed_dim, self.patch_size, self.in_chans, self.depth = embed_dim, patch_size, in_chans, depth
        self.grid = image_size // patch_size
        self.positions: PositionRule = positions
        self.rates = drop_rates(depth, drop_path, drop_path_rule)
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, embed_dim)) if registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim)) if mask_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, embed_dim))

    def forward(
        self, images: Tensor, *, keys: Tensor | None = None, masks: Tensor | None = None, patches: bool = True
    ) -> Tokens:
        """Encode images as `Encoder.forward` does. Without `patches` the last block computes the class token alone,
        which gives the same numbers for less work."""
        size = self.patch_embed.patch_size
        grid = (images.shape[-2] // size, images.shape[-1] // size)
        x = self._embed(images, grid, masks)
        kept = None
        if keys is not None and any(self.rates):
            kept = kept_branches(keys, self.rates, branches=self.branches, device=x.device)
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            queries = None if patches or i < last else 1
            x = block(x, kept=None if kept is None else kept[i], queries=queries)
        x = self.norm(x)
        if not patches:
            return Tokens(cls=x[:, 0], patches=None, grid=grid)
        return self._split(x, grid)

    def last_blocks(self, images: Tensor, count: int) -> list[Tokens]:
        """Return the tokens after each of the last `count` blocks, as `Encoder.last_blocks` does."""
        if not 1 < count <= self.depth:
            return super().last_blocks(images, count)
        outputs: list[Tensor] = []

        def note(_: nn.Module, __: Any, x: Tensor) -> None:
            outputs.append(x)

        hooks = [block.register_forward_hook(note) for block in self.blocks[-count:]]
        try:
            grid = self(images).grid
        finally:
            for hook in hooks:
                hook.remove()
        return [self._split(self.norm(x), grid) for x in outputs]

    def last_attention(self) -> tuple[nn.Module, Projection]:
        """Return the attention of the last block, as `Encoder.last_attention` does."""
        attention: Any = self.blocks[-1].attn
        return attention, attention.queries_and_keys

    def _split(self, x: Tensor, grid: tuple[int, int]) -> Tokens:
        """Split [N, 1 + S + P, D] into Tokens."""
        first = x.shape[1] - grid[0] * grid[1]
        return Tokens(cls=x[:, 0], registers=x[:, 1:first], patches=x[:, first:], grid=grid)

    def _embed(self, images: Tensor, grid: tuple[int, int], masks: Tensor | None) -> Tensor:
        """Return patch, class and register tokens with positions: [N, 1 + S + P, D]. Registers have no position."""
        tokens = self.patch_embed(images)
        if masks is not None:
            assert self.mask_token is not None, "this encoder was made without a mask token"
            tokens = torch.where(masks[..., None], self.mask_token.to(tokens.dtype), tokens)
        positions = self.position_embedding(grid)
        count = len(images)
        cls = (self.cls_token + positions[:, :1]).expand(count, -1, -1)
        parts = [cls, tokens + positions[:, 1:]]
        if self.register_tokens is not None:
            parts.insert(1, self.register_tokens.expand(count, -1, -1))
        return torch.cat(parts, dim=1)

    def position_embedding(self, grid: tuple[int, int]) -> Tensor:
        """Return the position embedding [1, 1 + h w, D] for a grid of (h, w) patches."""
        cls, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        patches = resize_positions(patches.unflatten(1, (self.grid, self.grid)), grid, rule=self.positions)
        return torch.cat([cls, patches.flatten(1, 2)], dim=1)


class ViT(PatchTransformer):
    """The vision transformer. Its parameters have the names of DINOv2's."""

    branches = 2

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        in_chans: int = 3,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        registers: int = 0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        drop_path_rule: Literal["linear", "uniform"] = "linear",
        mask_token: bool = False,
        ffn: Literal["mlp", "swiglu"] = "mlp",
        positions: PositionRule = "antialias",
        patch_embed: Literal["patch", "dual_norm"] = "patch",
        token_std: float = 0.02,
    ) -> None:
        make_patch_embed = DualPatchNorm if patch_embed == "dual_norm" else PatchEmbed
        super().__init__(
            patch_embed=make_patch_embed(in_chans=in_chans, embed_dim=embed_dim, patch_size=patch_size),
            image_size=image_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            registers=registers,
            drop_path=drop_path,
            drop_path_rule=drop_path_rule,
            mask_token=mask_token,
            positions=positions,
        )
        self.blocks = nn.ModuleList(
            Block(embed_dim=embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, layer_scale=layer_scale, ffn=ffn)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self._initialise(token_std)

    def _initialise(self, token_std: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        tokens = ((self.cls_token, token_std), (self.pos_embed, 0.02), (self.register_tokens, token_std))
        for token, std in tokens:
            if token is not None:
                nn.init.trunc_normal_(token, std=std)


def patch_settings(config: EncoderConfig, in_chans: int) -> dict[str, Any]:
    """Return the settings for the parts that ViT and CRATE share. Raises InputError without a shape."""
    shape = {"embed_dim": config.embed_dim, "depth": config.depth, "num_heads": config.num_heads}
    missing = [part for part, value in shape.items() if value is None]
    if missing:
        raise InputError(f"encoder {config.name!r} has no {' and no '.join(missing)}: its configuration must give them")
    return shape | {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": in_chans,
        "registers": config.registers,
        "drop_path": config.drop_path,
        "drop_path_rule": config.drop_path_rule,
        "mask_token": config.mask_token,
        "positions": config.positions,
    }


def make_vit(config: EncoderConfig, in_chans: int) -> ViT:
    """Make the ViT of a configuration. Raises InputError without a shape."""
    return ViT(
        **patch_settings(config, in_chans),
        layer_scale=config.layer_scale,
        ffn=config.ffn,
        patch_embed=config.patch_embed,
        token_std=config.token_std,
    )


def vit(embed_dim: int | None = None, depth: int | None = None, num_heads: int | None = None) -> EncoderKind:
    """Return an entry of `catalogue.ENCODERS`."""
    return EncoderKind(
        make=make_vit, embed_dim=embed_dim, depth=depth, num_heads=num_heads, fitted=as_configured, reads=EVERY_FIELD
    )


UNNAMED = "vit"
"""The name of a ViT whose width, depth and heads the configuration gives, as other projects' files may need."""

ENCODERS = {
    "vit_pico": vit(256, 2, 4),
    "vit_nano": vit(192, 4, 3),
    "vit_tiny": vit(192, 12, 3),
    "vit_small": vit(384, 12, 6),
    "vit_base": vit(768, 12, 12),
    "vit_large": vit(1024, 24, 16),
    "vit_giant2": vit(1536, 40, 24),
    UNNAMED: vit(),
}
"""The sizes of ViT. vit_pico and vit_nano are not from the papers; they are for small images on a laptop. vit_giant2 is
DINOv2's, with ffn="swiglu"."""
