"""The images of a bank that are nearest to a picture."""

from __future__ import annotations

import torch
from torch import Tensor

from simdino.data.base import Source
from simdino.data.views import centre
from simdino.evaluate.classification.neighbours import nearest
from simdino.features.extract import Features
from simdino.models.encoder import Encoder


def nearest_images(
    picture: Tensor, vector: Tensor, bank: Features, source: Source, encoder: Encoder, *, k: int
) -> list[Tensor]:
    """Return the `k` images of the bank nearest to an image's feature, as the encoder gets them, without one copy of
    itself."""
    _, _, order = next(nearest(bank.vectors, vector[None], k=min(k + 1, len(bank))))
    found = [centred(source, bank.names[i], encoder) for i in order[0].tolist()]
    own = next((i for i, image in enumerate(found) if torch.equal(image, picture)), len(found))
    return (found[:own] + found[own + 1 :])[:k]


def centred(source: Source, name: str, encoder: Encoder) -> Tensor:
    """Return an image as the encoder gets it: uint8 [C, crop, crop]."""
    i = source.names.index(name)
    source = source.with_bits(encoder.preprocess.bits)
    image = source.read(i, encoder.in_chans, at_least=2 * encoder.preprocess.resize)
    return centre(image, encoder.preprocess, sides=source.sides(i))
