"""Tokens -> unit embeddings, and the encoder with its projector over all views of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simdino.contracts import Embeddings, Views, unit


class Projector(nn.Module):
    """Three linear layers with GELU between, then the unit sphere: [..., D] -> [..., d].

    SimDINO keeps DINO's MLP head without its prototype layer (SimDINO/simdino/vision_transformer.py at 8149fc4).
    """

    def __init__(self, *, width: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, dim)
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Unit vectors in float32 or better, whatever autocast makes of the layers."""
        return unit(self.layers(x))


class Embedder(nn.Module):
    """An encoder and a projector: Views -> Embeddings. Student and teacher are two of these."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(self, views: Views, *, drop_path: bool = True) -> Embeddings:
        """Embed every view: one pass of the encoder per resolution, one pass of the projector over all."""
        keys = views.keys if drop_path else None
        tokens = [self._encode(views.global_views, keys, first=0)]
        if views.local_views is not None:
            tokens.append(self._encode(views.local_views, keys, first=len(views.global_views)))
        backbone = torch.cat(tokens)  # [V, B, D]
        return Embeddings(cls=self.projector(backbone), backbone=backbone, places=views.places)

    def _encode(self, images: Tensor, keys: Tensor | None, *, first: int) -> Tensor:
        """Class tokens [v, B, D] of the views [v, B, C, H, W], which are numbers `first` and up of their images."""
        count = len(images)
        view_keys = None if keys is None else torch.cat([keys + first + i for i in range(count)])
        return self.encoder(images.flatten(0, 1), keys=view_keys, patches=False).cls.unflatten(0, (count, -1))
