"""Weighted k-nearest-neighbour classification, the protocol of DINO (eval_knn.py at 7c446df) and DINOv2."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simdino.config import Precision
from simdino.contracts import InputError
from simdino.evaluate.classification import TEMPERATURE
from simdino.evaluate.labels import check_classes, check_labels
from simdino.features.extract import Features
from simdino.features.nearest import Block, nearest
from simdino.result import Result


@dataclass(frozen=True, kw_only=True)
class KnnResult(Result):
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


def knn_each(
    bank: Features, query: Features | None, *,
    ks: Sequence[int], temperature: float = TEMPERATURE, precision: Precision = "float32",
    device: str | torch.device = "cpu",
) -> list[KnnResult]:  # fmt: skip
    """Classify each query by the votes exp(cosine/temperature) of its k nearest bank features, for each k of `ks`, from
    one pass over the bank: the nearest few are among the nearest many.

    Classes with equal votes follow in the order of their numbers, so where fewer than five classes have a vote top-5
    counts the first of those without one too (DINO's script counts them in whatever order a sort leaves them).
    query: None leaves one out: each image of the bank is classified by the others. precision: of the products that
    look for candidates, see `nearest`. device: where they are computed; blocks of queries bound its memory.
    Raises InputError when labels are missing or k is larger than the bank."""
    asked = bank if query is None else query
    others = len(bank) - (query is None)
    check_labels(bank, task="knn", name="the bank")
    labels = check_classes(asked, bank.classes, task="knn", name="the queries")
    for k in ks:
        if not 1 <= k <= others:
            raise InputError(f"--k {k} must be between 1 and the size of the bank, {others} images")
    blocks = nearest(bank.vectors.to(device), None if query is None else query.vectors, k=max(ks), precision=precision)
    results = []
    for k, scores in zip(ks, vote(bank, blocks, queries=len(asked), ks=ks, temperature=temperature), strict=True):
        ranked = scores.sort(dim=1, descending=True, stable=True).indices[:, : min(5, k)]
        hits = ranked == torch.from_numpy(labels)[:, None]
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
