"""The k-NN table of an encoder: its score beside the same encoder untrained and raw pixels, kept in its run's folder;
and the features' table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.data.sources import open_source
from simdino.evaluate.features import Features, Watch, extract, pixel_size, pixels, unwatched
from simdino.evaluate.knn import KnnResult, knn
from simdino.evaluate.monitor import random_twin
from simdino.evaluate.records import keep_scores, trained_on
from simdino.models.weights import load_encoder, to_stderr
from simdino.precision import present_device


def evaluate_knn(
    encoder: str,
    data: str | None,
    *,
    k: int = 20,
    temperature: float = 0.07,
    baselines: bool = True,
    device: str = "auto",
    say: Callable[[str], None] = to_stderr,
    watch: Watch = unwatched,
) -> dict[str, KnnResult]:
    """k-NN of held-out images in the bank of all training images: the encoder's, and with `baselines` that of the same
    encoder at random initialisation and of raw pixels. Kept in evaluations.jsonl where `encoder` is a run folder:
    reports show it.

    data: what the run was trained on unless given. device: where the encoder runs. say: called with a line where the
    folder cannot be written to. watch: given the batches of images.

    Raises InputError without labels or without held-out images."""
    where = data or trained_on(Path(encoder))
    train, held_out = both_splits(where)
    table = compare(
        encoder, train, held_out, k=k, temperature=temperature, baselines=baselines, device=device, watch=watch
    )
    keep_scores(
        encoder, protocol="knn", where=where, name=train.name,
        counted={"train_images": len(train), "held_out_images": len(held_out)},
        settings={"k": k, "temperature": temperature},
        results={name: result.as_dict() for name, result in table.items()}, say=say,
    )  # fmt: skip
    return table


def both_splits(where: str) -> tuple[Source, Source]:
    """The training images and the held-out ones, of which there must be some."""
    train, held_out = open_source(where, "train"), open_source(where, "val")
    if not len(held_out):
        raise InputError(f"{where} has no held-out images to classify: give --data with a val/ folder or more images")
    return train, held_out


def compare(
    encoder: str, train: Source, held_out: Source, *,
    k: int, temperature: float, baselines: bool, device: str, watch: Watch,
) -> dict[str, KnnResult]:  # fmt: skip
    """The table of `evaluate_knn`."""
    where = present_device(device)
    trained = load_encoder(encoder).to(where)

    def score(bank: Features, queries: Features) -> KnnResult:
        return knn(bank, queries, k=k, temperature=temperature)

    table = {"encoder": score(*(extract(trained, source, watch=watch) for source in (train, held_out)))}
    if baselines:
        twin = random_twin(trained).to(where)
        table["random initialisation"] = score(*(extract(twin, source, watch=watch) for source in (train, held_out)))
        bank, queries = (pixels(s, trained.preprocess, size=pixel_size(train)) for s in (train, held_out))
        table["raw pixels"] = score(bank, queries)
    return table


def write_parquet(features: Features, out: Path) -> None:
    """A table with the columns path (bytes that are no UTF-8 as \\xNN), label (the class's name, or null) and vector
    (float32 list)."""
    labels = [None] * len(features) if features.labels is None else [features.classes[i] for i in features.labels]
    width = features.vectors.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(features.vectors.flatten().numpy()), width)
    paths = [name.encode(errors="surrogateescape").decode(errors="backslashreplace") for name in features.names]
    table = pa.table({"path": paths, "label": pa.array(labels, pa.string()), "vector": vectors})
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, out)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error}") from None
