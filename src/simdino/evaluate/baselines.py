"""What an encoder is compared with: itself before training."""

from collections.abc import Iterator

import torch

from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder


def random_twin(encoder: Encoder, *, seed: int = 0) -> Encoder:
    """The same encoder at random initialisation, on the same device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_encoder(encoder.config, encoder.preprocess).eval().to(encoder.device)


def compared(encoder: Encoder, *, baselines: bool) -> Iterator[tuple[str, Encoder]]:
    """The encoder, and with `baselines` its random twin, by the names of their rows in a table."""
    yield "encoder", encoder
    if baselines:
        yield "random initialisation", random_twin(encoder)
