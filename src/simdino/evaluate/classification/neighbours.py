"""Weighted k-nearest-neighbour classification, the protocol of DINO (eval_knn.py at 7c446df) and DINOv2."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from simdino.config import Precision
from simdino.contracts import InputError
from simdino.evaluate.classification import TEMPERATURE
from simdino.evaluate.labels import check_classes, check_labels
from simdino.features.extract import Features
from simdino.result import Result

Block = tuple[int, Tensor, Tensor]
SPARE = 64  # candidates beyond k that a coarse product is asked for
AT_ONCE = 64  # queries whose candidates' vectors are in memory together


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
