"""The four methods as objects: which loss, which heads. Everything else of a run is the same for all of them."""

from __future__ import annotations

import torch

from simdino.config import Config, LossConfig, PrototypeLossConfig
from simdino.contracts import Objective
from simdino.losses.dino import DINO
from simdino.losses.dinov2 import DINOv2
from simdino.losses.simdino import SimDINO
from simdino.losses.simdinov2 import SimDINOv2
from simdino.models.encoder import Encoder
from simdino.models.projector import Embedder, Projector, Prototypes


def make_loss(config: Config, device: torch.device | None = None) -> Objective:
    """The objective of a run with its sizes; what it remembers lies on the device."""
    if isinstance(config.loss, LossConfig):
        tokens = make_simdino(config, config.loss)
        if config.run.method == "simdino" or not config.views.mask_share:
            return tokens
        return SimDINOv2(tokens=tokens, patch_weight=config.loss.patch_weight, patch_rate=config.loss.patch_rate)
    loss = make_dino(config, config.loss)
    if config.run.method == "dinov2":
        loss = DINOv2(
            tokens=loss,
            patch_prototypes=config.projector.prototypes,
            patch_weight=config.loss.patch_weight if config.views.mask_share else 0.0,
            koleo_weight=config.loss.koleo_weight,
        )
    loss.memory.update({name: value.to(device) for name, value in loss.memory.items()})
    return loss


def make_simdino(config: Config, loss: LossConfig) -> SimDINO:
    """SimDINO's loss, which is also SimDINOv2's on class tokens."""
    return SimDINO(
        batch=config.run.batch, dim=config.projector.dim, global_views=config.views.global_views,
        local_views=config.views.local_views, eps=loss.eps, gamma=loss.gamma, rho=loss.rho, scope=loss.scope,
        shard_size=loss.shard_size, rate_on=loss.rate_on,
    )  # fmt: skip


def make_dino(config: Config, loss: PrototypeLossConfig) -> DINO:
    """DINO's loss, which is also DINOv2's on class tokens."""
    return DINO(
        batch=config.run.batch, dim=config.projector.dim, prototypes=config.projector.prototypes,
        global_views=config.views.global_views, local_views=config.views.local_views,
        student_temperature=loss.student_temperature, center_momentum=loss.center_momentum, centering=loss.centering,
    )  # fmt: skip


def make_student(config: Config, encoder: Encoder) -> Embedder:
    """The encoder with the heads of the method, whose weights are random."""
    heads = config.projector

    def head() -> Projector:
        prototypes = None
        if heads.prototypes:
            prototypes = Prototypes(dim=heads.dim, count=heads.prototypes, train_lengths=heads.train_lengths)
        return Projector(width=encoder.embed_dim, hidden=heads.hidden, dim=heads.dim, prototypes=prototypes)

    separate = heads.separate and config.views.mask_share > 0
    return Embedder(encoder, head(), head() if separate else None)
