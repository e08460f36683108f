"""Retrieval: do the pictures nearest to a query show its class? And which are the nearest of one picture?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simdino.contracts import InputError
from simdino.data.opening import BrokenImage, reason
from simdino.data.sources import FileSource
from simdino.data.stores import FolderStore
from simdino.data.views import centre
from simdino.evaluate.labels import check_classes, check_labels
from simdino.evaluate.retrieval import KS
from simdino.evaluate.retrieval.ranking import average_precision, orders
from simdino.features.extract import Features, inputs, tokens_of
from simdino.features.nearest import nearest
from simdino.models.encoder import Encoder
from simdino.result import Result


@dataclass(frozen=True, kw_only=True)
class RetrievalResult(Result):
    """Scores in percent, means over queries."""

    map: float  # mean average precision, the whole bank ranked
    precision: dict[int, float]  # k -> share of the k nearest that have the query's class
    queries: int  # those scored
    skipped: int  # queries whose class the bank does not have
    bank: int
    broken: dict[str, str] = field(repr=False)  # images left out, and why

    def __str__(self) -> str:
        at = "  ".join(f"P@{k} {one:.2f} %" for k, one in self.precision.items())
        skipped = f" ({self.skipped} more skipped: nothing of their class in it)" if self.skipped else ""
        return f"mAP {self.map:.2f} %  {at}, {self.queries} queries in a bank of {self.bank}{skipped}"


def rank_classes(bank: Features, query: Features | None = None, *, ks: Sequence[int] = KS) -> RetrievalResult:
    """Rank the bank for each query by cosine; right is what has the query's class.

    Average precision is the mean of the precisions down to each right image (scikit-learn's average_precision_score
    where no two cosines are equal); of equals the bank's earlier comes first. query: each image of the bank against all
    the others unless given. ks: where precision is told; one below 1 or above the bank's size is refused.

    Raises InputError without labels, with one class alone, with classes that differ, and where no query has an image of
    its class to find."""
    asked = bank if query is None else query
    others = len(bank) - (query is None)
    known = check_labels(bank, task="retrieve", name="the bank")
    labels = check_classes(asked, bank.classes, task="retrieve", name="the queries")
    for k in ks:
        check_k(k, others)
    worth = []
    for label, order in zip(labels, orders(bank.vectors, asked.vectors, leave_out_own=query is None), strict=True):
        ranks = np.flatnonzero(known[order] == label)
        if len(ranks):
            worth.append([average_precision(ranks, len(ranks)), *((ranks < k).sum() / k for k in ks)])
    if not worth:
        raise InputError("no query has another image of its class to be found: retrieval needs two of a class")
    average, *at = (100 * np.mean(worth, axis=0)).tolist()
    return RetrievalResult(
        map=average, precision=dict(zip(ks, at, strict=True)), queries=len(worth), skipped=len(asked) - len(worth),
        bank=others, broken=bank.broken | asked.broken,
    )  # fmt: skip


def check_k(k: int, bank: int) -> None:
    """Raise InputError for a k that the bank has no images for."""
    if not 1 <= k <= bank:
        raise InputError(f"--k {k} must be between 1 and the size of the bank, {bank} images")


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """An image of a bank, and how alike it is."""

    name: str
    cosine: float


def neighbours_of(encoder: Encoder, picture: str | Path | Tensor, bank: Features, *, k: int = 5) -> list[Neighbour]:
    """The k images of a bank most like one picture, the most alike first.

    picture: an image file, or [C, H, W] with the encoder's channels, uint8 or float32 in [0, 1]. bank: what `embed`
    made with the same encoder.

    Raises InputError for a picture that cannot be read, a k that the bank has no images for, and a bank of another
    encoder's width."""
    check_k(k, len(bank))
    if bank.vectors.shape[1] != encoder.embed_dim:
        raise InputError(
            f"the bank has vectors of {bank.vectors.shape[1]} numbers, encoder {encoder.config.name} makes "
            f"{encoder.embed_dim}: embed the bank with the same encoder"
        )
    image = picture if isinstance(picture, Tensor) else read_picture(picture, encoder)
    known = image.dtype == torch.uint8 or image.is_floating_point()
    if not known or image.dim() != 3 or len(image) != encoder.in_chans:
        received = f"{image.dtype} {list(image.shape)}"
        raise InputError(f"a picture is [{encoder.in_chans}, H, W] for this encoder, received {received}")
    tokens = tokens_of(encoder, inputs(encoder, centre(image, encoder.preprocess)[None]), patches=False)
    _, cosines, positions = next(nearest(bank.vectors, tokens.cls.float().cpu(), k=k))
    pairs = zip(positions[0].tolist(), cosines[0].tolist(), strict=True)
    return [Neighbour(name=bank.names[i], cosine=cosine) for i, cosine in pairs]


def read_picture(path: str | Path, encoder: Encoder) -> Tensor:
    """An image file as `embed` reads it, [C, H, W]. Raises InputError for one that cannot be read."""
    try:
        place = Path(path).expanduser()
        source = FileSource(place.stem, FolderStore(place.parent, [place.name]), [place.name])
        return source.with_values(encoder.preprocess.values).read(0, encoder.in_chans)
    except (OSError, BrokenImage) as error:
        why = error.reason if isinstance(error, BrokenImage) else reason(error)
        raise InputError(f"picture '{path}' cannot be read: {why}") from error
