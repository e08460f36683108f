"""The four methods as objects: which loss, which encoder and heads. All else of a run is the same for all of them."""

from __future__ import annotations

import torch

from simdino.config import Config, LossConfig, PrototypeLossConfig
from simdino.contracts import InputError, Objective, Preprocess
from simdino.losses.dino import DINO
from simdino.losses.dinov2 import DINOv2
from simdino.losses.simdino import SimDINO
from simdino.losses.simdinov2 import SimDINOv2
from simdino.models.adapters import TIMM
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder
from simdino.models.projector import Embedder, Projector, Prototypes
from simdino.models.resize import Weights
from simdino.models.weights import load_encoder, load_strictly


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
            shard_size=config.loss.shard_size if config.loss.scope == "shards" else None,
        )
    loss.memory.update({name: value.to(device) for name, value in loss.memory.items()})
    return loss


def make_simdino(config: Config, loss: LossConfig) -> SimDINO:
    """SimDINO's loss, which is also SimDINOv2's on class tokens."""
    return SimDINO(
        batch=config.run.batch, dim=config.projector.dim, global_views=config.views.global_views,
        local_views=config.views.local_views, eps=loss.eps, gamma=loss.gamma, rho=loss.rho,
        lift=loss.lift if loss.gamma == "balanced" else 0.0, scope=loss.scope,
        shard_size=loss.shard_size, rate_on=loss.rate_on,
    )  # fmt: skip


def make_dino(config: Config, loss: PrototypeLossConfig) -> DINO:
    """DINO's loss, which is also DINOv2's on class tokens."""
    return DINO(
        batch=config.run.batch, dim=config.projector.dim, prototypes=config.projector.prototypes,
        global_views=config.views.global_views, local_views=config.views.local_views,
        student_temperature=loss.student_temperature, center_momentum=loss.center_momentum, centering=loss.centering,
    )  # fmt: skip


def starting_encoder(config: Config, preprocess: Preprocess, *, fresh: bool) -> Encoder:
    """The encoder before step 1: random, or of the weights in --init. Raises InputError where they do not fit."""
    encoder = make_encoder(config.encoder, preprocess)
    if encoder.batch_norm and config.speed.micro_batch is not None and config.speed.micro_batch < config.run.batch:
        raise InputError(
            f"--micro-batch {config.speed.micro_batch}: {config.encoder.name} normalises over its batch, so that "
            f"micro-batches would change the result; leave it out, or take an encoder without batch normalisation"
        )
    if config.encoder.mask_token and not config.views.mask_share:
        encoder.get_parameter("mask_token").requires_grad_(False)  # of the weights; nothing here would train it
    if config.run.init is not None and fresh:
        tensors = load_encoder(
            config.run.init,
            image_size=config.encoder.image_size,
            patch_size=None if config.encoder.name.startswith(TIMM) else config.encoder.patch_size,
            channels=config.data.channels,
            positions=None if config.encoder.name.startswith(TIMM) else config.encoder.positions,
        ).state_dict()
        if config.encoder.mask_token:
            tensors.setdefault("mask_token", encoder.state_dict()["mask_token"])
        weights = Weights(origin=config.run.init, config=config.encoder, preprocess=preprocess, tensors=tensors)
        load_strictly(encoder, weights)
    return encoder


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
