"""What a format of other libraries is: files that are written, and a way to read them back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simdino.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from simdino.models.encoder import Encoder
    from simdino.models.vit import ViT

WEIGHTS = "model.safetensors"


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


def plain_vit(encoder: Encoder, *, name: str) -> ViT:
    """Return the encoder where it is a ViT of the plain kind, the only one that other libraries have. Raises InputError
    for any other."""
    from simdino.models.vit import ViT

    config = encoder.config
    if type(encoder) is not ViT:
        raise InputError(f"--to {name} holds no {config.name}: export a ViT of ours, or take --to torch")
    if config.patch_embed != "patch":
        raise InputError(
            f"--to {name} holds no encoder with the patch embedding {config.patch_embed}: train one with "
            f"--patch-embed patch, or take --to torch"
        )
    return encoder


def write_files(folder: Path, tensors: Mapping[str, Tensor], **contents: dict[str, Any]) -> None:
    """Write tensors as WEIGHTS, and each of `contents` as a file NAME.json."""
    from safetensors.torch import save_file

    contiguous = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def every_token(encoder: Encoder) -> Callable[[Tensor], Tensor]:
    """Return a function of images that gives all tokens of an encoder in one tensor."""
    import torch

    def tokens(images: Tensor) -> Tensor:
        found = encoder(images)
        return torch.cat([x for x in (found.cls[:, None], found.registers, found.patches) if x is not None], dim=1)

    return tokens
