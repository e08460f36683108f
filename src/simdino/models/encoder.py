"""What every encoder offers: images [N, C, H, W] -> Tokens. ViT, CRATE and timm's models all are one of these."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from simdino.config import EncoderConfig
from simdino.contracts import Preprocess, Tokens


class Encoder(nn.Module):
    """The contract of an encoder.

    Attributes:
        embed_dim: width D of its tokens.
        patch_size: side of a patch in pixels, which sides of images are multiples of; None where an encoder has no
            patch tokens that a mask could replace and takes images of any size.
        channels: of the images it takes.
        depth: the number of its blocks, for layer-wise learning rates.
        config, preprocess: how it was configured and how its images are prepared; set by `catalogue.make_encoder` and
            stored with the weights.
        compiled: whether its blocks run compiled (`compiled.compile_blocks`).
    """

    embed_dim: int
    patch_size: int | None
    channels: int
    depth: int
    config: EncoderConfig
    preprocess: Preprocess
    compiled: bool = False

    def forward(
        self, images: Tensor, *, keys: Tensor | None = None, masks: Tensor | None = None, patches: bool = True
    ) -> Tokens:
        """Encode images [N, C, H, W].

        keys: int64 [N], a random counter for each; with them and a drop path above zero, residual branches are
        dropped per image (training) as a function of its key only. Without, nothing is dropped.
        masks: bool [N, P], the patches that are replaced by the mask token.
        patches: False when only the class token is wanted, which may then be computed with less work.
        """
        raise NotImplementedError

    @property
    def batch_norm(self) -> bool:
        """Whether it normalises over the images of a batch. Then micro-batches change results and must be refused."""
        return any(isinstance(module, _BatchNorm) for module in self.modules())

    def layer_of(self, name: str) -> int:
        """The layer a parameter belongs to: 0 for the stem and the tokens, i + 1 for block i, depth + 1 for what
        follows the blocks."""
        raise NotImplementedError


def layer_by_name(name: str, depth: int) -> int:
    """`Encoder.layer_of` for encoders whose blocks are named blocks.0, blocks.1, ... and whose last norm is `norm`."""
    part, _, rest = name.partition(".")
    if part == "blocks":
        return int(rest.partition(".")[0]) + 1
    return depth + 1 if part == "norm" else 0
