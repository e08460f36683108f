"""Weighted k-nearest-neighbour classification, the protocol of DINO (eval_knn.py at 7c446df) and DINOv2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from simdino.contracts import InputError
from simdino.evaluate.features import Features


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


def knn(bank: Features, query: Features, *, k: int = 20, temperature: float = 0.07) -> KnnResult:
    """Classify each query by the votes exp(cosine/temperature) of its k nearest bank features.

    Raises InputError when labels are missing or k is larger than the bank.
    """
    return knn_each(bank, query, ks=[k], temperature=temperature)[0]


def knn_each(bank: Features, query: Features, *, ks: Sequence[int], temperature: float = 0.07) -> list[KnnResult]:
    """`knn` for each of `ks`, from one pass over the bank: the nearest few are among the nearest many."""
    if bank.labels is None or query.labels is None:
        raise InputError("k-NN needs labels: name the classes by folders, or use `simdino embed` for bare features")
    for k in ks:
        if not 1 <= k <= len(bank):
            raise InputError(f"--k {k} must be between 1 and the size of the bank, {len(bank)} images")
    if bank.classes != query.classes:
        raise InputError("bank and queries have different classes: " + differing(bank.classes, query.classes))
    if not temperature > 0:
        raise InputError(f"--temperature {temperature} must be above 0")
    results = []
    for k, scores in zip(ks, vote(bank, query.vectors, ks=ks, temperature=temperature), strict=True):
        ranked = scores.topk(min(5, k, scores.shape[1]), dim=1).indices
        hits = ranked == torch.from_numpy(query.labels)[:, None]
        top1, top5 = (100 * right.double().mean().item() for right in (hits[:, 0], hits.any(1)))
        results.append(KnnResult(top1=top1, top5=top5, k=k, bank=len(bank), queries=len(query)))
    return results


def vote(bank: Features, queries: Tensor, *, ks: Sequence[int], temperature: float) -> list[Tensor]:
    """Class scores float32 [N, classes] for each of `ks`."""
    assert bank.labels is not None
    labels = torch.from_numpy(bank.labels)
    scores = [torch.zeros(len(queries), len(bank.classes)) for _ in ks]
    for start, similarity, index in nearest(bank.vectors, queries, k=max(ks)):
        votes = ((similarity - similarity[:, :1]) / temperature).exp()  # the nearest votes 1: no overflow
        classes = labels[index]
        for k, of_k in zip(ks, scores, strict=True):
            of_k[start : start + len(votes)].scatter_add_(1, classes[:, :k], votes[:, :k])
    return scores


def nearest(bank: Tensor, queries: Tensor, *, k: int, rows: int = 1024):
    """Yields (first query, cosines [rows, k], bank positions [rows, k]) for blocks of queries, most alike first."""
    bank = F.normalize(bank, dim=1)
    for start in range(0, len(queries), rows):
        block = F.normalize(queries[start : start + rows], dim=1) @ bank.T
        yield start, *block.topk(k, dim=1)


def differing(a: tuple[str, ...], b: tuple[str, ...]) -> str:
    """The first few names that only one of the two has."""
    return ", ".join(sorted(set(a) ^ set(b))[:5])
