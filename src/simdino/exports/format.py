"""What a format of other libraries is: files that are written, and a way to read them back."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simdino.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from simdino.models.encoder import Encoder
    from simdino.models.vit import ViT

WEIGHTS, PREPROCESS = "model.safetensors", "preprocess.json"
TRAINING = ("mask_token", "num_batches_tracked")
"""Last names of an encoder's tensors that training alone reads."""

SMALLEST = 64
"""Side in pixels from which an encoder that halves images five times, such as a ResNet, has two places on a side."""


@dataclass(frozen=True, kw_only=True)
class ReadBack:
    """An encoder as another program has it.

    by: that program, for people. tokens: a function of images float [N, C, H, W] that returns every token after the
    final norm [N, 1 + S + P, D]. names: the encoder's tensors that the files hold. any_size: whether images of other
    sides get the encoder's tokens too. prepare: how that program makes [1, C, H, W] of the path of a picture; None
    where it leaves that to people."""

    by: str
    tokens: Callable[[Tensor], Tensor]
    names: Collection[str]
    any_size: bool = True
    prepare: Callable[[Path], Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Format:
    """A layout of files that other libraries read.

    text: what it is, for help. needs: the packages of extras without which it cannot be written. write: the files of an
    encoder in an empty folder, for images of a side in pixels or of any (None); it raises InputError for an encoder
    that the layout cannot hold. read: such a folder, of the encoder that was written, by the library itself where it is
    installed. usage: Python that loads the folder FOLDER with that library alone and makes `cls` and `patches` of the
    file photo.jpg. fixes_size: whether the side of images can be fixed; elsewhere the library takes any. library: what
    the hub calls it."""

    text: str
    write: Callable[[Encoder, Path, int | None], None]
    read: Callable[[Encoder, Path], ReadBack]
    usage: str
    needs: tuple[str, ...] = ()
    fixes_size: bool = False
    library: str | None = None


def plain_vit(encoder: Encoder, *, name: str) -> ViT:
    """Return the encoder where it is a ViT of the plain kind, the only one that other libraries have. Raises InputError
    for any other."""
    from simdino.models.vit import ViT

    config = encoder.config
    if type(encoder) is not ViT:
        raise InputError(f"--to {name} holds no {config.name}: export a ViT of ours, or take --to onnx or torch")
    if config.patch_embed != "patch":
        raise InputError(
            f"--to {name} holds no encoder with the patch embedding {config.patch_embed}: train one with "
            f"--patch-embed patch, or take --to onnx or torch"
        )
    return encoder


def write_files(folder: Path, tensors: Mapping[str, Tensor], **contents: dict[str, Any]) -> None:
    """Write tensors as WEIGHTS, and each of `contents` as a file NAME.json."""
    from safetensors.torch import save_file

    contiguous = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def write_preprocess(encoder: Encoder, folder: Path) -> None:
    """Write how images are prepared, as PREPROCESS."""
    (folder / PREPROCESS).write_text(json.dumps(asdict(encoder.preprocess), indent=2) + "\n")


def program_of(encoder: Encoder, image_size: int | None) -> tuple[Any, tuple[str, ...]]:
    """Return the encoder as a program of torch.export, of any number of images, and the names of what it returns.

    image_size: the side of all images; None for any multiples of a patch, or for the encoder's own where it depends on
    it (`keeps_size`). Raises InputError for an encoder that gives no patch tokens."""
    import torch

    from simdino.models.encoder import NamedTokens, evaluating

    if image_size is not None and image_size % (encoder.patch_size or 1):
        raise InputError(
            f"--image-size {image_size} is not a multiple of the encoder's patches of {encoder.patch_size} px"
        )
    fixed = encoder.preprocess.crop if image_size is None and keeps_size(encoder) else image_size
    shape: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if fixed is not None:
        sizes = (fixed, fixed)
    else:
        side = encoder.patch_size or 1
        fewest = 2 if encoder.patch_size else SMALLEST
        rows, columns = (torch.export.Dim(name, min=fewest) for name in ("rows", "columns"))
        shape |= {2: side * rows, 3: side * columns}
        sizes = (side * (fewest + 3), side * (fewest + 4))  # not square, so that no two sides are taken for one
    images = torch.zeros(2, encoder.in_chans, *sizes, device=encoder.device)
    named = NamedTokens(encoder)
    with evaluating(encoder), torch.no_grad():
        if encoder(images).patches is None:
            raise InputError(f"a program of {encoder.config.name} cannot be made: it gives no patch tokens")
        return torch.export.export(named, (images,), dynamic_shapes=(shape,)), tuple(named(images))


def keeps_size(encoder: Encoder) -> bool:
    """Return whether no program of any size can give an encoder's tokens: positions of the rule "offset" go to other
    grids by another rule than to their own, timm's ViTs may have their sizes built in, and a ConvNet of theirs makes
    images of its own size one place."""
    from simdino.models.bag import BagOfChannels
    from simdino.models.vit import PatchTransformer

    if isinstance(encoder, BagOfChannels):
        return keeps_size(encoder.encoder)
    if isinstance(encoder, PatchTransformer):
        return encoder.positions == "offset"
    if encoder.config.name.startswith("timm:"):
        return encoder.patch_size is not None or encoder.preprocess.crop < SMALLEST
    return False


def every_token(encoder: Encoder) -> Callable[[Tensor], Tensor]:
    """Return a function of images that gives all tokens of an encoder in one tensor."""
    import torch

    def tokens(images: Tensor) -> Tensor:
        found = encoder(images)
        return torch.cat([x for x in (found.cls[:, None], found.registers, found.patches) if x is not None], dim=1)

    return tokens


def joined(named: Mapping[str, Tensor]) -> Tensor:
    """Return the named outputs of a program as one tensor, in the order of `every_token`."""
    import torch

    parts = [named["cls"][:, None], *(named[name] for name in ("registers", "patches") if name in named)]
    return torch.cat(parts, dim=1)


def own_reader(encoder: Encoder, *, instead_of: str, names: Collection[str], any_size: bool) -> ReadBack:
    """Return what simdino's own reader has, where the other library is not installed."""
    by = f"simdino ({instead_of} is not installed)"
    return ReadBack(by=by, tokens=every_token(encoder), names=names, any_size=any_size)


def by(package: str) -> str:
    """Return a package with its version."""
    return f"{package} {version(package)}"
