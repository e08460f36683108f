"""What a run is scored by as it goes: k-NN of the teacher on validation images, and its features' rank."""

from __future__ import annotations

from typing import Any

from simdino.config import Precision
from simdino.data.base import Source, subset
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
        self,
        train: Source,
        validation: Source,
        *,
        bank: int,
        queries: int,
        labels: bool,
        precision: Precision,
        workers: int,
    ) -> None:
        self.bank, self.queries = subset(train, bank), subset(validation, queries)
        self.labelled = labels and train.labels is not None and validation.labels is not None and len(validation) > 0
        self.precision: Precision = precision
        self.workers = workers
        self.k = min(20, len(self.bank))
        self._pixels: float | None = None
        self._spread: tuple[float | None] | None = None

    def __call__(self, encoder: Encoder, waiting: Waiting = patient) -> dict[str, Any]:
        """Scores as a row of metrics.jsonl: feature_rank, image_spread (how far the images themselves differ), and
        with labels knn beside knn_pixels, the score of raw pixels with the same bank and queries. waiting: see
        `data.workers.in_order`."""
        bank = self._extract(encoder, self.bank, waiting)
        row: dict[str, Any] = {"feature_rank": feature_rank(bank.vectors)}
        if (spread := self._image_spread()) is not None:
            row["image_spread"] = spread
        if self.labelled:
            queries = self._extract(encoder, self.queries, waiting)
            k = min(self.k, len(bank))
            row |= {"knn": knn_each(bank, queries, ks=[k])[0].top1, "knn_pixels": self._pixel_score(encoder, waiting)}
            row |= {"knn_k": k, "bank": len(bank), "queries": len(queries)}
        return row

    def _extract(self, encoder: Encoder, source: Source, waiting: Waiting) -> Features:
        return extract(encoder, source, precision=self.precision, workers=self.workers, reduced=True, waiting=waiting)

    def _image_spread(self) -> float | None:
        if self._spread is None:
            self._spread = (spread_of(self.bank),)
        return self._spread[0]

    def _pixel_score(self, encoder: Encoder, waiting: Waiting) -> float:
        if self._pixels is None:
            size = pixel_size(self.bank)
            raw = [
                pixels(source, encoder.preprocess, size=size, workers=self.workers, reduced=True, waiting=waiting)
                for source in (self.bank, self.queries)
            ]
            self._pixels = knn_each(raw[0], raw[1], ks=[min(self.k, len(raw[0]))])[0].top1
        return self._pixels
