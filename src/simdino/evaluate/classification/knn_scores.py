"""The k-NN table of an encoder: its score beside the same encoder untrained and raw pixels, kept in its run's folder;
and the features' table."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from simdino.config import Precision
from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.data.sources import DataPath, open_dataset
from simdino.evaluate.baselines import random_twin
from simdino.evaluate.classification.knn import KnnResult, knn_each, warn_of_unseen
from simdino.features.extract import Features, Progress, extract, pixel_size, pixels, unwatched
from simdino.files import check_file, written
from simdino.models.weights import load_encoder, to_stderr
from simdino.precision import present_device
from simdino.runs.evaluations import asked_data, keep_scores
from simdino.text import readable

Table = dict[str, list[KnnResult]]  # of an encoder and of what it is compared with, a result for each k


def evaluate_knn(
    encoder: str,
    data: str | DataPath | None,
    *,
    ks: Sequence[int] = (20,),
    temperature: float = 0.07,
    leave_one_out: bool = False,
    baselines: bool = True,
    precision: Precision = "float32",
    reduced: bool = False,
    device: str = "auto",
    log: Callable[[str], None] = to_stderr,
    progress: Progress = unwatched,
) -> Table:
    """k-NN, for each of `ks`, of held-out images in the bank of all training images: the encoder's, and with
    `baselines` that of the same encoder at random initialisation and of raw pixels. Kept in evaluations.jsonl where
    `encoder` is a run folder: reports show it.

    data: what the run was trained on unless given. leave_one_out: every image of the data, of all splits, is classified
    by the others. precision: of the products, see `knn.nearest`. reduced: see `features.Prepared`. device: where
    encoder and products run. log: called with a line where the folder cannot be written to. progress: given the batches
    of images.

    Raises InputError without labels or without held-out images."""
    where = asked_data(encoder, data)
    sources = [open_dataset(where, "all")] if leave_one_out else [*both_splits(where)]
    check_labels(where, sources)
    warn_of_unseen(sources[0], sources[-1], log)
    here = present_device(device)
    table: Table = {}
    choice: dict[str, Any] = {"baselines": baselines, "reduced": reduced, "device": here, "progress": progress}
    for name, (bank, queries) in features_of(encoder, sources, **choice).items():
        table[name] = knn_each(bank, queries, ks=ks, temperature=temperature, precision=precision, device=here)
    counted = {} if leave_one_out else {"train_images": len(sources[0]), "held_out_images": len(sources[1])}
    for i, k in enumerate(ks):
        keep_scores(
            encoder, protocol="knn", where=where, name=sources[0].name, counted=counted,
            settings={
                "k": k, "temperature": temperature, **({"leave_one_out": True} if leave_one_out else {}),
                **({"reduced": True} if reduced else {}),
            },
            results={name: results[i].as_dict() for name, results in table.items()}, log=log,
        )  # fmt: skip
    return table


def both_splits(where: DataPath) -> tuple[Source, Source]:
    """The training images and the held-out ones, of which there must be some."""
    train, held_out = open_dataset(where, "train"), open_dataset(where, "val")
    if not len(held_out):
        raise InputError(
            f"{where} has no held-out images to classify: give --data with a val/ folder or more images, or "
            f"--leave-one-out"
        )
    return train, held_out


def check_labels(where: DataPath, sources: Sequence[Source]) -> None:
    """Raise InputError where a score of classes would mean nothing, before any image is read."""
    if any(source.labels is None for source in sources):
        raise InputError(f"{where} has no labels to score by: name the classes, two or more, by folders")


def features_of(
    encoder: str, sources: Sequence[Source], *, baselines: bool, reduced: bool, device: str, progress: Progress
) -> dict[str, tuple[Features, Features | None]]:
    """Bank and queries of the encoder, and with `baselines` of its random twin and of raw pixels; no queries where
    there is one source."""

    def both(found: Sequence[Features]) -> tuple[Features, Features | None]:
        return found[0], (found[1] if len(found) > 1 else None)

    trained = load_encoder(encoder).to(device)
    every = {"encoder": both([extract(trained, source, reduced=reduced, progress=progress) for source in sources])}
    if baselines:
        twin, size = random_twin(trained).to(device), pixel_size(sources[0])
        every["random initialisation"] = both(
            [extract(twin, source, reduced=reduced, progress=progress) for source in sources]
        )
        every["raw pixels"] = both(
            [pixels(source, trained.preprocess, size=size, reduced=reduced) for source in sources]
        )
    return every


def check_table(out: Path) -> None:
    """Raise InputError for a file that no features can be written to: before they are made, not after."""
    if out.suffix.lower() not in TABLES:
        raise InputError(f"--out {out} must end in {' or '.join(TABLES)}")
    check_file(out, option="--out")


def write_features(features: Features, out: Path) -> None:
    """The features' table, as the file's ending says."""
    TABLES[out.suffix.lower()](features, out)


def columns(features: Features) -> tuple[list[str], Sequence[str | None]]:
    """Path and class of each image, as `text.readable` has them; None without labels."""
    classes = list(map(readable, features.classes))
    labels = [None] * len(features) if features.labels is None else [classes[i] for i in features.labels]
    return list(map(readable, features.names)), labels


def write_csv(features: Features, out: Path) -> None:
    """A line for each image: path, label (the class's name, or nothing) and the vector's numbers v0, v1 and so on, in
    as many digits as a float32 has."""
    with written(out, option="--out") as aside, aside.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "label", *(f"v{i}" for i in range(features.vectors.shape[1]))])
        for path, label, vector in zip(*columns(features), features.vectors.tolist(), strict=True):
            table.writerow([path, label, *(f"{number:.9g}" for number in vector)])


def write_parquet(features: Features, out: Path) -> None:
    """A table with the columns path, label (the class's name, or null; both as `text.readable` has them) and vector
    (float32 list)."""
    paths, labels = columns(features)
    width = features.vectors.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(features.vectors.flatten().numpy()), width)
    table = pa.table({"path": paths, "label": pa.array(labels, pa.string()), "vector": vectors})
    with written(out, option="--out") as aside, aside.open("wb") as file:  # pyarrow opens no name that is not UTF-8
        pq.write_table(table, file)


TABLES = {".parquet": write_parquet, ".csv": write_csv}
