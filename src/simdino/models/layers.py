"""The parts of a transformer block. Letters: N images, T tokens, D width, K heads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simdino import rng as counters
from simdino.config import PositionRule


def cut(images: Tensor, size: int) -> Tensor:
    """Cut images [N, C, H, W] into their patches in reading order, [N, P, C, size, size].

    Raises ValueError for sides that the patch size does not divide."""
    height, width = images.shape[-2:]
    if height % size or width % size:
        raise ValueError(f"images of {height} x {width} pixels do not divide into patches of {size}")
    return images.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


class PatchEmbed(nn.Module):
    """Images [N, C, H, W] -> patch tokens [N, P, D]: one linear map of each patch.

    The weights have the shape of a strided convolution, as in every ViT; the product is a plain matrix product, whose
    backward is the cheaper of the two on a CPU."""

    def __init__(self, *, in_chans: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Embed the patches. Raises ValueError for sides that the patch size does not divide."""
        return F.linear(cut(images, self.patch_size).flatten(2), self.proj.weight.flatten(1), self.proj.bias)


class DualPatchNorm(nn.Module):
    """Images [N, C, H, W] -> patch tokens [N, P, D]: layer norm of each patch's pixels, linear map, layer norm of the
    token (Kumar, Dehghani, Houlsby 2023, arXiv 2302.01327). CRATE's patch embedding is the same operation.

    A patch's pixels are in the order (row, column, channel), as in CRATE's files and in the paper's code."""

    def __init__(self, *, in_chans: int, embed_dim: int, patch_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.patch_size = patch_size
        pixels = in_chans * patch_size**2
        self.before = nn.LayerNorm(pixels, eps=eps)
        self.proj = nn.Linear(pixels, embed_dim)
        self.after = nn.LayerNorm(embed_dim, eps=eps)

    def forward(self, images: Tensor) -> Tensor:
        """Embed the patches. Raises ValueError for sides that the patch size does not divide."""
        patches = cut(images, self.patch_size).movedim(2, -1).flatten(2)  # [N, P, p p C]
        return self.after(self.proj(self.before(patches)))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return scaled dot-product attention, heads joined: [N, K, Q, d] and [N, K, T, d] twice -> [N, Q, K d]."""
    # In bfloat16 on a CPU the fused kernel's backward makes a step 1.46 times slower; on a GPU it takes no empty batch.
    if q.device.type == "cpu" or not q.shape[0]:
        attention = (q * q.shape[-1] ** -0.5 @ k.contiguous().mT).softmax(-1)  # q is smaller to scale than the product
        mixed = attention.to(v.dtype) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) with query, key and value biases, as in DINO's ViT."""

    def __init__(self, *, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys of each head: [N, T, D] -> [N, K, T, D/K] twice."""
        queries, keys, _ = self.qkv(x).chunk(3, dim=-1)
        return split_heads(queries, self.num_heads), split_heads(keys, self.num_heads)

    def forward(self, x: Tensor, *, queries: int | None = None) -> Tensor:
        """Map [N, T, D] to [N, queries, D]: the first `queries` tokens (all by default) attend to every token."""
        embed_dim = x.shape[-1]
        if queries is None:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            q = F.linear(x[:, :queries], self.qkv.weight[:embed_dim], self.qkv.bias[:embed_dim])
            k, v = F.linear(x, self.qkv.weight[embed_dim:], self.qkv.bias[embed_dim:]).chunk(2, dim=-1)
        return self.proj(attend(*(split_heads(t, self.num_heads) for t in (q, k, v))))


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Split [N, T, D] into heads [N, K, T, D/K]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def resize_positions(positions: Tensor, grid: tuple[int, int], *, rule: PositionRule) -> Tensor:
    """Interpolate a square grid's position embedding [1, g, g, D] to another grid: [1, h, w, D], bicubic, in float32.

    The families of encoders have three rules, which give different numbers on every grid but their own. "antialias": to
    the size, antialiased (ours, DINOv2 with registers, SimDINOv2, timm). "plain": to the size (transformers'
    Dinov2Model). "offset": by the factor (h + 0.1)/g (DINO, DINOv2 without registers)."""
    side = positions.shape[1]
    known = all(type(size) is int for size in grid)  # not where a program of any size is exported
    if known and grid == (side, side):
        return positions
    image = positions.permute(0, 3, 1, 2)
    with torch.autocast(image.device.type, enabled=False):
        if rule == "offset":
            factors = tuple((size + 0.1) / side for size in grid)
            image = F.interpolate(image, scale_factor=factors, mode="bicubic")
        else:
            image = F.interpolate(image, grid, mode="bicubic", antialias=rule == "antialias")
    return image.permute(0, 2, 3, 1)


@dataclass(frozen=True, kw_only=True)
class DropPathRows:
    """The images whose residual branch is kept (stochastic depth, Huang et al. 2016), and its factor."""

    rows: Tensor  # int64 [m], indices of kept images among the N
    factor: float  # 1/(1 - rate)


def kept_branches(
    keys: Tensor, rates: Sequence[float], *, branches: int, device: torch.device
) -> list[list[DropPathRows | None]]:
    """Return, for each block and each of its branches, the images that keep the branch; None at a rate of 0, where all
    do. The choice is a function of each image's own rng key.

    keys: int64 [N]; numbers are drawn on the CPU, so that no GPU has to be asked how many are kept. rates: of the
    blocks."""
    draws = counters.uniform(keys.cpu().numpy(), counters.DROP_PATH, branches * len(rates)).T
    chosen: list[list[DropPathRows | None]] = []
    for block, rate in enumerate(rates):
        own = draws[block * branches : (block + 1) * branches]
        rows = [torch.from_numpy(np.flatnonzero(draw >= rate)).to(device, non_blocking=True) for draw in own]
        chosen.append([DropPathRows(rows=kept, factor=1 / (1 - rate)) if rate else None for kept in rows])
    return chosen


def add_branch(to: Tensor, branch: Callable[[Tensor], Tensor], of: Tensor, kept: DropPathRows | None) -> Tensor:
    """Return to + branch(of), computed only for the images that keep the branch: dropped ones cost nothing."""
    if kept is None:
        return to + branch(of)
    return to.index_add(0, kept.rows, branch(of[kept.rows]).to(to.dtype), alpha=kept.factor)


def drop_rates(depth: int, largest: float, rule: Literal["linear", "uniform"]) -> list[float]:
    """Return the drop rate of each block: rising from 0 to the largest (DINO), or the same everywhere (DINOv2)."""
    if rule == "uniform":
        return [largest] * depth
    return [largest * i / max(1, depth - 1) for i in range(depth)]


class MLP(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, *, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """Linear, SiLU gate, linear, as in DINOv2's ViT-g. The hidden width is 2/3 of an MLP's, rounded up to a multiple of
    8."""

    def __init__(self, *, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        hidden_dim = (int(hidden_dim * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(embed_dim, 2 * hidden_dim)
        self.w3 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned scale per channel (Touvron et al. 2021, CaiT)."""

    def __init__(self, *, embed_dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block: attention, then MLP, each in a residual branch."""

    def __init__(self, *, embed_dim: int, num_heads: int, layer_scale: float | None, ffn: str = "mlp") -> None:
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(embed_dim=embed_dim, init=layer_scale)

        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = Attention(embed_dim=embed_dim, num_heads=num_heads)
        self.ls1 = scale()
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        feed_forward = SwiGLU if ffn == "swiglu" else MLP
        self.mlp = feed_forward(embed_dim=embed_dim, hidden_dim=4 * embed_dim)
        self.ls2 = scale()

    def forward(
        self, x: Tensor, *, kept: Sequence[DropPathRows | None] | None = None, queries: int | None = None
    ) -> Tensor:
        """Map [N, T, D] to [N, queries, D] (all tokens by default). kept: drop path of the two residual branches."""
        first, second = kept or (None, None)
        x = add_branch(x[:, :queries], lambda y: self.ls1(self.attn(self.norm1(y), queries=queries)), x, first)
        return add_branch(x, lambda y: self.ls2(self.mlp(self.norm2(y))), x, second)
