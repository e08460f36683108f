"""What every encoder offers: images [N, C, H, W] -> Tokens. ViT, CRATE and timm's models are encoders."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess, Tokens
from simdino.data.base import pixels_of
from simdino.data.opening import BrokenImage
from simdino.data.photometric import normalise, to_unit_range
from simdino.data.views import centre
from simdino.device import fastest, make_autocast

Projection = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From an attention's input [N, T, D] to its queries and keys [N, K, T, D/K]."""


class Encoder(nn.Module):
    """The contract of an encoder.

    Attributes:
        embed_dim: width D of its tokens.
        patch_size: side of a patch in pixels, of which the sides of images are multiples; None where an encoder has no
            patch tokens that a mask could replace and takes images of any size.
        in_chans: channels of the images it takes.
        depth: the number of its blocks, for layer-wise learning rates.
        has_class_token: whether the first token stands for the whole image.
        rates: how likely each block's residual branches are dropped for an image, by its key; None where an encoder
            drops none that way, and may draw otherwise.
        config, preprocess: how it was configured and how its images are prepared; set by `catalogue.make_encoder` and
            stored with the weights.
        compiled: whether its blocks run compiled (`starting.compile_blocks`).
    """

    embed_dim: int
    patch_size: int | None
    in_chans: int
    depth: int
    has_class_token: bool = True
    rates: Sequence[float] | None = None
    config: EncoderConfig
    preprocess: Preprocess
    compiled: bool = False

    def forward(
        self, images: Tensor, *, keys: Tensor | None = None, masks: Tensor | None = None, patches: bool = True
    ) -> Tokens:
        """Encode images [N, C, H, W].

        keys: int64 [N], an rng key for each; with them and a drop path above zero, residual branches are dropped per
        image (training) as a function of its key only. Without keys nothing is dropped.
        masks: bool [N, P], the patches that are replaced by the mask token.
        patches: False when only the class token is wanted, which may then be computed with less work.
        """
        raise NotImplementedError

    def transform(self, image: Any) -> Tensor:
        """Prepare an image as evaluations do: float32 [C, crop, crop].

        image: of Pillow, or the path of a file, or values (`data.base.pixels_of`). Raises InputError where it
        cannot be read."""
        about = self.preprocess
        name = str(image) if isinstance(image, str | Path) else "the image"
        try:
            pixels = pixels_of(image, name, channels=about.channels, values=about.values)
        except BrokenImage as error:
            raise InputError(f"{error.name} cannot be read: {error.reason}") from None
        return normalise(to_unit_range(centre(pixels, about)), mean=about.mean, std=about.std)

    def embed(self, images: Any, *, batch: int = 64) -> Tensor:
        """Return the features float32 [N, D] of N images, or of one with N = 1, on the CPU: the class token after the
        final norm, computed as evaluations do.

        images: one, or a list of them, see `transform`. batch: how many go through the encoder at once."""
        given = list(images) if isinstance(images, list | tuple) else [images]
        device, found = self.device, [torch.empty(0, self.embed_dim)]
        with evaluating(self), torch.inference_mode(), make_autocast(device, fastest(str(device))):
            for i in range(0, len(given), batch):
                part = torch.stack([self.transform(image) for image in given[i : i + batch]])
                found.append(self(part.to(device), patches=False).cls.float().cpu())
        return torch.cat(found)

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    @property
    def batch_norm(self) -> bool:
        """Whether it normalises over the images of a batch. Then micro-batches change results and must be refused."""
        return any(isinstance(module, _BatchNorm) for module in self.modules())

    @property
    def same_in_training(self) -> bool:
        """Whether a student computes the same numbers of an image as a teacher with its weights does: nothing is
        dropped, and no image changes another's numbers. False where that is not known."""
        return self.rates is not None and not any(self.rates) and not self.batch_norm

    @property
    def mask_token_name(self) -> str:
        """The name of the mask token among its parameters, where it has one."""
        return "mask_token"

    def stages(self) -> list[nn.Module]:
        """Return the parts that run one after the other, each called as a module with what the one before gave: its
        blocks. Empty where it has none."""
        return list(getattr(self, "blocks", ()))

    def layer_of(self, name: str) -> int:
        """Return the layer a parameter belongs to: 0 for the patch embedding and the tokens, i + 1 for block i (named
        blocks.i), depth + 1 for the last norm and a linear layer after it."""
        part, _, rest = name.partition(".")
        if part == "blocks":
            return int(rest.partition(".")[0]) + 1
        return self.depth + 1 if part in ("norm", "proj") else 0

    def last_blocks(self, images: Tensor, count: int) -> list[Tokens]:
        """Return the tokens after each of the last `count` blocks, each through the final norm, the last block's last.

        Raises InputError where there are fewer, or none with a class token each."""
        if count != 1:
            raise InputError(
                f"encoder {self.config.name} has no {count} last blocks with a class token each (depth {self.depth}): "
                f"ask for 1"
            )
        return [self(images)]

    def last_attention(self) -> tuple[nn.Module, Projection]:
        """Return the attention of the last block, and how it makes queries and keys of its input. Raises InputError
        where there is none that could be read."""
        raise InputError(
            f"the attention of encoder {self.config.name} cannot be read: its last block has none, or not the plain "
            f"one of a ViT; take a ViT or a CRATE"
        )


class NamedTokens(nn.Module):
    """An encoder as a function of images [N, C, H, W] alone, to a dict of "cls" [N, D], "patches" [N, P, D] and, where
    there are some, "registers" [N, S, D]: what other programs can hold."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Encode images."""
        tokens = self.encoder(images)
        named = {"cls": tokens.cls, "registers": tokens.registers, "patches": tokens.patches}
        return {name: value for name, value in named.items() if value is not None and value.numel()}


@contextmanager
def evaluating(encoder: Encoder) -> Iterator[None]:
    """Keep an encoder in eval mode and without compiled code while the body runs: evaluations have other batch sizes,
    and each would be compiled anew."""
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.compiler.set_stance("force_eager") if encoder.compiled else nullcontext():
            yield
    finally:
        encoder.train(was_training)


EVERY_FIELD = frozenset(field.name for field in fields(EncoderConfig))

ABSENT: dict[str, Any] = {
    "patch_size": 1, "registers": 0, "layer_scale": None, "mask_token": False, "drop_path": 0.0, "ffn": "mlp",
    "pool": "mean",
}  # fmt: skip
"""What a configuration says of parts that an encoder does not have."""


@dataclass(frozen=True, kw_only=True)
class EncoderKind:
    """An entry of `catalogue.ENCODERS`: how an encoder of a name is made, and what is known of it before that.

    make: from a configuration, whose width, depth and heads are those below unless given, and the channels of its
        images. It raises InputError or ValueError for what it cannot be.
    reads: the fields of a configuration that the encoder reads; a person who gives another is told so. One that reads
        `mask_token` must put it in place of masked patches.
    block_size: parameters of a block, as a multiple of the square of the width.
    patch_sizes: the sides that a patch can have, rising; empty: any.
    compiles: whether --compile compiles its blocks (`starting.compile_blocks`).
    projects: whether its class token is the output of a linear layer, which then stands for a projector of one layer.
    joins: whether it sees each channel alone and joins the tokens, which are as many times as wide as `embed_dim`.
    muon_rate: the share of a recipe's learning rate that it bears under Muon (docs/log.md, the grid of robustness). All
        of it where a norm follows each layer, so that its weights' size has no effect; half of it else.
    """

    make: Callable[[EncoderConfig, int], Encoder]
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    reads: frozenset[str] = frozenset({"name", "image_size"})
    block_size: int = 12
    patch_sizes: tuple[int, ...] = ()
    compiles: bool = False
    projects: bool = False
    joins: bool = False
    muon_rate: float = 0.5

    def patch_for(self, image_size: int, patch_size: int) -> int:
        """Return the side of a patch in images of this size where a person gave none: of those it can have the largest
        that leaves 4 patches a side; of any, a power of two that leaves 7, `patch_size` where none does."""
        if not self.patch_sizes:
            whole = (side for side in (16, 8, 4) if image_size % side == 0 and image_size >= 7 * side)
            return next(whole, patch_size)
        fitting = [side for side in self.patch_sizes if 4 * side <= image_size]
        return max(fitting, default=min(self.patch_sizes))

    def fitted(self, config: EncoderConfig) -> EncoderConfig:
        """Return the configuration without the parts that the encoder does not read; a method's settings are for
        ViTs."""
        return replace(config, **{field: value for field, value in ABSENT.items() if field not in self.reads})

    @property
    def unread(self) -> frozenset[str]:
        """The fields of a configuration that the encoder does not read."""
        return EVERY_FIELD - self.reads

    @property
    def shape(self) -> dict[str, Any]:
        """The width, depth and heads that the name stands for."""
        return {"embed_dim": self.embed_dim, "depth": self.depth, "num_heads": self.num_heads}

    def complete(self, config: EncoderConfig) -> EncoderConfig:
        """Return the configuration with the shape that the name stands for, where it gives no other."""
        return replace(config, **{part: getattr(config, part) or value for part, value in self.shape.items()})
