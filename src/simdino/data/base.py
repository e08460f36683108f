"""The interface of every source of images, and the sources that Python holds: arrays in memory, torch's data sets."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, final, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.contents import Contents
from simdino.data.decode import (
    Decoded,
    ScaleOf,
    decode,
    deep_pillow,
    deep_values,
    from_array,
    from_pillow,
    to_chw,
    with_channels,
)
from simdino.data.extents import Extent, extent, values_of
from simdino.data.names import AT_ONCE, selected
from simdino.data.opening import BrokenImage, breaking
from simdino.data.scale import UNKNOWN
from simdino.data.splits import in_validation
from simdino.data.stored import Stored
from simdino.rng import block_permutation, permutation
from simdino.settings import Values

PYTHON = "python:"
"""The prefix of the name of data or an encoder that a program gave and no file holds."""

NUMBERS = ("uint8", "uint16", "float16", "float32", "float64")  # of values in memory
LOOKED_AT = 64  # images of a torch data set in its fingerprint


class Source(ABC):
    """Images that can be read by position, in any process: sources can be pickled, forked and shared by threads.

    Attributes:
        name: a short name of the data set, such as "photos".
        names: a stable name for each image, such as "cats/17.jpg" or "digits/train/17".
        labels: int64 [N], indices into `classes`, or None where there are no labels.
        classes: the names of the classes; the same in every split of a data set. Empty without labels.
        contents: how its files were read as splits and classes; None where it has no files.
    """

    contents: Contents | None = None

    def __init__(
        self, name: str, names: Sequence[str], labels: np.ndarray | None = None, classes: Sequence[str] = ()
    ) -> None:
        if labels is not None and len(labels) != len(names):
            raise ValueError(f"{len(names)} images but {len(labels)} labels")
        self.name = name
        self.names = names
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.classes = tuple(classes)

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
        """Return image i as [C, H, W], uint8, or float32 in [0, 1] where it has more than 8 bits.

        Args:
            i: position in `names`.
            channels: how many are wanted, see `decode.decode`; None for what the image has.
            at_least: the short side in pixels that is needed: a larger image may come back smaller, never below this.

        Raises:
            BrokenImage: the image cannot be decoded.
        """

    def examine(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Decoded:
        """Return image i with what had to be done to decode it, where the source knows more than its pixels."""
        return Decoded(pixels=self.read(i, channels, at_least=at_least))

    def with_values(self, values: Values | None) -> Self:
        """Return the source with its deep images scaled as an encoder's training images were: these become 0 and 1."""
        return self

    def sides(self, i: int) -> tuple[int, int]:
        """Return the upright height and width of image i in pixels, if possible without decoding. Raises
        BrokenImage."""
        height, width = self.read(i).shape[1:]
        return height, width

    def stored_bytes(self, i: int) -> int:
        """Return the stored size of image i in bytes, found without reading it; 0 where it is unknown."""
        return 0

    def sizes(self) -> Sequence[int]:
        """Return `stored_bytes` of all images."""
        return [self.stored_bytes(i) for i in range(len(self))]

    def fingerprint(self) -> str:
        """Return the sha256 of the names and stored sizes of all images in their order, wherever they lie."""
        known, named = hashlib.sha256(), zip(self.names, self.sizes(), strict=True)
        while some := "".join(f"{name}\0{size}\0" for name, size in islice(named, AT_ONCE)):
            known.update(some.encode(errors="surrogateescape"))
        return known.hexdigest()

    def order(self, seed: int, epoch: int, block: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the epoch that each sample of one epoch counts for its random numbers, and its position: int64 [N].

        block: how many samples are shuffled together, see `rng.block_permutation`; None for all."""
        size = len(self)
        order = permutation(seed, epoch, size) if block is None else block_permutation(seed, epoch, size, block)
        return np.full(size, epoch), order

    def select(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Return the source restricted to these positions, in this order. `classes` stay, so that labels stay valid."""
        chosen = np.asarray(indices, dtype=np.int64)
        part = copy.copy(self)
        part.names = selected(self.names, chosen)
        part.labels = None if self.labels is None else self.labels[chosen]
        return part


class Splits(NamedTuple):
    """The images of a data set for training and for validation."""

    train: Source
    val: Source

    @property
    def labelled(self) -> bool:
        """Whether there are labels that validation images can be scored by."""
        return self.train.labels is not None and self.val.labels is not None and len(self.val) > 0


def subset(source: Source, size: int) -> Source:
    """Return at most `size` images of the source, chosen by a fixed shuffle."""
    if len(source) <= size:
        return source
    return source.select(np.sort(np.random.default_rng(0).permutation(len(source))[:size]))


@final
class ArraySource(Source):
    """Images of one size in memory: uint8 [N, H, W] (grey) or [N, H, W, C] with C = 1 or 3."""

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        names: Sequence[str],
        labels: np.ndarray | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__(name, names, labels, classes)
        if images.ndim == 4 and images.shape[-1] == 1:
            images = images[..., 0]
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)):
            raise ValueError(f"images must be uint8 [N, H, W] or [N, H, W, 3], not {images.dtype} {images.shape}")
        if len(images) != len(names):
            raise ValueError(f"{len(images)} images but {len(names)} names")
        self.images = images

    def read(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
        """Return a copy of image i as uint8 [C, H, W], at its full size."""
        pixels = self.images[i]
        if channels in (1, 3) and channels != (1 if pixels.ndim == 2 else 3):
            return to_chw(np.array(Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")))
        with breaking(None, self.names[i]):
            return to_chw(with_channels(pixels[..., None] if pixels.ndim == 2 else pixels, channels).copy())

    def sides(self, i: int) -> tuple[int, int]:
        """Return height and width in pixels, which all images share."""
        height, width = self.images.shape[1:3]
        return height, width

    def stored_bytes(self, i: int) -> int:
        """Return the size of image i in memory."""
        return self.images[i].nbytes

    def select(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Return the source restricted to these positions, in this order."""
        part = super().select(indices)
        part.images = self.images[np.asarray(indices, dtype=np.int64)]
        return part


@runtime_checkable
class Dataset(Protocol):
    """A map-style data set, as torch calls it."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, i: int, /) -> Any:
        """Return item i: an image, or a tuple of an image, a label and whatever else."""
        ...


def pixels_of(image: Any, name: str, *, channels: int | None = None, values: Values | None = None) -> Tensor:
    """Return the pixels of `decoded_of`. values: those that become 0 and 1, of an image of more than 8 bits; None: by
    its own."""
    return decoded_of(image, name, channels=channels, scale=None if values is None else lambda: values).pixels


def decoded_of(image: Any, name: str, *, channels: int | None = None, scale: ScaleOf | None = None) -> Decoded:
    """Return an image as [C, H, W], decoded as every image file is.

    image: a Pillow image, the path of a file, or uint8, uint16 or floating-point values [H, W], [H, W, C] (an array) or
    [C, H, W] (a tensor). channels: how many are wanted; None for what it has. scale: see `decode.decode`. Raises
    BrokenImage where it cannot be read, InputError for anything else."""
    if isinstance(image, str | Path):
        return decode(bytes_of(image, name), name, channels=channels, scale=scale)
    if isinstance(image, Tensor | np.ndarray):
        values = array_of(image, name)
        with breaking(None, name):
            return from_array(values, channels=channels, scale=scale)
    if not isinstance(image, Image.Image):
        raise InputError(f"{name} is a {type(image).__name__}: give an image of Pillow, a path, an array or a tensor")
    return from_pillow(image, name, channels=channels, scale=scale)


def bytes_of(path: str | Path, name: str) -> bytes:
    """Return the content of an image file. Raises BrokenImage."""
    with breaking(None, name):
        return Path(path).expanduser().read_bytes()


def array_of(image: Tensor | np.ndarray, name: str) -> np.ndarray:
    """Return an array [H, W] or [H, W, C], or a tensor [H, W] or [C, H, W], as an array [H, W, C]. Raises InputError
    for other shapes and numbers."""
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = image.movedim(0, -1) if image.ndim == 3 else image
        image = (image.float() if image.is_floating_point() else image).numpy()
    if image.dtype.name not in NUMBERS or image.ndim not in (2, 3):
        raise InputError(
            f"{name} is {image.dtype} {list(image.shape)}: give an image of Pillow, a path, an array [H, W] or "
            f"[H, W, C], or a tensor [C, H, W], of uint8, uint16 or floating-point numbers"
        )
    return image[..., None] if image.ndim == 2 else image


def deep_item(image: Any, name: str) -> Stored | None:
    """Return the values of what `decoded_of` takes where they have more than 8 bits; None for any other. Raises
    BrokenImage."""
    with breaking(None, name):
        if isinstance(image, str | Path):
            return deep_values(bytes_of(image, name))
        if isinstance(image, Tensor | np.ndarray):
            values = array_of(image, name)
            return Stored(values=values) if values.dtype.itemsize > 1 else None
        return deep_pillow(image)


@final
class DatasetSource(Source):
    """The images of a torch `Dataset`, read one by one. Those of more than 8 bits have one scale, as files have it."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        self.dataset = dataset
        self.values: Values | None = None
        super().__init__(name, [f"{name}/{i}" for i in range(len(dataset))])
        self.indices = np.arange(len(dataset))
        if len(dataset):
            if not torch.equal(self.read(0), self.read(0)):
                raise InputError(
                    f"the data set {name} gives its first image differently each time: leave random transforms out of "
                    f"it; the views of an image are made here"
                )
            self._label()

    def _label(self) -> None:
        """Take labels from `targets` as torchvision keeps them, else from the items."""
        kept = getattr(self.dataset, "targets", None)
        if kept is None and isinstance(self.dataset[0], tuple | list):
            kept = [self.dataset[i][1] for i in range(len(self))]
        if kept is None:
            return
        known = getattr(self.dataset, "classes", None)
        labels = [one.item() if isinstance(one, Tensor | np.generic) else one for one in kept]
        if isinstance(known, Sequence) and all(isinstance(one, int) and 0 <= one < len(known) for one in labels):
            self.classes, self.labels = tuple(map(str, known)), np.array(labels, dtype=np.int64)
        elif all(isinstance(one, int | str) for one in labels):
            names = sorted(set(labels), key=lambda one: (isinstance(one, str), one))
            place = {one: i for i, one in enumerate(names)}
            self.classes = tuple(map(str, names))
            self.labels = np.array([place[one] for one in labels], dtype=np.int64)

    def read(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
        """Return image i as [C, H, W]. Raises BrokenImage where the data set cannot give it."""
        return self.examine(i, channels).pixels

    def examine(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Decoded:
        """Return image i as `read` gives it, with what had to be done to it."""
        name = self.names[i]
        return decoded_of(self._item(int(self.indices[i]), name), name, channels=channels, scale=self._scale)

    def with_values(self, values: Values | None) -> DatasetSource:
        """Return the data set with these values of its deep images as 0 and 1, where given."""
        if values is None or values == self.values:
            return self
        part = copy.copy(self)
        part.values = values
        return part

    def _item(self, i: int, name: str) -> Any:
        """Return item i of the data set, without its label."""
        with breaking(None, name):  # a data set may fail with anything
            item = self.dataset[i]
        return item[0] if isinstance(item, tuple | list) else item

    def _scale(self) -> Values:
        """Return the values of deep images that become 0 and 1, of the whole data set, whatever part of it this is."""
        if self.values is None:
            found: list[Extent] = []
            for i in np.linspace(0, len(self.dataset) - 1, min(LOOKED_AT, len(self.dataset))).round().astype(int):
                with suppress(BrokenImage):
                    stored = deep_item(self._item(int(i), self.name), self.name)
                    found += [] if stored is None else [extent(stored)]
            self.values = values_of(found) if found else UNKNOWN
        return self.values

    def fingerprint(self) -> str:
        """Return the sha256 of the number of images and the pixels of some of them, evenly spaced."""
        known = hashlib.sha256(str(len(self)).encode())
        for i in np.linspace(0, len(self) - 1, min(LOOKED_AT, len(self))).round().astype(int):
            known.update(np.ascontiguousarray(self.read(int(i)).numpy()).tobytes())
        return known.hexdigest()

    def select(self, indices: Sequence[int] | np.ndarray) -> DatasetSource:
        """Return the source restricted to these positions, in this order."""
        part = super().select(indices)
        part.indices = self.indices[np.asarray(indices, dtype=np.int64)]
        return part


def is_python(data: Any) -> bool:
    """Return whether the data are images in this program, or a pair of such, and not a path or name."""
    return not isinstance(data, str | Path) and isinstance(data, Source | Dataset)


def splits_of(data: Any) -> Splits:
    """Return the images of a source or data set, of which a hash of the names keeps 10 % for validation, as for a
    folder without splits; or of a pair of them, training images first. Raises InputError for anything else."""
    if isinstance(data, tuple):
        if len(data) != 2 or not all(map(is_python, data)):
            raise InputError("data: a tuple must hold two data sets, training images and validation images")
        train, val = map(as_source, data)
        return Splits(train, val)
    source = as_source(data)
    out = np.array([in_validation(name) for name in source.names], dtype=bool)
    return Splits(source.select(np.flatnonzero(~out)), source.select(np.flatnonzero(out)))


def as_source(data: Any) -> Source:
    """Return the source of a data set; a source stays as it is. Raises InputError for anything else."""
    if isinstance(data, Source):
        return data
    if not is_python(data):
        raise InputError(f"data: received {type(data).__name__}: give a path, a name, a Source or a torch Dataset")
    return DatasetSource(data, type(data).__name__)


def root_of(data: Any) -> str:
    """Return how a configuration names the images of a run; a path or a name stays as it is."""
    if isinstance(data, str | Path):
        return str(data)
    first = data[0] if isinstance(data, tuple) else data
    return PYTHON + (first.name if isinstance(first, Source) else type(first).__name__)
