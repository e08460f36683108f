"""Statistics of a data set: sizes, colours, depth, broken files, classes, and warnings that a person should see."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.data.contents import Contents
from simdino.data.decode import Decoded
from simdino.data.opening import BrokenImage
from simdino.data.photometric import to_unit_range
from simdino.settings import Values

ALIKE = 1 / 255  # images with a smaller std between them are alike; an image with a smaller std is flat
CELLS = 32  # images are compared by the means of a grid of CELLS x CELLS
FEW = 64  # images that tell whether all are alike
COLOURS = 3  # channels
FEW_COLOURS = 0.5  # share of images with colours below which a warning is given: the others are grey
MANY_FLAT = 0.1  # share of flat images above which a warning is given
ENOUGH = 256  # pixels of the short side at which colours are measured; a photo's full size takes ten times as long
NO_PIXELS = torch.empty(0)
BINS = 32  # of a histogram
COUNTED = 20_000  # pixels of an image in a histogram
SHADES = " .:-=+*#%@"  # of a histogram in a line of text, which every terminal shows


@dataclass(frozen=True)
class Noticed:
    """How many images have a property, and the first one's name."""

    images: int
    first: str | None


NONE = Noticed(0, None)


@dataclass(frozen=True, kw_only=True)
class DatasetStatistics:
    """Statistics of a data set. They are measured on an evenly spaced subset; `images`, `labels` and `class_counts` are
    of all of it."""

    images: int
    read: int  # how many images were tried
    broken: Mapping[str, str]  # name -> reason, of the images tried
    channels: int  # 1 if every readable image is grey, 3 if some have colours, else those that all have
    short_side: int  # median, in pixels
    long_side: int  # median, in pixels
    smallest: int  # the smallest short side
    mean: tuple[float, ...]  # per channel, in 0..1, each image weighted equally
    std: tuple[float, ...]
    histograms: tuple[tuple[float, ...], ...] = ()  # per channel, the share of pixels in each of BINS parts of 0..1
    values: Values | None = None  # what became 0 and 1 in images of more than 8 bits, None where there are none
    spread: float | None = None  # the largest std between images, in 0..1; None for a single image
    flat: Noticed = NONE  # images of one colour
    transparent: Noticed = NONE  # images that are partly transparent, and lie on white
    coloured: Noticed = NONE  # images with three channels
    clipped: Noticed = NONE  # images with a good part of their values outside of `values`
    labels: int  # the number of classes, 0 without labels
    class_counts: Mapping[str, int]  # images of each class, empty without labels
    contents: Contents | None = None  # how the files were read, where the source has files

    def channel_lines(self) -> list[str]:
        """Return a line for each channel: mean, std, and the histogram from black to white."""
        lines = []
        for c, (mean, std, shares) in enumerate(zip(self.mean, self.std, self.histograms, strict=True), start=1):
            top = max(shares) or 1.0
            shown = "".join(SHADES[ceil((len(SHADES) - 1) * share / top)] for share in shares)
            lines.append(f"channel {c:<2} mean {mean:.3f}, std {std:.3f}  black |{shown}| white")
        return lines

    def warnings(self) -> list[str]:
        """Return a line for everything that a person should know before training."""
        of = f"of the {self.read} images looked at"
        lines = []
        if self.spread is not None and self.spread < ALIKE:
            lines.append(
                f"all {self.read} images looked at are alike: nowhere do they differ by a level of 255 (std "
                f"{255 * self.spread:.2f}), so there is nothing to learn; look at what they hold"
            )
        elif self.flat.images > MANY_FLAT * self.read:
            lines.append(f"{self.flat.images} {of} have one colour each, first {self.flat.first}; leave them out")
        if self.transparent.images:
            lines.append(
                f"{self.transparent.images} {of} are partly transparent and lie on white, first "
                f"{self.transparent.first}; if the fourth band is no transparency (near infrared), save three bands"
            )
        if 0 < self.coloured.images < FEW_COLOURS * (self.read - len(self.broken)):
            lines.append(
                f"{self.coloured.images} {of} have colours, first {self.coloured.first}, so that grey ones are taken "
                f"as three equal channels; give --channels 1, which makes all grey, or leave them out"
            )
        if self.clipped.images and self.values is not None:
            lines.append(
                f"{self.clipped.images} {of} have values outside of {ranged(self.values)} and are clipped, first "
                f"{self.clipped.first}"
            )
        return [f"warning: {line}" for line in lines]


@dataclass(frozen=True)
class _Measured:
    """The statistics of one image. Those of a grey one have one element."""

    name: str
    decoded: Decoded  # without its pixels
    sides: tuple[int, int]  # short, long
    mean: np.ndarray
    square: np.ndarray  # the mean of the squares
    histogram: np.ndarray  # [C, BINS], shares of the pixels

    @property
    def is_flat(self) -> bool:
        """Whether it has one colour."""
        return bool((self.square - self.mean**2).max() < ALIKE**2)


class Spread:
    """How much images differ from each other, by the means of the cells of a grid."""

    def __init__(self) -> None:
        self.count = 0
        self.total = self.squares = torch.zeros(1, CELLS, CELLS, dtype=torch.float64)

    def add(self, image: Tensor) -> None:
        """Add an image [C, H, W]."""
        cells = torch.stack([adaptive_avg_pool2d(to_unit_range(one)[None], CELLS)[0] for one in image]).double()
        if 1 not in (len(cells), len(self.total)) and len(cells) != len(self.total):
            return  # `channels_of` refuses these images
        self.count, self.total, self.squares = self.count + 1, self.total + cells, self.squares + cells**2

    @property
    def value(self) -> float | None:
        """The largest std of a cell between images, in 0..1; None for fewer than two images."""
        if self.count < 2:
            return None
        variance = self.squares / self.count - (self.total / self.count) ** 2
        return float(variance.max().clamp(min=0).sqrt())


def spread_of(source: Source) -> float | None:
    """Return `Spread.value` for a few evenly spaced images of a source, without those that cannot be read."""
    spread = Spread()
    for i in _evenly(len(source), FEW):
        with suppress(BrokenImage):
            spread.add(source.read(int(i), at_least=ENOUGH))
    return spread.value


def measure_dataset(source: Source, *, limit: int | None = 1000, channels: int | None = None) -> DatasetStatistics:
    """Measure min(limit, len(source)) images, evenly spaced and always the same; all with None.

    channels: how many each must have, or be given; None for what they have.

    Raises InputError where the source has no image, or none of those tried can be read."""
    positions = _evenly(len(source), limit)
    broken: dict[str, str] = {}
    measured: list[_Measured] = []
    spread = Spread()
    for i in map(int, positions):
        try:
            image = source.examine(i, channels, at_least=ENOUGH)
            measured.append(_measure(source.names[i], image, source.sides(i)))
        except BrokenImage as error:
            broken[error.name] = error.reason
        else:
            spread.add(image.pixels)
    if not measured:
        raise InputError(_nothing(source, broken))
    channels = channels_of(measured)
    mean = np.mean([np.broadcast_to(image.mean, channels) for image in measured], axis=0)
    square = np.mean([np.broadcast_to(image.square, channels) for image in measured], axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    histograms = np.mean([np.broadcast_to(image.histogram, (channels, BINS)) for image in measured], axis=0)
    sides = np.array([image.sides for image in measured])
    counts: dict[str, int] = {}
    if source.labels is not None:
        found = np.bincount(source.labels, minlength=len(source.classes))
        counts = dict(zip(source.classes, found.tolist(), strict=True))
    return DatasetStatistics(
        images=len(source),
        read=len(positions),
        broken=broken,
        channels=channels,
        short_side=int(np.median(sides[:, 0])),
        long_side=int(np.median(sides[:, 1])),
        smallest=int(sides[:, 0].min()),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        histograms=tuple(tuple(shares.tolist()) for shares in histograms),
        values=next((image.decoded.values for image in measured if image.decoded.values is not None), None),
        spread=spread.value,
        flat=_noticed(image for image in measured if image.is_flat),
        transparent=_noticed(image for image in measured if image.decoded.transparent),
        coloured=_noticed(image for image in measured if len(image.mean) == COLOURS),
        clipped=_noticed(image for image in measured if image.decoded.clipped),
        labels=len(counts),
        class_counts=counts,
        contents=source.contents,
    )


def survey_training_images(
    source: Source, root: str, *, max_broken: float, channels: int | None = None
) -> DatasetStatistics:
    """Return the statistics of the training images, which lie in `root`. Raises InputError when none of those tried can
    be read, or when all were tried and more than the share `max_broken` cannot; in larger data sets the run itself
    finds out. channels: see `measure_dataset`."""
    statistics = measure_dataset(source, channels=channels)
    if statistics.read == statistics.images and len(statistics.broken) > max_broken * statistics.images:
        name, reason = next(iter(statistics.broken.items()))
        raise InputError(
            f"{len(statistics.broken)} of the {statistics.images} training images in {root} cannot be read, more than "
            f"the share --max-broken {max_broken} (first {name}: {reason}); `simdino inspect {root}` lists them"
        )
    return statistics


def broken_images(source: Source, channels: int | None = None) -> dict[str, str]:
    """Return name and reason of every image that cannot be read. channels: see `measure_dataset`."""
    broken: dict[str, str] = {}
    for i in range(len(source)):
        try:
            source.read(i, channels, at_least=ENOUGH)
        except BrokenImage as error:
            broken[error.name] = error.reason
    return broken


def _evenly(count: int, limit: int | None) -> np.ndarray:
    """Return distinct positions, evenly spaced from the first to the last."""
    wanted = count if limit is None else min(limit, count)
    return np.linspace(0, count - 1, wanted).round().astype(np.int64)


def _measure(name: str, image: Decoded, sides: tuple[int, int]) -> _Measured:
    """Return the statistics of an image, computed channel by channel to keep the float copy of a large one small."""
    moments = [torch.var_mean(to_unit_range(channel), correction=0) for channel in image.pixels]
    var, mean = (np.array([float(value) for value in values]) for values in zip(*moments, strict=True))
    few = [to_unit_range(channel.flatten()[:: max(1, channel.numel() // COUNTED)]) for channel in image.pixels]
    histogram = np.stack([torch.histc(one, BINS, 0, 1).numpy() / len(one) for one in few])
    bare, ordered = replace(image, pixels=NO_PIXELS), (min(sides), max(sides))
    return _Measured(name, bare, ordered, mean, var + mean**2, histogram)


def channels_of(measured: Sequence[_Measured]) -> int:
    """Return the channels that a run takes: those that all images have, or 3 where some are grey and others have
    colours. Raises InputError that names an image of each other number."""
    first: dict[int, str] = {}
    for image in measured:
        first.setdefault(len(image.mean), image.name)
    if first.keys() <= {1, 3}:
        return max(first)
    if len(first) > 1:
        named = " and ".join(f"{count} ({name})" for count, name in sorted(first.items()))
        raise InputError(
            f"data: the images have different numbers of channels, {named}: give --channels, and those of other "
            f"numbers are left out, or keep each kind in a folder of its own"
        )
    return next(iter(first))


def ranged(values: Values) -> str:
    """Return values as a person reads them: 0 to 4,095."""
    return " to ".join(f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}" for value in values)


def _noticed(images: Iterable[_Measured]) -> Noticed:
    names = [image.name for image in images]
    return Noticed(len(names), next(iter(names), None))


def _nothing(source: Source, broken: Mapping[str, str]) -> str:
    if not broken:
        return f"data: '{source.name}' has no image to look at; give a data set with images"
    name, reason = next(iter(broken.items()))
    return f"data: none of the {len(broken)} images tried in '{source.name}' can be read, first {name} ({reason})"
