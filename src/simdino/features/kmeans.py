"""Spherical k-means: clusters of directions (Dhillon and Modha 2001), begun by greedy k-means++ (Arthur and
Vassilvitskii 2007).

scikit-learn's KMeans has other centres (means, not directions) and would want all vectors copied to length 1.
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from simdino.contracts import InputError
from simdino.features.nearest import rounding, unit_rows

PART = 2**13  # vectors looked at together
SAMPLE = 256  # vectors for each cluster from which the first centres are taken


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Clusters of N vectors."""

    assignments: Tensor  # int64 [N], the cluster of each vector
    centres: Tensor  # float32 [clusters, D], unit norm
    scores: Tensor  # float32 [N], the cosine of each vector with its centre
    iterations: int  # until nothing changed, or as many as were allowed

    @property
    def sizes(self) -> Tensor:
        """How many vectors each cluster has, int64 [clusters]."""
        return self.assignments.bincount(minlength=len(self.centres))


def spherical_kmeans(vectors: Tensor, *, clusters: int, seed: int, iterations: int, fewer: bool = False) -> Clusters:
    """Clusters of vectors [N, D] by the cosine with their centres; see `EmbeddingIndex.kmeans`. fewer: make fewer where
    the vectors have fewer directions, instead of raising InputError."""
    centres = first_centres(vectors, clusters=clusters, seed=seed, fewer=fewer)
    assignments, scores, sums = assigned(vectors, centres)
    for done in range(1, iterations + 1):
        fill_empty(vectors, assignments, scores, sums)
        centres = centres_of(sums, centres)
        before = assignments
        assignments, scores, sums = assigned(vectors, centres)
        if torch.equal(assignments, before):
            return Clusters(assignments=assignments, centres=centres, scores=scores, iterations=done)
    return Clusters(assignments=assignments, centres=centres, scores=scores, iterations=iterations)


def first_centres(vectors: Tensor, *, clusters: int, seed: int, fewer: bool = False) -> Tensor:
    """Unit vectors [clusters, D] among the given ones, far from each other: taken from some of many vectors, where
    these have directions enough. Raises InputError where all of them have not, unless there may be `fewer`."""
    random = torch.Generator().manual_seed(seed)
    if len(vectors) > SAMPLE * clusters:
        some = torch.randperm(len(vectors), generator=random)[: SAMPLE * clusters].sort().values
        centres = spread(vectors[some.to(vectors.device)], clusters, random)
        if len(centres) == clusters:
            return centres
    centres = spread(vectors, clusters, random)
    if len(centres) < clusters and not fewer:
        raise InputError(f"clusters {clusters} must be at most {len(centres)}: the vectors have so many directions")
    return centres


def spread(vectors: Tensor, clusters: int, random: torch.Generator) -> Tensor:
    """Unit vectors [clusters, D] among the given ones. Each is the best of a few that are drawn with a probability
    proportional to 1 - cosine with the nearest before it. They are fewer where every vector has the direction of one of
    them."""
    trials = 2 + int(log(clusters))
    first = vectors[torch.randint(len(vectors), (1,), generator=random).to(vectors.device)]
    centres, far = [unit_rows(first)], far_from(vectors, first)[:, 0]
    while len(centres) < clusters:
        chances = far.double().cumsum(0).cpu()
        if not chances[-1] > 0:
            break
        drawn = torch.rand(trials, generator=random, dtype=torch.float64) * chances[-1]
        drawn = torch.searchsorted(chances, drawn, right=True).clamp_max(len(vectors) - 1).to(vectors.device)
        nearer = torch.minimum(far_from(vectors, vectors[drawn]), far[:, None])
        best = int(nearer.double().sum(0).argmin())
        centres.append(unit_rows(vectors[drawn[best]][None]))
        far = nearer[:, best]
    return torch.cat(centres)


def far_from(vectors: Tensor, others: Tensor) -> Tensor:
    """1 - cosine of each of the vectors [N, D] with each of others [m, D], [N, m]; 0 within rounding."""
    others, least = unit_rows(others), rounding(vectors.shape[1])
    far = torch.cat([1 - unit_rows(part) @ others.T for part in vectors.split(PART)])
    return far.where(far > least, 0)


def assigned(vectors: Tensor, centres: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The centre with the greatest cosine of each vector [N] (the first of equals), that cosine [N], and the sum of the
    unit vectors of each centre, float64 [clusters, D], on the CPU: there, sums are in the same order every time."""
    assignments, scores = list[Tensor](), list[Tensor]()
    sums = torch.zeros(centres.shape, dtype=torch.float64)
    for part in vectors.split(PART):
        directions = unit_rows(part)
        cosines = directions @ centres.T
        assignments.append(cosines.argmax(1))
        scores.append(cosines.gather(1, assignments[-1][:, None])[:, 0].clamp(-1, 1))
        sums.index_add_(0, assignments[-1].cpu(), directions.cpu().double())
    return torch.cat(assignments), torch.cat(scores), sums


def fill_empty(vectors: Tensor, assignments: Tensor, scores: Tensor, sums: Tensor) -> None:
    """Move the vectors farthest from their centres into the clusters that have none, one into each, where their own
    cluster keeps another."""
    sizes = assignments.bincount(minlength=len(sums))
    empty = (sizes == 0).nonzero()[:, 0].tolist()
    if not empty:
        return
    for row in scores.argsort(stable=True).tolist():
        own = int(assignments[row])
        if sizes[own] > 1:
            to, direction = empty.pop(), unit_rows(vectors[row][None])[0].cpu().double()
            sums[own] -= direction
            sums[to] += direction
            sizes[own] -= 1
            assignments[row] = to
        if not empty:
            return


def centres_of(sums: Tensor, before: Tensor) -> Tensor:
    """The directions of the sums [clusters, D]. Where vectors cancel each other, the centre stays where it was."""
    lengths = sums.norm(dim=1, keepdim=True)
    kept = before.cpu().double()
    return torch.where(lengths > 1e-9, sums / lengths, kept).float().to(before.device)
