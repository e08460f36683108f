"""What a format of other libraries is: files that are written, and a way to read them back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from simdino.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from simdino.models.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class Format:
    """A layout of files that other libraries read.

    text: what it is, for help. write: the files of an encoder in an empty folder; it raises InputError for an encoder
    that the layout cannot hold. read: from such a folder, of the encoder that was written, a function of images float
    [N, C, H, W] that returns every token after the final norm [N, 1 + S + P, D], as the library computes them where it
    is installed."""

    text: str
    write: Callable[[Encoder, Path], None]
    read: Callable[[Encoder, Path], Callable[[Tensor], Tensor]]


def check_vit(encoder: Encoder, *, name: str) -> None:
    """Raise InputError for an encoder that is no ViT of the plain kind, the only one that other libraries have."""
    from simdino.models.vit import ViT

    config = encoder.config
    if not isinstance(encoder, ViT):
        raise InputError(f"--to {name} holds no {config.name}: export a ViT of ours")
    if config.patch_embed != "patch":
        raise InputError(
            f"--to {name} holds no encoder with the patch embedding {config.patch_embed}: train one with "
            f"--patch-embed patch"
        )


def every_token(encoder: Encoder) -> Callable[[Tensor], Tensor]:
    """Return a function of images that gives all tokens of an encoder in one tensor."""
    import torch

    def tokens(images: Tensor) -> Tensor:
        found = encoder(images)
        return torch.cat([x for x in (found.cls[:, None], found.registers, found.patches) if x is not None], dim=1)

    return tokens
