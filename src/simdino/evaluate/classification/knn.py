"""Weighted k-nearest-neighbour classification, the protocol of DINO (eval_knn.py at 7c446df) and DINOv2."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from simdino.config import Precision
from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.features.extract import Features
from simdino.text import readable

Block = tuple[int, Tensor, Tensor]
SPARE = 64  # candidates beyond k that a coarse product is asked for
NAMED = 5  # classes that a line names
AT_ONCE = 64  # queries whose candidates' vectors are in memory together


@dataclass(frozen=True, kw_only=True)
class KnnResult:
    """Accuracies in percent."""

    top1: float
    top5: float
    k: int
    bank: int  # images compared with
    queries: int  # images classified

    def __str__(self) -> str:
        return (
            f"{self.k}-NN {self.top1:.2f} % (top-5 {self.top5:.2f} %), {self.queries} queries in a bank of {self.bank}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def knn(
    bank: Features,
    query: Features | None,
    *,
    k: int = 20,
    temperature: float = 0.07,
    precision: Precision = "float32",
    device: str | torch.device = "cpu",
) -> KnnResult:
    """Classify each query by the votes exp(cosine/temperature) of its k nearest bank features.

    Classes with equal votes follow in the order of their numbers, so where fewer than five classes have a vote top-5
    counts the first of those without one too (DINO's script counts them in whatever order a sort leaves them).
    query: None leaves one out: each image of the bank is classified by the others. precision: of the products that
    look for candidates, see `nearest`. device: where they are computed; blocks of queries bound its memory.
    Raises InputError when labels are missing or k is larger than the bank.
    """
    return knn_each(bank, query, ks=[k], temperature=temperature, precision=precision, device=device)[0]


def knn_each(
    bank: Features,
    query: Features | None,
    *,
    ks: Sequence[int],
    temperature: float = 0.07,
    precision: Precision = "float32",
    device: str | torch.device = "cpu",
) -> list[KnnResult]:
    """`knn` for each of `ks`, from one pass over the bank: the nearest few are among the nearest many."""
    asked = bank if query is None else query
    others = len(bank) - (query is None)
    if bank.labels is None or asked.labels is None:
        raise InputError("k-NN needs labels: name the classes by folders, or use `simdino embed` for bare features")
    for k in ks:
        if not 1 <= k <= others:
            raise InputError(f"--k {k} must be between 1 and the size of the bank, {others} images")
    if bank.classes != asked.classes:
        raise InputError("bank and queries have different classes: " + differing(bank.classes, asked.classes))
    if not temperature > 0:
        raise InputError(f"--temperature {temperature} must be above 0")
    blocks = nearest(bank.vectors.to(device), None if query is None else query.vectors, k=max(ks), precision=precision)
    results = []
    for k, scores in zip(ks, vote(bank, blocks, queries=len(asked), ks=ks, temperature=temperature), strict=True):
        ranked = scores.sort(dim=1, descending=True, stable=True).indices[:, : min(5, k)]
        hits = ranked == torch.from_numpy(asked.labels)[:, None]
        top1, top5 = (100 * right.double().mean().item() for right in (hits[:, 0], hits.any(1)))
        results.append(KnnResult(top1=top1, top5=top5, k=k, bank=others, queries=len(asked)))
    return results


def vote(
    bank: Features, blocks: Iterable[Block], *, queries: int, ks: Sequence[int], temperature: float
) -> list[Tensor]:
    """Class scores float32 [queries, classes] for each of `ks`, from the blocks of `nearest`."""
    assert bank.labels is not None
    labels = torch.from_numpy(bank.labels)
    scores = [torch.zeros(queries, len(bank.classes)) for _ in ks]
    for start, similarity, index in blocks:
        votes = ((similarity - similarity[:, :1]) / temperature).exp().cpu()  # the nearest votes 1: no overflow
        classes = labels[index.cpu()]
        for k, of_k in zip(ks, scores, strict=True):
            of_k[start : start + len(votes)].scatter_add_(1, classes[:, :k], votes[:, :k])
    return scores


def nearest(
    bank: Tensor, queries: Tensor | None, *, k: int, rows: int = 1024, precision: Precision = "float32"
) -> Iterator[Block]:
    """Yields (first query, cosines [rows, k], bank positions [rows, k]) for blocks of queries, most alike first, on the
    bank's device. Memory is that of one block, whatever the number of queries.

    queries: None asks for the neighbours of the bank's own vectors, without themselves. precision: of the product with
    the whole bank. Where it is coarser than float32, more candidates than k are taken and their cosines computed again
    in float32, so that the order among them is exact and only a neighbour that was no candidate can be missing.
    """
    bank = F.normalize(bank, dim=1)
    asked = bank if queries is None else queries
    coarse = bank if precision == "float32" else bank.to(getattr(torch, precision))
    own = queries is None
    for start in range(0, len(asked), rows):
        block = F.normalize(asked[start : start + rows].to(bank.device), dim=1)
        cosines = block.to(coarse.dtype) @ coarse.T
        if own:
            cosines[range(len(block)), range(start, start + len(block))] = -inf
        best, index = cosines.topk(k if coarse is bank else min(k + SPARE, len(bank) - own), dim=1)
        if coarse is not bank:
            best, index = among(block, bank, index, k=k)
        yield start, best, index


def among(block: Tensor, bank: Tensor, candidates: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """Cosines [rows, k] and bank positions [rows, k] of the best candidates [rows, c], in float32."""
    parts = [
        torch.einsum("rd,rcd->rc", one, bank[of_one])
        for one, of_one in zip(block.split(AT_ONCE), candidates.split(AT_ONCE), strict=True)
    ]
    cosines, best = torch.cat(parts).topk(k, dim=1)
    return cosines, candidates.gather(1, best)


def warn_of_unseen(train: Source, asked: Source, log: Callable[[str], None]) -> None:
    """Say which classes are asked for without an image to learn them from: their images can only count as wrong.

    asked: the held-out images, or `train` itself, whose images are each classified by the others."""
    if train.labels is None or asked.labels is None:
        return
    known, counts = (np.bincount(labels, minlength=len(train.classes)) for labels in (train.labels, asked.labels))
    unseen = np.flatnonzero((counts > 0) & (known - (train is asked) < 1))
    if len(unseen):
        names = ", ".join(readable(train.classes[i]) for i in unseen[:NAMED]) + ", ..." * (len(unseen) > NAMED)
        other = "other" if train is asked else "training"
        log(
            f"warning: {counts[unseen].sum()} of {len(asked)} images count as wrong, as {len(unseen)} of the classes "
            f"have no {other} image: {names}"
        )


def differing(a: tuple[str, ...], b: tuple[str, ...]) -> str:
    """The first few names that only one of the two has."""
    return ", ".join(sorted(set(a) ^ set(b))[:5])
