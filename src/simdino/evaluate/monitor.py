"""What a run is scored by as it goes: k-NN of the teacher on validation images, and its features' rank."""

from functools import cached_property
from typing import Any

from simdino.config import Precision
from simdino.data.base import Source, Splits, subset
from simdino.data.survey import spread_of
from simdino.data.workers import Waiting, patient
from simdino.evaluate.classification.neighbours import knn_each
from simdino.features.extract import Features, extract, pixel_size, pixels
from simdino.models.encoder import Encoder
from simdino.runs.verdict import feature_rank


class Monitor:
    """Scores an encoder on fixed subsets of the training images (the bank) and of the validation ones (the queries).

    Photographs are decoded at a fraction of their size: a run is scored many times, and waits for it."""

    def __init__(
        self, train: Source, validation: Source, *,
        bank: int, queries: int, labels: bool, precision: Precision, workers: int,
    ) -> None:  # fmt: skip
        self.bank, self.queries = subset(train, bank), subset(validation, queries)
        self.labelled = labels and Splits(train, validation).labelled
        self.precision: Precision = precision
        self.workers = workers
        self.knn_pixels: float | None = None

    @cached_property
    def image_spread(self) -> float | None:
        """How far the images of the bank differ, see `spread_of`."""
        return spread_of(self.bank)

    def __call__(self, encoder: Encoder, waiting: Waiting = patient) -> dict[str, Any]:
        """Scores as a row of metrics.jsonl: feature_rank, image_spread (how far the images themselves differ), and
        with labels knn beside knn_pixels, the score of raw pixels with the same bank and queries. waiting: see
        `data.workers.in_order`."""
        read: dict[str, Any] = {"workers": self.workers, "reduced": True, "waiting": waiting}
        bank = extract(encoder, self.bank, precision=self.precision, **read)
        row: dict[str, Any] = {"feature_rank": feature_rank(bank.vectors)}
        if self.image_spread is not None:
            row["image_spread"] = self.image_spread
        if self.labelled:
            queries = extract(encoder, self.queries, precision=self.precision, **read)
            row["knn"], k = self.knn(bank, queries)
            if self.knn_pixels is None:
                size = pixel_size(self.bank)
                raw = (pixels(one, encoder.preprocess, size=size, **read) for one in (self.bank, self.queries))
                self.knn_pixels, _ = self.knn(*raw)
            row |= {"knn_pixels": self.knn_pixels, "knn_k": k, "bank": len(bank), "queries": len(queries)}
        return row

    def knn(self, bank: Features, queries: Features) -> tuple[float, int]:
        """Top-1 accuracy in percent, and k: 20 or all that a small bank has."""
        k = min(20, len(bank))
        return knn_each(bank, queries, ks=[k])[0].top1, k
