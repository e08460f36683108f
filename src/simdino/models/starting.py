"""The encoder before step 1."""

from __future__ import annotations

from simdino.config import Config
from simdino.contracts import InputError, Preprocess
from simdino.models.adapters import TIMM
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder
from simdino.models.module import ModuleEncoder
from simdino.models.resize import Weights
from simdino.models.weights import load_encoder, load_strictly


def starting_encoder(config: Config, preprocess: Preprocess, *, fresh: bool) -> Encoder:
    """Return the encoder before step 1: random, or with the weights in --init. Raises InputError where they do not
    fit."""
    try:
        encoder = make_encoder(config.encoder, preprocess)
    except ValueError as error:  # of sizes that do not go together
        raise InputError(f"encoder {config.encoder.name}: {error}") from None
    if encoder.batch_norm and config.speed.micro_batch is not None and config.speed.micro_batch < config.run.batch:
        raise InputError(
            f"--micro-batch {config.speed.micro_batch}: {config.encoder.name} normalises over its batch, so that "
            f"micro-batches would change the result; leave it out, or take an encoder without batch normalisation"
        )
    if isinstance(encoder, ModuleEncoder) and config.views.local_views:
        encoder.probe(config.views.local_size)
    if config.encoder.mask_token and not config.views.mask_share:
        encoder.get_parameter("mask_token").requires_grad_(False)  # it comes with weights; nothing here trains it
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
