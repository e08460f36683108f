"""The interface of every source of images, and the source that is an array in memory."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Self, final

import numpy as np
from PIL import Image
from torch import Tensor

from simdino.data.contents import Contents
from simdino.data.decode import Decoded, to_chw


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

    def examine(self, i: int, *, at_least: int | None = None) -> Decoded:
        """Return image i with what had to be done to decode it, where the source knows more than its pixels."""
        return Decoded(pixels=self.read(i, at_least=at_least))

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


def subset(source: Source, size: int) -> Source:
    """Return at most `size` images of the source, chosen by a fixed shuffle."""
    if len(source) <= size:
        return source
    return source.select(np.sort(np.random.default_rng(0).permutation(len(source))[:size]))
