"""Images -> feature vectors: the one extractor that every evaluation uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simdino.config import Precision
from simdino.contracts import InputError, Preprocess
from simdino.data.base import Source
from simdino.data.opening import BrokenImage
from simdino.data.photometric import normalise, to_unit_range
from simdino.data.sources import DataPath, open_dataset
from simdino.data.views import centre
from simdino.data.workers import Waiting, in_order, patient
from simdino.device import fastest, make_autocast
from simdino.feedback import Progress, no_bar
from simdino.models.encoder import Encoder, eager, evaluating

BATCH = 256  # images read at a time
IN_CACHE = 64  # images at once on a CPU: their activations stay in its caches, a third faster than 256
PIXELS = 32  # the largest side at which raw pixels are compared


@dataclass(frozen=True, kw_only=True)
class Features:
    """Feature vectors of the readable images of a source, in its order."""

    vectors: Tensor  # float32 [N, D]
    names: list[str]
    labels: NDArray[np.int64] | None  # [N], positions in `classes`
    classes: tuple[str, ...]
    broken: dict[str, str]  # names of the images left out, and why

    def __len__(self) -> int:
        return len(self.names)


class Prepared:
    """Batches of images without randomness: (ids, uint8 [B, C, crop, crop], broken ids and reasons).

    reduced: let large JPEGs come at 1/2, 1/4 or 1/8 of their size, never below twice what is needed. Several times as
    fast for photographs, and up to 2.5 levels of 255 away from what a picture decoded whole gives (docs/parity.md)."""

    def __init__(
        self, source: Source, preprocess: Preprocess, *, batch: int = BATCH, reduced: bool = False
    ) -> None:  # fmt: skip
        self.source, self.preprocess = source.with_bits(preprocess.bits), preprocess
        self.batch, self.reduced = batch, reduced

    def __len__(self) -> int:
        return ceil(len(self.source) / self.batch)

    def __getitem__(self, k: int) -> tuple[list[int], Tensor, dict[int, str]]:
        ids, images, broken = [], [], {}
        for i in range(k * self.batch, min((k + 1) * self.batch, len(self.source))):
            try:
                images.append(self._prepare(i))
                ids.append(i)
            except BrokenImage as error:
                broken[i] = error.reason
        size = self.preprocess.crop
        empty = torch.empty(0, self.preprocess.channels, size, size, dtype=torch.uint8)
        return ids, torch.stack(images) if images else empty, broken

    def _prepare(self, i: int) -> Tensor:
        if not self.reduced:
            return centre(self.source.read(i, self.preprocess.channels), self.preprocess)
        image = self.source.read(i, self.preprocess.channels, at_least=2 * self.preprocess.resize)
        return centre(image, self.preprocess, sides=self.source.sides(i))


def prepared(
    source: Source, preprocess: Preprocess, *,
    workers: int = 0, reduced: bool = False, waiting: Waiting = patient,
) -> Iterator[tuple[list[int], Tensor, dict[int, str]]]:  # fmt: skip
    """The batches of `Prepared`, made by worker processes where asked for."""
    made = Prepared(source, preprocess, reduced=reduced)
    return in_order(made, range(len(made)), workers=workers, waiting=waiting)


def inputs(encoder: Encoder, images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] -> what the encoder takes, on its device: mean and std of its training images."""
    preprocess = encoder.preprocess
    return normalise(to_unit_range(images.to(encoder.device)), mean=preprocess.mean, std=preprocess.std)


def extract(
    encoder: Encoder,
    source: Source,
    *,
    precision: Precision | None = None,
    workers: int = 0,
    reduced: bool = False,
    waiting: Waiting = patient,
    progress: Progress = no_bar,
) -> Features:
    """Class tokens after the final norm, float32 [N, D], of a source's images prepared as the encoder wants them.

    precision: arithmetic of the encoder; the fastest on the device unless given. reduced: see `Prepared`. workers,
    waiting: see `data.workers.in_order`. progress: given the batches.
    """
    device, preprocess = encoder.device, encoder.preprocess
    autocast = make_autocast(device, precision or fastest(str(device)))
    vectors: list[Tensor] = []
    kept: list[int] = []
    broken: dict[str, str] = {}
    batches = prepared(source, preprocess, workers=workers, reduced=reduced, waiting=waiting)
    with evaluating(encoder):
        for ids, images, unreadable in progress(batches, f"features of {source.name}", ceil(len(source) / BATCH)):
            kept += ids
            broken |= {source.names[i]: reason for i, reason in unreadable.items()}
            with torch.inference_mode(), autocast, eager(encoder):
                for part in inputs(encoder, images).split(IN_CACHE if device.type == "cpu" else len(images) or 1):
                    vectors.append(encoder(part, patches=False).cls.float().cpu())
    return pack(source, kept, vectors, broken)


def pixels(
    source: Source, preprocess: Preprocess, *,
    size: int, workers: int = 0, reduced: bool = False, waiting: Waiting = patient,
) -> Features:  # fmt: skip
    """The pixels themselves, float32 [N, C*size*size], of images brought to `size` px and normalised as for the
    encoder: what k-NN reaches without any encoder. reduced: see `Prepared`."""
    preprocess = replace(preprocess, resize=size, crop=size)
    vectors, kept, broken = [], [], {}
    for ids, images, unreadable in prepared(source, preprocess, workers=workers, reduced=reduced, waiting=waiting):
        kept += ids
        broken |= {source.names[i]: reason for i, reason in unreadable.items()}
        vectors.append(normalise(to_unit_range(images), mean=preprocess.mean, std=preprocess.std).flatten(1))
    return pack(source, kept, vectors, broken)


def pixel_size(source: Source) -> int:
    """The size at which raw pixels are compared: that of the first readable image, at most 32 px."""
    for i in range(len(source)):
        try:
            return min(PIXELS, *source.read(i).shape[1:])
        except BrokenImage:
            continue
    return PIXELS


def pack(source: Source, kept: list[int], vectors: list[Tensor], broken: dict[str, str]) -> Features:
    """Features of the images `kept` of a source. Raises InputError when there are none."""
    if not kept:
        raise InputError(f"no readable image in {source.name}: {len(broken)} tried")
    return Features(
        vectors=torch.cat(vectors),
        names=[source.names[i] for i in kept],
        labels=None if source.labels is None else source.labels[kept],
        classes=source.classes,
        broken=broken,
    )


def embed(
    encoder: Encoder, data: str | Path | DataPath | Source, *,
    split: str = "all", workers: int = 0, reduced: bool = False,
) -> Features:  # fmt: skip
    """Features of every readable image of `data` (whatever `simdino pretrain` takes, or a source). reduced: see
    `Prepared`."""
    source = data if isinstance(data, Source) else open_dataset(data, split)  # pyright: ignore[reportArgumentType]
    return extract(encoder, source, workers=workers, reduced=reduced)
