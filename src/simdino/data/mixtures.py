"""Mixtures: several data sets as one, each with a weight, the list of them in a file.

An epoch of a mixture has as many images as all its sets together, of each set the share that its weight says, in a
random order. Each set runs through its own epochs on the way: no image of it comes again before all others have come,
as far as the images go that the mixture's last, smaller batch leaves out. All of it is a function of (seed, epoch)."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.data.contents import Contents, in_short
from simdino.data.decode import Decoded
from simdino.data.files import MIXTURE, stem
from simdino.data.names import Chained
from simdino.rng import permutation, sample_keys
from simdino.settings import Values
from simdino.text import readable

Open = Callable[[Path | str], list[Source]]
"""Opens the parts (such as training and validation images) of a data set by its path or name."""

_LINE = re.compile(r"(?P<path>.*\S)[\s,;]+(?P<weight>[-+.\d][-+.\deE]*)")


@final
class Mixture(Source):
    """The images of several sets, one after the other. With weights, an epoch has these shares of them."""

    def __init__(
        self, name: str, parts: Sequence[Source], titles: Sequence[str], weights: Sequence[float] | None
    ) -> None:
        """titles: what stands before the images' names. weights: above 0; None for each set as it is."""
        super().__init__(name, Chained(titles, [part.names for part in parts]))
        self.titles, self.parts, self.starts = titles, list(parts), np.cumsum([0, *map(len, parts)])
        self.indices: NDArray[np.int64] | None = None  # those chosen, of all sets' images
        self.shares = None if weights is None else shares(weights, sum(map(len, parts)))
        if all(part.labels is not None for part in parts if len(part)):
            self._label()

    def _label(self) -> None:
        """Take the labels of all sets; classes of one name are one class."""
        self.classes = tuple(sorted({name for part in self.parts for name in part.classes}))
        place = {name: i for i, name in enumerate(self.classes)}
        tables = [np.array([place[name] for name in part.classes], dtype=np.int64) for part in self.parts]
        self.labels = np.concatenate(
            [table[part.labels] for table, part in zip(tables, self.parts, strict=True) if part.labels is not None]
        )

    def read(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
        """Return image i as its set does."""
        part, k = self._place(i)
        return part.read(k, channels, at_least=at_least)

    def examine(self, i: int, channels: int | None = None, *, at_least: int | None = None) -> Decoded:
        """Return image i as its set does."""
        part, k = self._place(i)
        return part.examine(k, channels, at_least=at_least)

    def with_values(self, values: Values | None) -> Mixture:
        """Return the mixture with these values of the deep images of all sets as 0 and 1, where given."""
        mixed = copy.copy(self)
        mixed.parts = [part.with_values(values) for part in self.parts]
        return mixed

    def sides(self, i: int) -> tuple[int, int]:
        """Return height and width of image i in pixels."""
        part, k = self._place(i)
        return part.sides(k)

    def stored_bytes(self, i: int) -> int:
        """Return the stored size of image i in bytes."""
        part, k = self._place(i)
        return part.stored_bytes(k)

    def sizes(self) -> Sequence[int]:
        """Return the stored sizes of all images in bytes."""
        if self.indices is not None:
            return super().sizes()
        return [size for part in self.parts for size in part.sizes()]

    def select(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Return the images at these positions, in this order, without weights."""
        part = super().select(indices)
        chosen = np.asarray(indices, dtype=np.int64)
        part.indices, part.shares = chosen if self.indices is None else self.indices[chosen], None
        return part

    def order(self, seed: int, epoch: int, block: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the epoch of its own set that each sample of one epoch belongs to, and its position: int64 [N].

        block: how many samples of a set are shuffled together; None for all. Raises InputError where the weight of a
        set gives it no sample."""
        if self.shares is None:
            return super().order(seed, epoch, block)
        if 0 in self.shares:
            title = self.titles[self.shares.index(0)]
            raise InputError(f"data: the weight of {title} in {self.name} is so small that an epoch has no image of it")
        size = len(self)
        of_set = np.repeat(np.arange(len(self.parts)), self.shares)[permutation(seed, epoch, size)]
        epochs, ids = np.empty(size, np.int64), np.empty(size, np.int64)
        for k, (part, share) in enumerate(zip(self.parts, self.shares, strict=True)):
            own = int(sample_keys(seed, 0, k)[0])  # a seed for each set: two of one size have two orders
            epochs[of_set == k], ids[of_set == k] = drawn(part, own, epoch * share, share, block)
            ids[of_set == k] += self.starts[k]
        return epochs, ids

    def _place(self, i: int) -> tuple[Source, int]:
        """Return the set of image i and its position there."""
        at = int(range(len(self))[i] if self.indices is None else self.indices[i])
        k = int(np.searchsorted(self.starts, at, side="right")) - 1
        return self.parts[k], at - int(self.starts[k])


def drawn(
    part: Source, seed: int, first: int, count: int, block: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return epochs and positions of the draws [first, first + count) of a set that is gone through without an end."""
    found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    while count:
        epoch, position = divmod(first, len(part))
        taken = slice(position, position + count)
        epochs, ids = (of[taken] for of in part.order(seed, epoch, block))
        found.append((epochs, ids))
        first, count = first + len(ids), count - len(ids)
    nothing = np.empty(0, np.int64)
    return tuple(np.concatenate([nothing, *(one[of] for one in found)]) for of in (0, 1))  # pyright: ignore[reportReturnType]


def shares(weights: Sequence[float], total: int) -> list[int]:
    """Return how many of `total` images each weight gives: whole numbers that sum to it, the largest remainders up."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    found = np.floor(exact).astype(np.int64)
    up = np.argsort(found - exact, kind="stable")[: total - int(found.sum())]
    found[up] += 1
    return found.tolist()


def open_mixture(path: Path, open_set: Open) -> list[Source]:
    """Return the parts of the mixture that a file lists: a set in each line, then perhaps its weight.

    Sets are paths, relative to the file, or names of built-in sets. Raises InputError for a file that cannot be read,
    lists fewer than two sets or one twice, or gives weights that are no numbers above 0 or only to some."""
    sets = lines_of(path)
    found = [open_set(place if (place := path.parent / Path(title).expanduser()).exists() else title) for title in sets]
    weights = [weight for weight in sets.values() if weight is not None]
    mixed: list[Source] = []
    for parts in zip(*found, strict=True):
        source = Mixture(stem(path), parts, list(sets), weights or None)
        source.contents = contents_of(path, sets, parts)
        mixed.append(source)
    return mixed


def lines_of(path: Path) -> dict[str, float | None]:
    """Return the sets of a mixture and their weights."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data: cannot read the mixture '{path}' ({error}); give a text file in UTF-8") from error
    sets: dict[str, float | None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        cells = _LINE.fullmatch(line.strip())
        title = (cells["path"] if cells else line.strip()).rstrip("/,; \t")
        where = f"data: line {number} of '{path}'"
        if title in sets or title.lower().endswith(MIXTURE):
            what = "twice: give it once, with the sum of its weights" if title in sets else "a mixture: give its lines"
            raise InputError(f"{where} names '{title}', {what}")
        sets[title] = weight_of(cells["weight"], where) if cells else None
    if len(sets) < 2:
        raise InputError(f"data: the mixture '{path}' names {len(sets)} sets; give two or more, one in each line")
    without = [title for title, weight in sets.items() if weight is None]
    if 0 < len(without) < len(sets):
        raise InputError(f"data: '{path}' gives '{without[0]}' no weight but other sets one; give all or none a weight")
    return sets


def weight_of(text: str, where: str) -> float:
    """Return a weight. Raises InputError for one that is no number above 0."""
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise InputError(f"{where} has the weight {text}; give a number above 0")
    return weight


def contents_of(path: Path, sets: dict[str, float | None], parts: Sequence[Source]) -> Contents:
    """Return how the sets of a mixture were read."""
    total = sum(weight or 0.0 for weight in sets.values())
    named = [
        readable(title) + (f" {weight / total:.1%}" if weight else f" {len(part)} images")
        for (title, weight), part in zip(sets.items(), parts, strict=True)
    ]
    known = [(title, part.contents) for title, part in zip(sets, parts, strict=True) if part.contents is not None]
    return Contents(
        splits=f"those of each set of {readable(path.name)}: {in_short(named)}",
        classes="; ".join(f"{readable(title)}: {one.classes}" for title, one in known) or "those of each set",
        warnings=tuple(f"{readable(title)}: {text}" for title, one in known for text in one.warnings),
    )
