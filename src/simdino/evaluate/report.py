"""The k-NN table of an encoder: its score beside the same encoder untrained and raw pixels, and the features' table."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from simdino.contracts import InputError
from simdino.data.sources import open_source
from simdino.evaluate.features import Features, extract, pixel_size, pixels
from simdino.evaluate.knn import KnnResult, knn
from simdino.evaluate.monitor import random_twin
from simdino.models.weights import load_encoder


def knn_table(
    encoder: str, data: str | None, *, k: int = 20, temperature: float = 0.07, baselines: bool = True
) -> dict[str, KnnResult]:
    """k-NN of held-out images in the bank of all training images: the encoder's, and with `baselines` that of the
    same encoder at random initialisation and of raw pixels.

    data: what the run was trained on unless given. Raises InputError without labels or without held-out images.
    """
    where = data or trained_on(Path(encoder))
    train, held_out = open_source(where, "train"), open_source(where, "val")
    if not len(held_out):
        raise InputError(f"{where} has no held-out images to classify: give --data with a val/ folder or more images")
    trained = load_encoder(encoder)

    def score(bank: Features, queries: Features) -> KnnResult:
        return knn(bank, queries, k=k, temperature=temperature)

    table = {"encoder": score(extract(trained, train), extract(trained, held_out))}
    if baselines:
        twin = random_twin(trained)
        table["random initialisation"] = score(extract(twin, train), extract(twin, held_out))
        bank, queries = (pixels(s, trained.preprocess, size=pixel_size(train)) for s in (train, held_out))
        table["raw pixels"] = score(bank, queries)
    return table


def trained_on(run: Path) -> str:
    """The data of the run that an encoder lies in."""
    config = (run if run.is_dir() else run.parent) / "config.json"
    about = json.loads(config.read_text()) if config.is_file() else {}
    if "config" not in about:  # transformers keeps another config.json beside its weights
        raise InputError(f"{run} is not in a run folder, so its data are unknown: give --data DIR")
    return about["config"]["data"]["root"]


def write_parquet(features: Features, out: Path) -> None:
    """A table with the columns path, label (the class's name, or null) and vector (float32 list)."""
    labels = [None] * len(features) if features.labels is None else [features.classes[i] for i in features.labels]
    width = features.vectors.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(features.vectors.flatten().numpy()), width)
    table = pa.table({"path": features.names, "label": pa.array(labels, pa.string()), "vector": vectors})
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, out)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error}") from None
