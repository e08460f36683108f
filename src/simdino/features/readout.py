"""What a linear head reads of an encoder: class tokens of its last blocks, and the mean of its patches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simdino.config import Precision
from simdino.contracts import InputError, Tokens
from simdino.features.extract import arithmetic, blank, in_parts
from simdino.feedback import Log
from simdino.models.encoder import Encoder, evaluating


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The class tokens of the last so many blocks, each after the final norm, in the blocks' order; then, with
    `avgpool`, the mean of the last block's patches. One after the other, as DINOv2 has them; DINO's released heads of
    ViT-B have class token and mean interleaved, number by number."""

    blocks: int = 1
    avgpool: bool = False

    def __str__(self) -> str:
        named = "last block" if self.blocks == 1 else f"last {self.blocks} blocks"
        return f"{named} and mean patch" if self.avgpool else named

    def of(self, tokens: Sequence[Tokens]) -> Tensor:
        """float32 [N, width] of the tokens of the last blocks, of which there may be more than it reads."""
        parts = [one.cls.float() for one in tokens[-self.blocks :]]
        if self.avgpool:
            patches = tokens[-1].patches
            assert patches is not None, "an encoder without patches has no mean of them"
            parts.append(patches.float().mean(1))
        return torch.cat(parts, dim=-1)


class Reader:
    """A frozen encoder as what heads read of it: prepared images [N, C, H, W] -> float32 [N, width] for each of
    `layers`, all from one forward pass. Puts the encoder into eval mode.

    precision: arithmetic of the encoder; the fastest on its device unless given."""

    def __init__(self, encoder: Encoder, layers: Sequence[Layers], *, precision: Precision | None = None) -> None:
        self.encoder, self.layers, self.device = encoder.eval(), list(layers), encoder.device
        self.autocast = arithmetic(encoder, precision)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """See above. No more blocks are read than needed; where the last class token is all, no patches are made."""
        count = max(layers.blocks for layers in self.layers)
        parts: list[list[Tensor]] = []
        with evaluating(self.encoder), self.autocast:
            for part in in_parts(self.encoder, images):
                alone = self.layers == [Layers()]
                tokens = [self.encoder(part, patches=False)] if alone else self.encoder.last_blocks(part, count)
                parts.append([layers.of(tokens) for layers in self.layers])
        return [torch.cat(of_one) for of_one in zip(*parts, strict=True)]

    def widths(self) -> list[int]:
        """How many numbers each of the layers has."""
        return [x.shape[1] for x in self(blank(self.encoder))]


@torch.no_grad()
def readable(encoder: Encoder, wanted: Sequence[Layers], *, log: Log) -> list[Layers]:
    """`wanted` as far as the encoder has it, tried on a blank image: the last block alone where it has not so many
    blocks with a class token each, and no mean where it has no patches. A line tells what is left out."""
    count, name = max(layers.blocks for layers in wanted), encoder.config.name
    with evaluating(encoder):
        try:
            tokens = encoder.last_blocks(blank(encoder), count)
        except InputError:
            tokens = encoder.last_blocks(blank(encoder), 1)
            log(f"heads read the last block alone: encoder {name} has no {count} last blocks with a class token each")
    patches = tokens[-1].patches is not None
    if not patches and any(layers.avgpool for layers in wanted):
        log(f"no head reads a mean of patches: encoder {name} tells no patch tokens apart")
    fitting = [Layers(blocks=min(w.blocks, len(tokens)), avgpool=w.avgpool and patches) for w in wanted]
    return list(dict.fromkeys(fitting))
