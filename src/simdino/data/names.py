"""Names of a million images in little memory, and texts of which few are different."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 8192  # names that are unpacked together while all are gone through

T = TypeVar("T", bound=Hashable)
U = TypeVar("U", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Coded(Generic[T]):
    """N values of which few are different: value i is `values[at[i]]`. A value may stand in `values` twice."""

    values: Sequence[T]
    at: NDArray[np.int32]

    @classmethod
    def of(cls, values: Iterable[T]) -> Coded[T]:
        """Return these values."""
        place: dict[T, int] = {}
        at = np.fromiter((place.setdefault(one, len(place)) for one in values), dtype=np.int32)
        return cls(tuple(place), at)

    def __len__(self) -> int:
        return len(self.at)

    def counts(self) -> dict[T, int]:
        """Return how often each value is there, without those that are not."""
        found: dict[T, int] = {}
        for value, count in zip(self.values, np.bincount(self.at, minlength=len(self.values)).tolist(), strict=True):
            if count:
                found[value] = found.get(value, 0) + count
        return found

    def mapped(self, function: Callable[[T], U]) -> Coded[U]:
        """Return a function of each value, which is called once for those that are there."""
        there = np.bincount(self.at, minlength=len(self.values)) > 0
        found: Coded[U] = Coded.of(
            function(value) for value, is_there in zip(self.values, there.tolist(), strict=True) if is_there
        )
        table = np.zeros(len(self.values), dtype=np.int32)
        table[there] = found.at
        return Coded(found.values, table[self.at])

    def replaced(self, others: dict[int, T]) -> Coded[T]:
        """Return the same with other values at some positions."""
        if not others:
            return self
        new, at = Coded.of(others.values()), self.at.copy()
        at[list(others)] = new.at + len(self.values)
        return Coded((*self.values, *new.values), at)

    def where(self, *values: T | None) -> NDArray[np.bool_]:
        """Return at which positions one of these values is: bool [N]."""
        return np.array([value in values for value in self.values], dtype=bool)[self.at]

    def chosen(self, indices: NDArray[Any]) -> Coded[T]:
        """Return the values at these positions, or where a mask holds."""
        return Coded(self.values, self.at[indices])


class Names(Sequence[str]):
    """Paths of files as a sequence of texts, in 35 bytes each where a list takes 95: their folders, each once, and one
    string of bytes with the names in them."""

    def __init__(
        self, folders: Coded[str], text: bytes, ends: NDArray[np.int64], indices: NDArray[np.int64] | None = None
    ) -> None:
        """folders: with "/" at their ends, empty at the top. text: the names in the folders in UTF-8 without anything
        between them. ends: where each ends. indices: the positions of those that are there; None for all."""
        self.folders, self.text, self.ends, self.indices = folders, text, ends, indices

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Return these names."""
        parts = [name.rpartition("/") for name in names]
        return cls.below(Coded.of(folder + slash for folder, slash, _ in parts), [last for *_, last in parts])

    @classmethod
    def below(cls, folders: Coded[str], names: Sequence[str]) -> Names:
        """Return the names of files in these folders."""
        packed = [name.encode("utf-8", "surrogateescape") for name in names]
        return cls(folders, b"".join(packed), np.cumsum([len(one) for one in packed], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends if self.indices is None else self.indices)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Names: ...
    def __getitem__(self, i: int | slice) -> str | Names:
        if isinstance(i, slice):
            return self.select(np.arange(len(self))[i])
        if not -len(self) <= i < len(self):
            raise IndexError(f"name {i} of {len(self)}")
        k = int(i % len(self) if self.indices is None else self.indices[i])
        last = self.text[self.ends[k - 1] if k else 0 : self.ends[k]]
        return self.folders.values[int(self.folders.at[k])] + last.decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        folders = self.folders.values
        for first in range(0, len(self), AT_ONCE):
            k = self.positions(slice(first, first + AT_ONCE))
            starts, ends = np.where(k > 0, self.ends[k - 1], 0), self.ends[k]
            begin = int(starts.min())
            packed = self.text[begin : int(ends.max())]
            lasts: Iterable[tuple[int, int, int]] = zip(
                (starts - begin).tolist(), (ends - begin).tolist(), self.folders.at[k].tolist(), strict=True
            )
            if packed.isascii():  # then characters are where bytes are, and all are unpacked in one go
                text = packed.decode()
                yield from [folders[at] + text[start:end] for start, end, at in lasts]
            else:
                for start, end, at in lasts:
                    yield folders[at] + packed[start:end].decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return f"Names({list(self[:3])}{', ...' if len(self) > 3 else ''})"

    def positions(self, part: slice = slice(None)) -> NDArray[np.int64]:
        """Return the positions of the names, or a part of them, among those from which they were selected."""
        if self.indices is not None:
            return self.indices[part]
        return np.arange(*part.indices(len(self)))

    def select(self, indices: NDArray[np.int64]) -> Self:
        """Return the names at these positions, in this order; the memory is shared."""
        return type(self)(self.folders, self.text, self.ends, self.positions()[indices])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what an index keeps of all names; `folders.values` goes beside it."""
        text = np.frombuffer(self.text, dtype=np.uint8)
        return {"text": text, "ends": self.ends, "folders": self.folders.at}

    @classmethod
    def from_arrays(cls, folders: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> Names:
        """Return the names that `arrays` was asked for."""
        return cls(Coded(folders, arrays["folders"]), arrays["text"].tobytes(), arrays["ends"])

    def in_folders(self) -> Coded[str]:
        """Return the folder of each name, without a slash at its end."""
        at = self.folders.at if self.indices is None else self.folders.at[self.indices]
        return Coded([folder.rstrip("/") for folder in self.folders.values], at)


class Chained(Sequence[str]):
    """The names of several sets, one after the other, each behind its set's title."""

    def __init__(self, titles: Sequence[str], parts: Sequence[Sequence[str]]) -> None:
        self.titles, self.parts = titles, parts
        self.starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(len(self))[i]]
        at = range(len(self))[i]
        k = int(np.searchsorted(self.starts, at, side="right")) - 1
        return f"{self.titles[k]}/{self.parts[k][at - int(self.starts[k])]}"

    def __iter__(self) -> Iterator[str]:
        for title, names in zip(self.titles, self.parts, strict=True):
            yield from (f"{title}/{name}" for name in names)


def selected(names: Sequence[str], indices: NDArray[np.int64]) -> Sequence[str]:
    """Return the names at these positions, in this order."""
    places: list[int] = indices.tolist()
    return names.select(indices) if isinstance(names, Names) else [names[i] for i in places]


def folders_in(names: Sequence[str]) -> Coded[str]:
    """Return the folder of each name, without a slash at its end; empty at the top."""
    if isinstance(names, Names):
        return names.in_folders()
    return Coded.of(name.rpartition("/")[0] for name in names)
