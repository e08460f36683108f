"""Convolutional encoders: images [N, C, H, W] -> Tokens. On small images they learn more in a minute than a ViT.

A 3 x 3 convolution as patch embedding, then stages of residual blocks with normalisation first (He et al. 2016, arXiv
1603.05027). Each further stage halves height and width and doubles the width. Numbers are normalised over groups of
channels of one image (Wu and He 2018, arXiv 1803.08494), never over a batch, so that every split of a batch stays
exact. The token of a patch is what the last stage has at its place, and the class token is the mean of them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simdino.config import EncoderConfig
from simdino.contracts import Tokens
from simdino.models.encoder import Encoder, EncoderKind
from simdino.models.layers import DropPathRows, add_branch, drop_rates, kept_branches

FIRST = 32  # channels of the first stage
GROUP = 16  # channels that are normalised together


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
    """The convolutional encoder of a configuration: `embed_dim` is the width of the last stage and a power of two times
    FIRST, the width of the first; `depth` counts all blocks, alike in every stage; `patch_size` is how many pixels of a
    side the last stage has for one place.

    A masked patch is one whose pixels are replaced by a learned colour before anything sees them. Raises ValueError for
    sizes that do not go together."""

    has_class_token = False

    def __init__(self, config: EncoderConfig, in_chans: int) -> None:
        super().__init__()
        width, depth, side = config.embed_dim or 0, config.depth or 0, config.patch_size
        stages = (width // FIRST).bit_length()
        if not stages or width != FIRST << (stages - 1):
            raise ValueError(f"width {width} is not {FIRST} times a power of two")
        if depth % stages:
            raise ValueError(f"depth {depth} is not divisible by the {stages} stages of width {width}")
        if side not in patch_sizes(width):
            sides = " or ".join(map(str, patch_sizes(width)))
            raise ValueError(f"patch size {side} must be {sides} with the {stages} stages of width {width}")
        stride = side * FIRST // width
        if config.image_size % side:
            raise ValueError(f"image size {config.image_size} is not divisible by patch size {side}")
        self.embed_dim, self.depth, self.patch_size, self.in_chans = width, depth, side, in_chans
        self.rates = drop_rates(depth, config.drop_path, config.drop_path_rule)
        self.mask_token = nn.Parameter(torch.zeros(1, in_chans, 1, 1)) if config.mask_token else None
        self.patch_embed = nn.Conv2d(in_chans, FIRST, max(3, stride), stride, 1 if stride < 3 else 0, bias=False)
        shapes = [
            (FIRST << stage, bool(stage) and not block) for stage in range(stages) for block in range(depth // stages)
        ]
        self.blocks = nn.ModuleList(
            ConvBlock(in_dim=dim // 2 if halves else dim, out_dim=dim, stride=2 if halves else 1)
            for dim, halves in shapes
        )
        self.norm = nn.GroupNorm(width // GROUP, width)
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
            hidden = masks.view(-1, 1, *grid).repeat_interleave(size, 2).repeat_interleave(size, 3)
            images = torch.where(hidden, self.mask_token.to(images.dtype), images)
        kept = None
        if keys is not None and any(self.rates):
            kept = kept_branches(keys, self.rates, branches=1, device=images.device)
        x = self.patch_embed(images.contiguous(memory_format=torch.channels_last))
        for i, block in enumerate(self.blocks):
            x = block(x, kept=None if kept is None else kept[i][0])
        x = F.relu(self.norm(x))
        return Tokens(cls=x.mean((2, 3)), patches=x.flatten(2).mT if patches else None, grid=grid)


def patch_sizes(embed_dim: int) -> tuple[int, ...]:
    """Return the sides that a patch can have: the patch embedding keeps the resolution, halves it or
    takes a quarter."""
    return tuple(stride * embed_dim // FIRST for stride in (1, 2, 4))


def conv(embed_dim: int, depth: int) -> EncoderKind:
    """Return an entry of `catalogue.ENCODERS`."""
    reads = {"name", "image_size", "patch_size", "embed_dim", "depth", "drop_path", "drop_path_rule", "mask_token"}
    return EncoderKind(
        make=ConvNet, embed_dim=embed_dim, depth=depth, reads=frozenset(reads), block_size=4,
        patch_sizes=patch_sizes(embed_dim),
    )  # fmt: skip


ENCODERS = {
    "conv_pico": conv(128, 3),
    "conv_nano": conv(256, 4),
    "conv_tiny": conv(512, 10),
}
"""The sizes of our ConvNets, for small images on a laptop and beyond."""
