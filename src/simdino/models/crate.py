"""CRATE, the white-box transformer: images [N, C, H, W] -> Tokens.

The architecture is that of Yu et al. 2023, "White-Box Transformers via Sparse Rate Reduction" (arXiv 2306.01129), with
the choices of the authors' released classifier. A block is one step of maximising R(Z) - R^c(Z | U) - lambda |Z|_0 over
the tokens Z of an image: attention compresses them against the subspaces U_k (R^c falls), ISTA codes them sparsely in a
dictionary.

Self-supervision needs what the classifier lacks: the first half of its head is our last norm, and positions on other
grids, drop path, a mask token and registers come from `PatchTransformer`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simdino.config import EncoderConfig
from simdino.contracts import InputError
from simdino.models.encoder import EVERY_FIELD, EncoderKind
from simdino.models.layers import DropPathRows, DualPatchNorm, add_branch, attend
from simdino.models.vit import PatchTransformer

EPS = 1e-5  # of every layer norm
STEP = 0.1  # eta of ISTA
PENALTY = 0.1  # lambda of ISTA


class SubspaceAttention(nn.Module):
    """Multi-head subspace self-attention (MSSA): query, key and value are one projection onto K subspaces."""

    def __init__(self, *, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.subspaces = nn.Linear(embed_dim, embed_dim, bias=False)  # rows: U_1ᵀ, ..., U_Kᵀ
        self.proj = nn.Linear(embed_dim, embed_dim)

    def project(self, x: Tensor) -> Tensor:
        """Return coordinates in each subspace: [N, T, D] -> [N, K, T, D/K]."""
        return self.subspaces(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coordinates in the subspaces as queries and as keys: [N, T, D] -> [N, K, T, D/K] twice."""
        codes = self.project(x)
        return codes, codes

    def forward(self, x: Tensor, *, queries: int | None = None) -> Tensor:
        """Map [N, T, D] to [N, queries, D]: the first `queries` tokens (all by default) attend to every token."""
        w = self.project(x)
        return self.proj(attend(w[:, :, :queries], w, w))


class ISTA(nn.Module):
    """One proximal gradient step, from the token itself, on its non-negative sparse code in a dictionary: ReLU(y + eta
    Dᵀ(y - Dy) - eta lambda)."""

    def __init__(self, *, embed_dim: int) -> None:
        super().__init__()
        self.dictionary = nn.Parameter(torch.empty(embed_dim, embed_dim))
        nn.init.kaiming_uniform_(self.dictionary)

    def forward(self, y: Tensor) -> Tensor:
        """Map [..., D] to [..., D], none below zero."""
        residual = y - F.linear(y, self.dictionary)
        return F.relu(y + STEP * F.linear(residual, self.dictionary.mT) - STEP * PENALTY)


class WhiteBoxBlock(nn.Module):
    """Compression against the subspaces in a residual branch, then a sparse code, which is the block's output. ISTA has
    no parallel branch that could stay while it is dropped, so drop path applies to attention alone."""

    def __init__(self, *, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=EPS)
        self.attn = SubspaceAttention(embed_dim=embed_dim, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=EPS)
        self.ista = ISTA(embed_dim=embed_dim)

    def forward(
        self, x: Tensor, *, kept: Sequence[DropPathRows | None] | None = None, queries: int | None = None
    ) -> Tensor:
        """Map [N, T, D] to [N, queries, D] (all tokens by default). kept: drop path of the attention branch."""
        return self.ista(self.norm2(self.compress(x, kept=kept, queries=queries)))

    def compress(
        self, x: Tensor, *, kept: Sequence[DropPathRows | None] | None = None, queries: int | None = None
    ) -> Tensor:
        """Return the tokens after the block's first half, the input of ISTA's norm."""
        (only,) = kept or (None,)
        return add_branch(x[:, :queries], lambda y: self.attn(self.norm1(y), queries=queries), x, only)

    def subspace_codes(self, x: Tensor) -> Tensor:
        """Return what this block's attention sees of tokens: U_kᵀ of their norm, [N, T, D] -> [N, K, T, D/K]."""
        return self.attn.project(self.norm1(x))


class CRATE(PatchTransformer):
    """The CRATE of a configuration. `from_official` renames the parameters of the released files. Raises InputError for
    parts that a block of CRATE cannot have."""

    branches = 1

    def __init__(self, config: EncoderConfig, in_chans: int) -> None:
        if config.layer_scale is not None or config.ffn != "mlp":
            raise InputError(f"{config.name} has neither layer scale nor a feed-forward network: its block is fixed")
        super().__init__(config, in_chans)
        width, patch = self.embed_dim, config.patch_size
        self.patch_embed = DualPatchNorm(in_chans=in_chans, embed_dim=width, patch_size=patch, eps=EPS)
        self.blocks = nn.ModuleList(WhiteBoxBlock(embed_dim=width, num_heads=self.num_heads) for _ in range(self.depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        for token in (self.cls_token, self.pos_embed, self.register_tokens):
            if token is not None:  # as large as patch tokens, which leave the patch embedding with variance 1
                nn.init.normal_(token)


def crate(embed_dim: int, depth: int, num_heads: int) -> EncoderKind:
    """Return an entry of `catalogue.ENCODERS`."""
    reads = EVERY_FIELD - {"layer_scale", "ffn", "patch_embed", "token_std", "pool"}
    return EncoderKind(
        make=CRATE, embed_dim=embed_dim, depth=depth, num_heads=num_heads, reads=reads, block_size=3, compiles=True
    )


ENCODERS = {
    "crate_nano": crate(192, 6, 3),
    "crate_tiny": crate(384, 12, 6),
    "crate_small": crate(576, 12, 12),
    "crate_base": crate(768, 12, 12),
    "crate_large": crate(1024, 24, 16),
}
"""The sizes of CRATE. crate_nano is not from the paper; it is for small images on a laptop."""

OFFICIAL = {
    r"cls_token": "cls_token",
    r"pos_embedding": "pos_embed",
    r"to_patch_embedding\.1\.(weight|bias)": r"patch_embed.before.\1",
    r"to_patch_embedding\.2\.(weight|bias)": r"patch_embed.proj.\1",
    r"to_patch_embedding\.3\.(weight|bias)": r"patch_embed.after.\1",
    r"transformer\.layers\.(\d+)\.0\.norm\.(weight|bias)": r"blocks.\1.norm1.\2",
    r"transformer\.layers\.(\d+)\.0\.fn\.qkv\.weight": r"blocks.\1.attn.subspaces.weight",
    r"transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.(weight|bias)": r"blocks.\1.attn.proj.\2",
    r"transformer\.layers\.(\d+)\.1\.norm\.(weight|bias)": r"blocks.\1.norm2.\2",
    r"transformer\.layers\.(\d+)\.1\.fn\.weight": r"blocks.\1.ista.dictionary",
    r"mlp_head\.0\.(weight|bias)": r"norm.\1",
}
"""Keys of the released files -> our keys."""


def from_official(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a file of github.com/Ma-Lab-Berkeley/CRATE under our names, without its linear classifier.

    state_dict: the file's content, with or without the outer `state_dict` and the prefix `module.`. Raises InputError
    that lists every unknown key."""
    tensors: Mapping[str, Tensor] = state_dict.get("state_dict", state_dict)
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        name = key.removeprefix("module.")
        if name in ("mlp_head.1.weight", "mlp_head.1.bias"):
            continue
        own = next((re.sub(old, new, name) for old, new in OFFICIAL.items() if re.fullmatch(old, name)), None)
        if own is None:
            unknown.append(key)
        else:
            renamed[own] = tensor
    if unknown:
        raise InputError(f"not the keys of a CRATE classifier: {', '.join(unknown)}")
    return renamed
