"""The interface of every source of images, and the sources that Python holds: arrays in memory, torch's data sets."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, final, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.contents import Contents
from simdino.data.decode import Decoded, decode, from_pillow, to_chw
from simdino.data.opening import breaking
from simdino.data.splits import in_validation

PYTHON = "python:"
"""The prefix of the name of data or an encoder that a program gave and no file holds."""

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
        """Return image i as uint8 [C, H, W].

        Args:
            i: position in `names`.
            channels: 1 for grey, 3 for RGB, None for what the image has.
            at_least: the short side in pixels that is needed: a larger image may come back smaller, never below this.

        Raises:
            BrokenImage: the image cannot be decoded.
        """

    def examine(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Decoded:
        """Return image i with what had to be done to decode it, where the source knows more than its pixels."""
        return Decoded(pixels=self.read(i, channels, at_least=at_least))

    def with_bits(self, bits: int | None) -> Self:
        """Return the source with its deep images scaled as an encoder's training images of this bit depth were."""
        return self

    def sides(self, i: int) -> tuple[int, int]:
        """Return the upright height and width of image i in pixels, if possible without decoding. Raises
        BrokenImage."""
        height, width = self.read(i).shape[1:]
        return height, width

    def stored_bytes(self, i: int) -> int:
        """Return the stored size of image i in bytes, found without reading it; 0 where it is unknown."""
        return 0

    def fingerprint(self) -> str:
        """Return the sha256 of the names and stored sizes of all images in their order, wherever they lie."""
        known = hashlib.sha256()
        for i, name in enumerate(self.names):
            known.update(f"{name}\0{self.stored_bytes(i)}\0".encode(errors="surrogateescape"))
        return known.hexdigest()

    def select(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Return the source restricted to these positions, in this order. `classes` stay, so that labels stay valid."""
        chosen = np.asarray(indices, dtype=np.int64)
        part = copy.copy(self)
        part.names = [self.names[i] for i in chosen]
        part.labels = None if self.labels is None else self.labels[chosen]
        return part


class Splits(NamedTuple):
    """The images of a data set for training and for validation."""

    train: Source
    val: Source


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
        if channels is not None and channels != (1 if pixels.ndim == 2 else 3):
            return to_chw(np.array(Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")))
        return to_chw(pixels.copy())

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


def pixels_of(image: Any, name: str, *, channels: int | None = None, bits: int | None = None) -> Tensor:
    """Return an image as uint8 [C, H, W], decoded as every image file is.

    image: a Pillow image, the path of a file, or uint8 values [H, W], [H, W, C] (an array) or [C, H, W] (a tensor) with
    1 or 3 channels. channels: 1 for grey, 3 for RGB, None for what it has. bits: the bit depth of values of more than 8
    bits. Raises BrokenImage where it cannot be read, InputError for anything else."""
    depth = None if bits is None else lambda: bits
    if isinstance(image, str | Path):
        with breaking(None, name):
            data = Path(image).expanduser().read_bytes()
        return decode(data, name, channels=channels, bits=depth).pixels
    if isinstance(image, Tensor) and image.ndim == 3:
        image = image.movedim(0, -1)
    if isinstance(image, Tensor):
        image = image.cpu().numpy()
    if isinstance(image, np.ndarray):
        image = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 3)):
            raise InputError(
                f"{name} is {image.dtype} {list(image.shape)}: give an image of Pillow, a path, an array uint8 [H, W] "
                f"or [H, W, 3], or a tensor uint8 [1 or 3, H, W]; leave ToTensor() out of a data set's transform"
            )
        if channels in (None, 1 if image.ndim == 2 else 3):
            return to_chw(np.array(image))
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise InputError(f"{name} is a {type(image).__name__}: give an image of Pillow, a path, an array or a tensor")
    return from_pillow(image, name, channels=channels, bits=depth)


@final
class DatasetSource(Source):
    """The images of a torch `Dataset`, read one by one."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        self.dataset = dataset
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
        """Return image i as uint8 [C, H, W]. Raises BrokenImage where the data set cannot give it."""
        with breaking(None, self.names[i]):  # a data set may fail with anything
            item = self.dataset[int(self.indices[i])]
        return pixels_of(item[0] if isinstance(item, tuple | list) else item, self.names[i], channels=channels)

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
