"""What a linear head reads of an encoder: class tokens of its last blocks, and the mean of its patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simdino.config import Precision
from simdino.contracts import InputError, Tokens
from simdino.device import fastest, make_autocast
from simdino.features.extract import IN_CACHE
from simdino.features.intermediate import last_blocks
from simdino.feedback import Log
from simdino.models.encoder import Encoder, eager


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
        self.encoder, self.layers = encoder.eval(), list(layers)
        self.device = encoder.device
        self.autocast = make_autocast(self.device, precision or fastest(str(self.device)))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """See above."""
        parts: list[list[Tensor]] = []
        with self.autocast, eager(self.encoder):
            for part in images.split(IN_CACHE if self.device.type == "cpu" else len(images) or 1):
                tokens = self._tokens(part)
                parts.append([layers.of(tokens) for layers in self.layers])
        return [torch.cat(of_one) for of_one in zip(*parts, strict=True)]

    def _tokens(self, images: Tensor) -> list[Tokens]:
        """Of no more blocks than needed; of the last block's class token alone where nothing else is read."""
        if self.layers == [Layers()]:
            return [self.encoder(images, patches=False)]
        return last_blocks(self.encoder, images, count=max(layers.blocks for layers in self.layers))

    def widths(self) -> list[int]:
        """How many numbers each of the layers has."""
        preprocess = self.encoder.preprocess
        blank = torch.zeros(1, preprocess.channels, preprocess.crop, preprocess.crop, device=self.device)
        return [x.shape[1] for x in self(blank)]


@torch.no_grad()
def readable(encoder: Encoder, wanted: Sequence[Layers], *, log: Log) -> list[Layers]:
    """`wanted` as far as the encoder has it, tried on a blank image: the last block alone where it has not so many
    blocks with a class token each, and no mean where it has no patches. What is left out is said in a line."""
    preprocess, device = encoder.preprocess, encoder.device
    blank = torch.zeros(1, preprocess.channels, preprocess.crop, preprocess.crop, device=device)
    encoder.eval()
    count = max(layers.blocks for layers in wanted)
    try:
        tokens = last_blocks(encoder, blank, count=count)
    except InputError:
        tokens = last_blocks(encoder, blank, count=1)
        name = encoder.config.name
        log(f"heads read the last block alone: encoder {name} has no {count} last blocks with a class token each")
    patches = tokens[-1].patches is not None
    if not patches and any(layers.avgpool for layers in wanted):
        log(f"no head reads a mean of patches: encoder {encoder.config.name} tells no patch tokens apart")
    fitting = [Layers(blocks=min(w.blocks, len(tokens)), avgpool=w.avgpool and patches) for w in wanted]
    return list(dict.fromkeys(fitting))
