"""What an encoder is compared with: itself before training."""

from __future__ import annotations

import torch

from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder


def random_twin(encoder: Encoder, *, seed: int = 0) -> Encoder:
    """The same encoder at random initialisation: what training is measured against."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_encoder(encoder.config, encoder.preprocess).eval()
