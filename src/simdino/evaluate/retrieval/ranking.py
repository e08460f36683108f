"""Pictures as vectors, ranked lists of them, and what a list is worth: average precision by two rules, precision at k.

Ranks count from 0. The second rule and precision at k are those of revisited Oxford and Paris (Radenović et al. 2018),
in DINO's utils.py at 7c446df (compute_ap, compute_map).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.data.opening import BrokenImage
from simdino.feedback import Progress
from simdino.models.encoder import Encoder

Ranks = NDArray[np.int64]  # of the right answers, ascending
CELLS = 2**24  # cosines in memory at a time


@dataclass(frozen=True, kw_only=True)
class Described:
    """The vectors of a source's readable pictures."""

    vectors: Tensor  # float32 [n, D]
    kept: list[int]  # their positions in the source
    broken: dict[str, str]  # names of the others, and what is wrong


def described(
    encoder: Encoder, source: Source, vector_of: Callable[[Encoder, Tensor], Tensor], *, what: str, progress: Progress
) -> Described:
    """The vectors [D] that `vector_of` makes of pictures uint8 [C, H, W]. what: what a progress bar calls them.

    Raises InputError where no picture is readable."""
    vectors, kept, broken = list[Tensor](), list[int](), dict[str, str]()
    source = source.with_values(encoder.preprocess.values)
    for i in progress(range(len(source)), what, len(source)):
        try:
            image = source.read(i, encoder.in_chans)
        except BrokenImage as error:
            broken[source.names[i]] = error.reason
            continue
        vectors.append(vector_of(encoder, image).cpu())
        kept.append(i)
    if not kept:
        name, why = next(iter(broken.items()))
        raise InputError(f"data: no readable picture among the {what}: {len(broken)} tried ({name}: {why})")
    return Described(vectors=torch.stack(vectors), kept=kept, broken=broken)


def orders(database: Tensor, queries: Tensor, *, leave_out_own: bool = False) -> Iterator[NDArray[np.int64]]:
    """For each query the positions in the database by cosine, best first, the earlier first among equals.

    leave_out_own: query i is entry i of the database, and is not in its own list. Memory: a block of queries at a
    time, whatever their number."""
    database = F.normalize(database, dim=1)
    rows = max(1, CELLS // max(1, len(database)))
    for start in range(0, len(queries), rows):
        cosines = F.normalize(queries[start : start + rows], dim=1) @ database.T
        if leave_out_own:
            own = torch.arange(len(cosines))
            cosines[own, own + start] = -torch.inf
        ranked = cosines.sort(dim=1, descending=True, stable=True).indices
        yield from ranked[:, : ranked.shape[1] - leave_out_own].cpu().numpy()


def ranks_of(order: NDArray[np.int64], right: NDArray[np.int64], junk: NDArray[np.int64] | None = None) -> Ranks:
    """Where the right answers stand in `order` (positions in the database, best first) once junk is taken out: it is
    neither right nor wrong."""
    kept = order if junk is None else order[~np.isin(order, junk)]
    return np.flatnonzero(np.isin(kept, right))


def average_precision(ranks: Ranks, right: int) -> float:
    """The mean, over the right answers, of the precision down to each, in [0, 1]. One that is not in `ranks` was never
    found and adds 0; `right` is how many there are."""
    return float((np.arange(1, len(ranks) + 1) / (ranks + 1)).sum() / right)


def trapezoid_precision(ranks: Ranks, right: int) -> float:
    """The area under precision over recall by the trapezoid rule, in [0, 1]: as `average_precision`, with the mean of
    the precisions just before and just after each right answer; before the first rank it is 1."""
    found = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    after = (found + 1) / (ranks + 1)
    return float((before + after).sum() / 2 / right)


def precision_at(ranks: Ranks, k: int) -> float:
    """Share of right answers among the first k, or among those down to the last right one where it comes sooner: three
    right answers ahead of everything else score 1 at 10. 0 where none was found."""
    if not len(ranks):
        return 0.0
    first = min(k, int(ranks[-1]) + 1)
    return float((ranks < first).sum() / first)
