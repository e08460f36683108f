"""Vision transformer: images [N, C, H, W] -> Tokens.

The architecture is that of Dosovitskiy et al. 2020 with DINO's choices (LayerNorm eps 1e-6, truncated normal 0.02), and
optionally registers (Darcet et al. 2023), layer scale, stochastic depth and Dual PatchNorm. The patch size must divide
the image size: the position embedding is learned on one grid and interpolated to others."""

from typing import Any

import torch
from torch import Tensor, nn

from simdino.config import EncoderConfig, PositionRule
from simdino.contracts import InputError, Tokens
from simdino.models.encoder import EVERY_FIELD, Encoder, EncoderKind, Projection
from simdino.models.layers import Block, DualPatchNorm, PatchEmbed, drop_rates, kept_branches, resize_positions


class PatchTransformer(Encoder):
    """The parts that ViT and CRATE share: patch, class and register tokens with positions, the blocks, a last norm.

    A subclass sets `branches`, makes `patch_embed`, `blocks` and `norm`, and initialises everything. A block is called
    with tokens [N, T, D], `kept` (drop path of its branches, or None) and `queries`, the number of leading tokens to
    compute (None: all). Raises InputError without a shape, and ValueError for sizes that do not divide."""

    branches: int
    """The number of residual branches of a block that drop path may drop."""

    patch_embed: nn.Module
    blocks: nn.ModuleList
    norm: nn.LayerNorm

    def __init__(self, config: EncoderConfig, in_chans: int) -> None:
        super().__init__()
        width, depth, heads = config.embed_dim or 0, config.depth or 0, config.num_heads or 0
        missing = [part for part in ("embed_dim", "depth", "num_heads") if getattr(config, part) is None]
        if missing:
            words = " and no ".join(missing)
            raise InputError(f"encoder {config.name!r} has no {words}: its configuration must give them")
        if config.image_size % config.patch_size:
            raise ValueError(f"image size {config.image_size} is not divisible by patch size {config.patch_size}")
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.embed_dim, self.depth, self.num_heads, self.in_chans = width, depth, heads, in_chans
        self.patch_size, self.grid = config.patch_size, config.image_size // config.patch_size
        self.positions: PositionRule = config.positions
        self.rates = drop_rates(depth, config.drop_path, config.drop_path_rule)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, width)) if config.registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, width)) if config.mask_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))

    def forward(
        self, images: Tensor, *, keys: Tensor | None = None, masks: Tensor | None = None, patches: bool = True
    ) -> Tokens:
        """Encode images as `Encoder.forward` does. Without `patches` the last block computes the class token alone,
        which gives the same numbers for less work."""
        size = self.patch_size
        assert size is not None
        grid = (images.shape[-2] // size, images.shape[-1] // size)
        x = self._embed(images, grid, masks)
        kept, rates = None, self.rates or ()
        if keys is not None and any(rates):
            kept = kept_branches(keys, rates, branches=self.branches, device=x.device)
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
        count = images.shape[0]  # len() would fix the number in an exported program
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
    """The vision transformer of a configuration. Its parameters have the names of DINOv2's."""

    branches = 2

    def __init__(self, config: EncoderConfig, in_chans: int) -> None:
        super().__init__(config, in_chans)
        width = self.embed_dim
        self.patch_embed = self.make_patch_embed(config)
        self.blocks = nn.ModuleList(
            Block(embed_dim=width, num_heads=self.num_heads, layer_scale=config.layer_scale, ffn=config.ffn)
            for _ in range(self.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        stds = ((self.cls_token, config.token_std), (self.pos_embed, 0.02), (self.register_tokens, config.token_std))
        for token, std in stds:
            if token is not None:
                nn.init.trunc_normal_(token, std=std)

    def make_patch_embed(self, config: EncoderConfig) -> nn.Module:
        """Return the module that makes patch tokens [N, P, D] of images."""
        make = DualPatchNorm if config.patch_embed == "dual_norm" else PatchEmbed
        return make(in_chans=self.in_chans, embed_dim=self.embed_dim, patch_size=config.patch_size)


def vit(embed_dim: int | None = None, depth: int | None = None, num_heads: int | None = None) -> EncoderKind:
    """Return an entry of `catalogue.ENCODERS`."""
    return EncoderKind(
        make=ViT, embed_dim=embed_dim, depth=depth, num_heads=num_heads, reads=EVERY_FIELD - {"pool"}, compiles=True
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
