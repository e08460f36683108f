"""An encoder to work out by hand: a patch's token is its mean colour, the class token the picture's mean colour."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simdino.config import EncoderConfig
from simdino.contracts import Preprocess, Tokens
from simdino.models.encoder import Encoder
from simdino.models.layers import cut

PATCH = 4


class MeanColour(Encoder):
    """Notes the sides of the pictures that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim, self.patch_size, self.in_chans, self.depth = 3, PATCH, 3, 1
        self.config = EncoderConfig(name="vit_nano", image_size=8, patch_size=PATCH)
        self.preprocess = Preprocess(resize=8, crop=8, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
        self.place = nn.Parameter(torch.zeros(1))
        self.sides: list[tuple[int, int]] = []

    def forward(
        self, images: Tensor, *, keys: Tensor | None = None, masks: Tensor | None = None, patches: bool = True
    ) -> Tokens:
        self.sides.append((images.shape[2], images.shape[3]))
        grid = (images.shape[2] // PATCH, images.shape[3] // PATCH)
        return Tokens(cls=images.mean((-1, -2)), patches=cut(images, PATCH).mean((-1, -2)), grid=grid)
