"""Tokens -> unit embeddings, and the encoder with its heads over all views of a batch."""

from copy import deepcopy
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from simdino.contracts import Embeddings, Logits, Patches, Tokens, Views, unit
from simdino.models.encoder import Encoder

M = TypeVar("M", bound=nn.Module)


class UnitRows(torch.autograd.Function):
    """Rows [K, d] divided by their lengths. The backward makes one array of their size where that of F.normalize makes
    five, at the moment when the activations of a whole step are held too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """Map [K, d] to [K, d]."""
        lengths = rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        units = rows / lengths
        ctx.save_for_backward(units, lengths)
        return units

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient's part at right angles to each row, divided by the row's length."""
        found = torch.empty_like(gradients[0])
        parts = (part.split(4096) for part in (found, *gradients, *ctx.saved_tensors))
        for out, g, units, lengths in zip(*parts, strict=True):
            torch.sub(g, units * (g * units).sum(-1, keepdim=True), out=out).div_(lengths)
        return found


class Prototypes(nn.Module):
    """K prototypes, each a learned direction times a learned length. Logits are products with them, see
    `contracts.Logits`.

    This is the weight-normalised last layer of DINO's head; lengths are 1 and frozen in DINO (norm_last_layer), trained
    in DINOv2."""

    def __init__(self, *, dim: int, count: int, train_lengths: bool) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.empty(count, dim))
        self.lengths = nn.Parameter(torch.ones(count, 1), requires_grad=train_lengths)
        nn.init.uniform_(self.directions, -(dim**-0.5), dim**-0.5)  # torch's default, which DINO leaves here

    def weight(self) -> Tensor:
        """Return the prototypes [K, d], computed outside autocast."""
        with torch.autocast(self.directions.device.type, enabled=False):
            directions: Tensor = UnitRows.apply(self.directions)  # pyright: ignore[reportAssignmentType]
            return directions * self.lengths


class Projector(nn.Module):
    """Linear layers with GELU between, then unit norm: [..., D] -> [..., d], where d is D without layers.

    SimDINO keeps DINO's MLP head without its prototype layer (SimDINO/simdino/vision_transformer.py at 8149fc4); DINO
    and DINOv2 have `prototypes` after it."""

    def __init__(
        self, *, embed_dim: int, hidden_dim: int, out_dim: int, layers: int = 3, prototypes: Prototypes | None = None
    ) -> None:
        super().__init__()
        dims = [embed_dim, *[hidden_dim] * (layers - 1), out_dim] if layers else []
        parts = [part for a, b in pairwise(dims) for part in (nn.GELU(), nn.Linear(a, b))]
        self.layers = nn.Sequential(*parts[1:])
        self.prototypes = prototypes
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return unit vectors, in float32 or better even under autocast."""
        return unit(self.layers(x))

    def logits(self, features: Tensor) -> Logits | None:
        """Return prototype logits of unit features, or None without prototypes."""
        return None if self.prototypes is None else Logits(features=features, weight=self.prototypes.weight())


class Embedder(nn.Module):
    """An encoder and its projector: Views -> Embeddings. Student and teacher are one each.

    `patch_projector` is the masked patches' own head; without one, they share the class token's."""

    def __init__(self, encoder: Encoder, projector: Projector, patch_projector: Projector | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.patch_projector = patch_projector

    def heads(self) -> list[Projector]:
        """Return the one or two projectors."""
        return [self.projector] if self.patch_projector is None else [self.projector, self.patch_projector]

    def forward(self, views: Views, *, student: bool = True) -> Embeddings:
        """Embed the views: one pass of the encoder per resolution, one pass of the projector over all.

        student: see every view, through masks and with stochastic depth. Otherwise, as a teacher, see only the global
        views and all of their patches."""
        tokens = self._encode(views.global_views, views, first=0, student=student)
        backbone = tokens.cls.unflatten(0, (len(views.global_views), -1))
        if student and views.local_views is not None:
            local = self._encode(views.local_views, views, first=len(views.global_views), student=True)
            backbone = torch.cat([backbone, local.cls.unflatten(0, (len(views.local_views), -1))])  # [V, B, D]
        features = self.projector(backbone)
        return Embeddings(
            cls=features,
            backbone=backbone,
            indices=views.indices,
            logits=self.projector.logits(features),
            patches=None if views.masks is None else self._masked_patches(tokens, views),
        )

    def _encode(self, images: Tensor, views: Views, *, first: int, student: bool) -> Tokens:
        """Return the tokens of the views `images` [v, B, C, H, W], whose indices among the views begin at `first`;
        patches only where there are masks."""
        keys = torch.cat([views.keys + first + i for i in range(len(images))]) if student else None
        masks = views.masks.flatten(0, 1) if first == 0 and views.masks is not None else None
        return self.encoder(
            images.flatten(0, 1), keys=keys, masks=masks if student else None, patches=masks is not None
        )

    def _masked_patches(self, tokens: Tokens, views: Views) -> Patches:
        """Return the masked patches of tokens [G B, P, D], through their head."""
        assert tokens.patches is not None and views.masks is not None
        flat, keys = views.masks.flatten(0, 1), views.keys
        head = self.patch_projector or self.projector
        features = head(tokens.patches[flat])
        weights = 1 / flat.sum(1).clamp_min(1).to(features.dtype)
        crops, _ = flat.nonzero(as_tuple=True)
        return Patches(
            features=features,
            weights=weights[crops],
            keys=keys.to(crops.device)[crops % len(keys)] + crops // len(keys),
            indices=views.indices.to(crops.device)[crops % len(keys)],
            logits=head.logits(features[None]),
        )


def make_teacher(student: M, *, batch_norm: bool = False) -> M:
    """Return a copy of the student that takes no gradient.

    batch_norm: whether it has batch normalisation. The teacher then normalises by its own batch, as DINO's does, and
    its running statistics, which evaluations read, come from what it has seen itself."""
    return deepcopy(student).requires_grad_(False).train(batch_norm)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, *, momentum: float) -> None:
    """Set teacher <- momentum * teacher + (1 - momentum) * student for every parameter (buffers stay, as in DINO)."""
    torch._foreach_lerp_(list(teacher.parameters()), [p.detach() for p in student.parameters()], 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]
