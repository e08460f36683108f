"""Convolutional encoders, and hybrids: images [N, C, H, W] -> Tokens. On small images they learn more in a minute than
a ViT (docs/log.md, more per minute).

A convolution as patch embedding, then three stages of residual blocks with normalisation first (He et al. 2016, arXiv
1603.05027). Each further stage halves height and width and doubles the width. Numbers are normalised over groups of
channels of one image (Wu and He 2018, arXiv 1803.08494), never over a batch, so that every split of a batch stays
exact. In a ConvNet the token of a patch is what the last stage has at its place, and the class token is a linear
function of their mean, which SimDINO compares without a projector: k-NN then reads what the loss has trained
(docs/log.md, what k-NN reads). Where objects lie in the middle of the images, the means of an image's quarters tell
more. In a hybrid a transformer with a class token of its own goes on from these tokens."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simdino.config import EncoderConfig
from simdino.contracts import Tokens, unit
from simdino.models.encoder import EVERY_FIELD, Encoder, EncoderKind, Projection
from simdino.models.layers import DropPathRows, add_branch, drop_rates, kept_branches
from simdino.models.vit import ViT

STAGES = 3
GROUP = 16  # channels that are normalised together
TEMPERATURE = 0.07  # as of k-NN, where pictures of attention and MaskCut look at a ConvNet
PATCH_SIZES = (4, 8, 16)
"""The sides that a patch can have: the first convolution keeps the resolution, halves it or takes a quarter."""


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions in a residual branch, each after normalisation and ReLU, [N, in, h, w] -> [N, out, h/s,
    w/s] for a stride s. Where the shape changes, means of s x s places go through a 1 x 1 convolution beside it."""

    def __init__(self, *, in_dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.norm1, self.norm2 = nn.GroupNorm(in_dim // GROUP, in_dim), nn.GroupNorm(out_dim // GROUP, out_dim)
        self.conv1 = nn.Conv2d(in_dim, out_dim, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, 1, 1, bias=False)
        self.shortcut = None if in_dim == out_dim else nn.Conv2d(in_dim, out_dim, 1, bias=False)

    def forward(self, x: Tensor, *, kept: DropPathRows | None = None) -> Tensor:
        """Map [N, in, h, w]. kept: drop path of the residual branch."""
        y = F.relu(self.norm1(x))
        if self.shortcut is not None:
            x = self.shortcut(F.avg_pool2d(y, self.stride) if self.stride > 1 else y)
        return add_branch(x, lambda z: self.conv2(F.relu(self.norm2(self.conv1(z)))), y, kept)


class ConvNet(Encoder):
    """The convolutional encoder of a configuration: `embed_dim` is the width of the last stage, four times that of the
    first; `depth` counts all blocks, alike in every stage; `patch_size` is how many pixels of a side the last stage has
    for one place.

    A masked patch is one whose pixels are replaced by a learned colour before anything sees them. Raises ValueError for
    sizes that do not go together."""

    def __init__(self, config: EncoderConfig, in_chans: int) -> None:
        super().__init__()
        width, depth, side = config.embed_dim or 0, config.depth or 0, config.patch_size
        if width < 4 * GROUP or width % (4 * GROUP):
            raise ValueError(f"width {width} is not a multiple of {4 * GROUP}")
        if not depth or depth % STAGES:
            raise ValueError(f"depth {depth} is not divisible by the {STAGES} stages")
        if side not in PATCH_SIZES:
            raise ValueError(f"patch size {side} must be one of {PATCH_SIZES}")
        if config.image_size % side:
            raise ValueError(f"image size {config.image_size} is not divisible by patch size {side}")
        self.embed_dim, self.depth, self.patch_size, self.in_chans = width, depth, side, in_chans
        self.rates = drop_rates(depth, config.drop_path, config.drop_path_rule)
        self.mask_token = nn.Parameter(torch.zeros(1, in_chans, 1, 1)) if config.mask_token else None
        first, stride = width // 4, side // 4
        self.patch_embed = nn.Conv2d(in_chans, first, max(3, stride), stride, 1 if stride < 3 else 0, bias=False)
        shapes = [
            (first << stage, bool(stage) and not block) for stage in range(STAGES) for block in range(depth // STAGES)
        ]
        self.blocks = nn.ModuleList(
            ConvBlock(in_dim=dim // 2 if halves else dim, out_dim=dim, stride=2 if halves else 1)
            for dim, halves in shapes
        )
        self.norm = nn.GroupNorm(width // GROUP, width)
        self.pool = POOLS[config.pool]
        last = nn.Linear(width * (4 if config.pool == "quarters" else 1), width)
        nn.init.trunc_normal_(last.weight, std=0.02)
        nn.init.zeros_(last.bias)
        self.proj: nn.Module = last
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(
        self, images: Tensor, *, keys: Tensor | None = None, masks: Tensor | None = None, patches: bool = True
    ) -> Tokens:
        """Encode images as `Encoder.forward` does."""
        size, (height, width) = self.patch_size, images.shape[-2:]
        assert size is not None
        if height % size or width % size:
            raise ValueError(f"images of {height} x {width} pixels do not divide into patches of {size}")
        grid = (height // size, width // size)
        if masks is not None:
            assert self.mask_token is not None, "this encoder was made without a mask token"
            images = torch.where(pixels_of_patches(masks, images, grid), self.mask_token.to(images.dtype), images)
        kept, rates = None, self.rates or ()
        if keys is not None and any(rates):
            kept = kept_branches(keys, rates, branches=1, device=images.device)
        x = self.patch_embed(images.contiguous(memory_format=torch.channels_last))
        for i, block in enumerate(self.blocks):
            x = block(x, kept=None if kept is None else kept[i][0])
        x = F.relu(self.norm(x))
        return Tokens(cls=self.proj(self.pool(x)), patches=x.flatten(2).mT if patches else None, grid=grid)

    def last_attention(self) -> tuple[nn.Module, Projection]:
        """Return what stands for attention, of which a ConvNet has none: one head that looks where the last stage is
        like the mean of the places, by the cosine over TEMPERATURE."""
        return self.norm, self._alike

    def _alike(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys [N, 1, 1 + P, D], which are the same, of the last stage's maps before the norm."""
        places = F.relu(self.norm(maps)).flatten(2).mT
        tokens = unit(torch.cat([places.mean(1, keepdim=True), places], dim=1))
        alike = tokens[:, None] * (self.embed_dim**0.5 / TEMPERATURE) ** 0.5  # attention divides by the root of D
        return alike, alike


def mean_of_places(maps: Tensor) -> Tensor:
    """Return the mean [N, D] over maps [N, D, h, w]."""
    return maps.mean((2, 3))


def means_of_quarters(maps: Tensor) -> Tensor:
    """Return the means [N, 4 D] over the quarters of maps [N, D, h, w], row by row. Quarters of an odd side share its
    middle."""
    height, width = maps.shape[-2:]
    halves = maps[:, :, : (height + 1) // 2], maps[:, :, height // 2 :]
    quarters = [part for half in halves for part in (half[..., : (width + 1) // 2], half[..., width // 2 :])]
    return torch.cat([quarter.mean((2, 3)) for quarter in quarters], 1)


POOLS = {"mean": mean_of_places, "quarters": means_of_quarters}


class ConvTokens(nn.Module):
    """Images [N, C, H, W] -> patch tokens [N, P, D]: the places of a ConvNet's last stage."""

    def __init__(self, net: ConvNet) -> None:
        super().__init__()
        net.proj = nn.Identity()  # the class token is made elsewhere
        self.net = net
        self.patch_size = net.patch_size

    def forward(self, images: Tensor) -> Tensor:
        """Embed the patches."""
        tokens = self.net(images).patches
        assert tokens is not None
        return tokens


class Hybrid(ViT):
    """A ViT that sees the places of a ConvNet of one block a stage where a plain one sees patches. `depth` counts the
    transformer's blocks. Of a masked patch the ConvNet sees the mean colour, and the transformer the mask token."""

    def make_patch_embed(self, config: EncoderConfig) -> ConvTokens:
        """Return the ConvNet."""
        plain = replace(config, depth=STAGES, mask_token=False, drop_path=0.0)
        return ConvTokens(ConvNet(plain, self.in_chans))

    def stages(self) -> list[nn.Module]:
        """Return the blocks of the ConvNet, then those of the transformer."""
        assert isinstance(self.patch_embed, ConvTokens)
        return [*self.patch_embed.net.stages(), *self.blocks]

    def _embed(self, images: Tensor, grid: tuple[int, int], masks: Tensor | None) -> Tensor:
        if masks is not None:
            images = images.masked_fill(pixels_of_patches(masks, images, grid), 0)
        return super()._embed(images, grid, masks)


def pixels_of_patches(masks: Tensor, images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return which pixels bool [N, 1, H, W] of images are in the patches bool [N, P] of a grid."""
    size = images.shape[-1] // grid[1]
    return masks.view(-1, 1, *grid).repeat_interleave(size, 2).repeat_interleave(size, 3)


def conv(embed_dim: int, depth: int) -> EncoderKind:
    """Return an entry of `catalogue.ENCODERS`."""
    reads = {
        "name", "image_size", "patch_size", "embed_dim", "depth", "drop_path", "drop_path_rule", "mask_token", "pool",
    }  # fmt: skip
    return EncoderKind(
        make=ConvNet,
        embed_dim=embed_dim,
        depth=depth,
        reads=frozenset(reads),
        block_size=6,
        patch_sizes=PATCH_SIZES,
        projects=True,
        muon_rate=1.0,
    )


def hybrid(embed_dim: int, depth: int, num_heads: int) -> EncoderKind:
    """Return an entry of `catalogue.ENCODERS`."""
    return EncoderKind(
        make=Hybrid, embed_dim=embed_dim, depth=depth, num_heads=num_heads, reads=EVERY_FIELD - {"patch_embed", "pool"},
        patch_sizes=PATCH_SIZES, compiles=True,
    )  # fmt: skip


ENCODERS = {
    "conv_pico": conv(128, 3),
    "conv_nano": conv(256, 3),
    "conv_tiny": conv(512, 6),
    "hybrid_nano": hybrid(256, 2, 4),
    "hybrid_tiny": hybrid(384, 6, 6),
}
"""The sizes of our ConvNets and hybrids, for small images on a laptop and beyond."""
