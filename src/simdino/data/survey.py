"""What a data set looks like: sizes, colours, broken files, classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simdino.config import DataPath
from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.data.contents import Contents
from simdino.data.decode import BrokenImage
from simdino.data.sources import open_source

ENOUGH = 256  # pixels of a short side that tell an image's colours; a photo's full size takes ten times as long


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Measured on an evenly spaced subset of a source; `images`, `labels` and `class_counts` are of all of it."""

    images: int
    read: int  # how many were tried
    broken: Mapping[str, str]  # name -> reason, of those that were tried
    channels: int  # 1 if every readable image is grey, else 3
    short_side: int  # median, in pixels
    long_side: int  # median, in pixels
    smallest: int  # the smallest short side
    mean: tuple[float, ...]  # per channel, in 0..1, each image weighted equally
    std: tuple[float, ...]
    labels: int  # the number of classes, 0 without labels
    class_counts: Mapping[str, int]  # images of each class, empty without labels
    contents: Contents | None = None  # what the files were taken for, where the source has files


@dataclass(frozen=True)
class _Measured:
    """One image. Grey statistics have one element."""

    sides: tuple[int, int]  # short, long
    mean: np.ndarray
    square: np.ndarray  # the mean of the squares


def survey(source: Source, *, limit: int | None = 1000) -> Survey:
    """Reads min(limit, len(source)) images, evenly spaced and always the same; None reads all.

    Raises:
        InputError: the source has no image, or none of those tried can be read.
    """
    positions = _evenly(len(source), limit)
    broken: dict[str, str] = {}
    measured: list[_Measured] = []
    for i in positions:
        try:
            measured.append(_measure(source.read(int(i), at_least=ENOUGH), source.sides(int(i))))
        except BrokenImage as error:
            broken[error.name] = error.reason
    if not measured:
        raise InputError(_nothing(source, broken))
    channels = max(len(image.mean) for image in measured)
    mean = np.mean([np.broadcast_to(image.mean, channels) for image in measured], axis=0)
    square = np.mean([np.broadcast_to(image.square, channels) for image in measured], axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    sides = np.array([image.sides for image in measured])
    counts = _class_counts(source)
    return Survey(
        images=len(source),
        read=len(positions),
        broken=broken,
        channels=channels,
        short_side=int(np.median(sides[:, 0])),
        long_side=int(np.median(sides[:, 1])),
        smallest=int(sides[:, 0].min()),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        labels=len(counts),
        class_counts=counts,
        contents=source.contents,
    )


def survey_training_images(data: DataPath, *, max_broken: float) -> Survey:
    """What the training images are like. Raises InputError when none of those tried can be read, or when all were
    tried and a larger share than `max_broken` cannot; of larger data the run itself finds out."""
    facts = survey(open_source(data, "train"))
    if facts.read == facts.images and len(facts.broken) > max_broken * facts.images:
        name, reason = next(iter(facts.broken.items()))
        raise InputError(
            f"{len(facts.broken)} of the {facts.images} training images in {data.root} cannot be read, more than the "
            f"share --max-broken {max_broken} (first {name}: {reason}); `simdino inspect {data.root}` lists them"
        )
    return facts


def broken_images(source: Source) -> dict[str, str]:
    """Name and reason of every image that cannot be read."""
    broken: dict[str, str] = {}
    for i in range(len(source)):
        try:
            source.read(i, at_least=ENOUGH)
        except BrokenImage as error:
            broken[error.name] = error.reason
    return broken


def _evenly(count: int, limit: int | None) -> np.ndarray:
    """Distinct positions from the first to the last."""
    wanted = count if limit is None else min(limit, count)
    return np.linspace(0, count - 1, wanted).round().astype(np.int64)


def _measure(image: Tensor, sides: tuple[int, int]) -> _Measured:
    """Statistics of uint8 [C, H, W], channel by channel to keep a large picture's copy in float small."""
    moments = [torch.var_mean(channel.float() / 255, correction=0) for channel in image]
    var, mean = (np.array([float(value) for value in values]) for values in zip(*moments, strict=True))
    return _Measured((min(sides), max(sides)), mean, var + mean**2)


def _class_counts(source: Source) -> dict[str, int]:
    if source.labels is None:
        return {}
    counts = np.bincount(source.labels, minlength=len(source.classes))
    return {name: int(count) for name, count in zip(source.classes, counts, strict=True)}


def _nothing(source: Source, broken: Mapping[str, str]) -> str:
    if not broken:
        return f"data: '{source.name}' has no image to look at; give a data set with images"
    name, reason = next(iter(broken.items()))
    return f"data: none of the {len(broken)} images tried in '{source.name}' can be read, first {name} ({reason})"
