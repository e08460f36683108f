"""An index of embeddings: search, near duplicates, outliers and clusters, exact unless asked otherwise."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simdino.contracts import InputError
from simdino.features.duplicates import groups_above
from simdino.features.extract import Features
from simdino.features.graph import Graph
from simdino.features.kmeans import Clusters, spherical_kmeans
from simdino.features.nearest import COLUMNS, SHORTEST, inverse_lengths, lengths_of, nearest
from simdino.features.reading import read_table
from simdino.settings import SEEDS, Range, shown, wrong_with
from simdino.text import nearest as nearest_word

Labels = Sequence[Any] | NDArray[Any]
COSINES = Range(above=0, at_most=1)
COMPARED = 10_000  # names among which the nearest to a mistyped one is looked for


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """What `EmbeddingIndex.search` found for Q queries, the most alike first."""

    scores: Tensor  # float32 [Q, k], cosines
    indices: Tensor  # int64 [Q, k], positions in the index
    index: EmbeddingIndex

    @property
    def names(self) -> list[list[str]]:
        """The names of what was found, a list for each query."""
        return [[self.index.names[i] for i in row] for row in self.indices.tolist()]

    @property
    def labels(self) -> list[list[Any]]:
        """The labels of what was found, a list for each query. Raises InputError where the index has none."""
        labels = self.index.labels
        if labels is None:
            raise InputError("the index has no labels: give EmbeddingIndex(vectors, labels=...)")
        return [[labels[i] for i in row] for row in self.indices.tolist()]


@dataclass(frozen=True, kw_only=True)
class Outliers:
    """Vectors in order of their mean distance to their nearest others, the farthest first."""

    distances: Tensor  # float32 [n], 1 - cosine
    indices: Tensor  # int64 [n], positions in the index
    index: EmbeddingIndex

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [self.index.names[i] for i in self.indices.tolist()]


class EmbeddingIndex:
    """Embeddings to search in, and to look for near duplicates, outliers and clusters among.

    vectors: float32 [N, D] (a tensor, on a GPU too, or an array; other floating-point numbers are converted), or the
    `Features` that `sd.embed` gives, which bring their names and labels. float32 vectors are kept, not copied: do not
    change them. names: a text for each vector, its position unless given. labels: anything for each vector.

    Alike means a great cosine: lengths of vectors do not matter. A score is the cosine in float64, rounded to float32;
    of equal scores the vector that comes first in the index is first. Work is done in blocks, of some hundred megabytes
    whatever N is where k is small, on the device of the vectors. Raises InputError for another shape, for names or
    labels of another number, and for vectors that are zero or not finite."""

    def __init__(
        self, vectors: Tensor | NDArray[Any] | Sequence[Any] | Features, names: Sequence[str] | None = None,
        labels: Labels | None = None,
    ) -> None:  # fmt: skip
        if isinstance(vectors, Features):
            found = vectors
            vectors, names = found.vectors, found.names if names is None else names
            if labels is None and found.labels is not None:
                labels = [found.classes[i] for i in found.labels]
        self.vectors = as_vectors(vectors)
        count = len(self.vectors)
        for what, given in (("names", names), ("labels", labels)):
            if given is not None and len(given) != count:
                raise InputError(f"{what}: there are {len(given)} for {count} vectors; give one for each")
        self.names = [str(i) for i in range(count)] if names is None else list(names)
        listed = labels.tolist() if isinstance(labels, np.ndarray | Tensor) else labels
        self.labels = None if listed is None else list(listed)
        check_directions(self.vectors, self.names)
        self._inverse = inverse_lengths(self.vectors)

    @classmethod
    def load(cls, path: str | Path) -> EmbeddingIndex:
        """The index of a table .parquet or .csv as `simdino embed` writes it: columns path, label, and vector or v0, v1
        and so on. Paths are the names. The table is read in parts, so that it needs little more memory than its
        vectors. Raises InputError for a file that is no such table."""
        names, labels, vectors = read_table(Path(path).expanduser())
        return cls(vectors, names, labels)

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        return f"EmbeddingIndex of {len(self)} vectors of {self.vectors.shape[1]} numbers"

    def search(
        self, queries: Tensor | NDArray[Any] | str | int | Sequence[Any], k: int = 10, *, approximate: bool = False
    ) -> Neighbours:
        """The k vectors most like each query: scores [Q, k] and indices [Q, k], the most alike first.

        queries: vectors [Q, D] or one of [D]; or rows of the index itself, by name or position, one or several: such a
        row is left out of its own list. approximate: look along a graph (faiss's HNSW; pip install
        'simdino[index]'). The first such search makes the graph, with a copy of the vectors in half precision, which
        takes minutes for a million of them. Scores are exact, but a few of the nearest may be missing, the more
        the less the vectors lie in clusters.

        Raises InputError for queries of another shape, unknown names, and a k that the index has no vectors for."""
        asked, own = self._asked(queries)
        self._check_count("k", k, most=len(self) - (own is not None))
        if approximate:
            scores, indices = self._graph.search(asked, own, k=k)
        else:
            blocks = list(nearest(self.vectors, asked, k=k, own=own, exact=True, inverse=self._inverse))
            scores, indices = torch.cat([one for _, one, _ in blocks]), torch.cat([one for _, _, one in blocks])
        return Neighbours(scores=scores, indices=indices, index=self)

    def near_duplicates(self, threshold: float = 0.95) -> list[list[int]]:
        """Groups of vectors that a chain of scores of at least `threshold`, in (0, 1], connects: the positions of each
        group in rising order, the largest group first. Vectors without a duplicate are in none.

        Every pair is compared: ten times the vectors take a hundred times as long."""
        if (wrong := wrong_with(threshold, float, COSINES)) is not None:
            raise InputError(f"threshold {shown(threshold)} must be {wrong}")
        return groups_above(self.vectors, threshold=threshold, inverse=self._inverse)

    def outliers(self, k: int = 10, count: int | None = None) -> Outliers:
        """The mean distance, 1 - cosine, of every vector to its k nearest others, the farthest first; of equal ones the
        first in the index. count: how many of them; all unless given."""
        self._check_count("k", k, most=len(self) - 1)
        count = len(self) if count is None else count
        self._check_count("count", count, most=len(self))
        blocks = nearest(self.vectors, None, k=k, exact=True, inverse=self._inverse)
        distances = torch.cat([1 - scores.double().mean(1) for _, scores, _ in blocks]).float()
        order = distances.sort(descending=True, stable=True).indices[:count]
        return Outliers(distances=distances[order], indices=order, index=self)

    def kmeans(self, clusters: int, seed: int = 0, *, iterations: int = 100) -> Clusters:
        """Clusters by spherical k-means: each vector goes to the centre with the greatest cosine, and a centre is the
        direction of the sum of its vectors' directions, until nothing changes or `iterations` are over.

        The first centres are chosen by greedy k-means++, among at most 256 vectors for each cluster; a cluster that
        loses all its vectors gets the one farthest from its centre. The same seed gives the same clusters. Raises
        InputError for more clusters than the vectors have directions."""
        self._check_count("clusters", clusters, most=len(self))
        for name, value, allowed in (("seed", seed, SEEDS), ("iterations", iterations, Range(1, 10**9))):
            if (wrong := wrong_with(value, int, allowed)) is not None:
                raise InputError(f"{name} {shown(value)} must be {wrong}")
        return spherical_kmeans(self.vectors, clusters=clusters, seed=seed, iterations=iterations)

    @cached_property
    def _graph(self) -> Graph:
        return Graph(self.vectors, self._inverse)

    @cached_property
    def _positions(self) -> dict[str, int]:
        """Of each name; -1 for one that several vectors have."""
        found: dict[str, int] = {}
        for i, name in enumerate(self.names):
            found[name] = -1 if name in found else i
        return found

    def _check_count(self, what: str, value: int, *, most: int) -> None:
        """Raise InputError for a number of vectors that there are not."""
        if not most:
            raise InputError(f"{what} {shown(value)}: the index has one vector, and no others to compare it with")
        if wrong_with(value, int, Range(1, most)) is not None:
            raise InputError(f"{what} {shown(value)} must be a whole number from 1 to {most}, the vectors there are")

    def _asked(self, queries: Any) -> tuple[Tensor, Tensor | None]:
        """The vectors of queries, float32 [Q, D], and their positions where they are rows of the index."""
        if isinstance(queries, np.ndarray) and queries.dtype.kind in "UO":
            queries = queries.tolist()
        if isinstance(queries, str) or (isinstance(queries, list | tuple) and queries and isinstance(queries[0], str)):
            return self._rows([self._position(name) for name in ([queries] if isinstance(queries, str) else queries)])
        if is_whole(queries):
            return self._rows(np.atleast_1d(np.asarray(torch.as_tensor(queries).cpu(), dtype=np.int64)))
        asked = as_vectors(queries, what="queries")
        if asked.shape[1] != self.vectors.shape[1]:
            raise InputError(
                f"queries have {asked.shape[1]} numbers, the index has vectors of {self.vectors.shape[1]}: embed both "
                "with the same encoder"
            )
        check_directions(asked, [f"query {i}" for i in range(len(asked))])
        return asked.to(self.vectors.device), None

    def _position(self, name: Any) -> int:
        """Where the vector of a name is."""
        at = self._positions.get(name)
        if at is None:
            known = self._positions if len(self) <= COMPARED else ()
            raise InputError(f"the index has no vector named {shown(name)}{nearest_word(str(name), known)}")
        if at < 0:
            raise InputError(f"several vectors of the index are named {shown(name)}: give their positions")
        return at

    def _rows(self, positions: Any) -> tuple[Tensor, Tensor]:
        """The vectors at positions, and these."""
        at = torch.as_tensor(positions)
        outside = at[(at < 0) | (at >= len(self))]
        if len(outside):
            raise InputError(f"the index has no vector {int(outside[0])}: positions go from 0 to {len(self) - 1}")
        at = at.to(self.vectors.device)
        return self.vectors[at], at


def is_whole(queries: Any) -> bool:
    """Whether queries are positions: one whole number, or several in a row."""
    if isinstance(queries, Tensor | np.ndarray):
        dtype = torch.as_tensor(queries).dtype
        return queries.ndim <= 1 and not dtype.is_floating_point and dtype != torch.bool
    several = list(queries) if isinstance(queries, list | tuple | range) else [queries]
    return len(several) > 0 and all(isinstance(one, int | np.integer) and not isinstance(one, bool) for one in several)


def as_vectors(given: Any, *, what: str = "vectors") -> Tensor:
    """Vectors float32 [N, D], sharing memory with what is given where it can be; one of [D] becomes a row where they
    are queries. Raises InputError for another shape or type."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable")  # a mapped file, to which nothing is written
            vectors = torch.as_tensor(given).detach()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{what} must be float32 [N, D], received {type(given).__name__}") from None
    if what == "queries" and vectors.dim() == 1:
        vectors = vectors[None]
    if vectors.dim() != 2 or not vectors.is_floating_point() or not vectors.numel():
        received = f"{str(vectors.dtype).removeprefix('torch.')} {list(vectors.shape)}"
        raise InputError(f"{what} must be float32 [N, D] and not empty, received {received}")
    vectors = vectors.cpu() if vectors.device.type == "mps" else vectors  # which has no float64
    return vectors.float().contiguous()


def check_directions(vectors: Tensor, names: Sequence[str]) -> None:
    """Raise InputError that counts the vectors that are not finite or zero, and names the first of them."""
    lengths = torch.cat([lengths_of(part) for part in vectors.split(COLUMNS)]).cpu()
    for what, wrong in (("not finite", ~lengths.isfinite()), ("zero", lengths < SHORTEST)):
        at = wrong.nonzero()[:, 0].tolist()
        if at:
            raise InputError(
                f"{len(at)} of {len(lengths)} vectors are {what}, the first is {at[0]} ({names[at[0]]}): leave them out"
            )
