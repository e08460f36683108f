"""The k-NN table of an encoder: its score beside the same encoder untrained and raw pixels, kept in its run's folder;
and the features' table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from simdino.contracts import InputError
from simdino.data.base import Source
from simdino.data.sources import absolute, open_source
from simdino.evaluate.features import Features, extract, pixel_size, pixels
from simdino.evaluate.knn import KnnResult, knn
from simdino.evaluate.monitor import random_twin
from simdino.evaluate.records import FILE, keep
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
) -> dict[str, KnnResult]:
    """k-NN of held-out images in the bank of all training images: the encoder's, and with `baselines` that of the same
    encoder at random initialisation and of raw pixels. Kept in evaluations.jsonl where `encoder` is a run folder:
    reports show it.

    data: what the run was trained on unless given. device: where the encoder runs. say: called with a line where the
    folder cannot be written to. Raises InputError without labels or without held-out images."""
    where, run = data or trained_on(Path(encoder)), Path(encoder)
    train, held_out = both_splits(where)
    table = compare(encoder, train, held_out, k=k, temperature=temperature, baselines=baselines, device=device)
    if run.is_dir() and (facts := facts_of(run)) is not None:
        row = {
            "protocol": "knn",
            **which_data(where, train, held_out, facts),
            "settings": {"k": k, "temperature": temperature},
            "results": {name: result.as_dict() for name, result in table.items()},
        }
        try:
            keep(run, row)
        except OSError as error:
            say(f"the scores are not kept: {run / FILE} cannot be written: {error.strerror}")
    return table


def both_splits(where: str) -> tuple[Source, Source]:
    """The training images and the held-out ones, of which there must be some."""
    train, held_out = open_source(where, "train"), open_source(where, "val")
    if not len(held_out):
        raise InputError(f"{where} has no held-out images to classify: give --data with a val/ folder or more images")
    return train, held_out


def compare(
    encoder: str, train: Source, held_out: Source, *, k: int, temperature: float, baselines: bool, device: str
) -> dict[str, KnnResult]:
    """The table of `evaluate_knn`."""
    where = present_device(device)
    trained = load_encoder(encoder).to(where)

    def score(bank: Features, queries: Features) -> KnnResult:
        return knn(bank, queries, k=k, temperature=temperature)

    table = {"encoder": score(extract(trained, train), extract(trained, held_out))}
    if baselines:
        twin = random_twin(trained).to(where)
        table["random initialisation"] = score(extract(twin, train), extract(twin, held_out))
        bank, queries = (pixels(s, trained.preprocess, size=pixel_size(train)) for s in (train, held_out))
        table["raw pixels"] = score(bank, queries)
    return table


def which_data(where: str, train: Source, held_out: Source, facts: dict[str, Any]) -> dict[str, Any]:
    """The data of an evaluation as evaluations.jsonl names them, and whether the run was trained on them:
    where its own are no longer found, by their name and how many they were.

    facts: config.json of the run."""
    own, root = absolute(facts["config"]["data"]["root"]), absolute(where)
    counted = {"name": train.name, "train_images": len(train), "held_out_images": len(held_out)}
    told = facts.get("data")
    moved = not Path(own).exists() and isinstance(told, dict) and counted.items() <= told.items()
    return {"data": train.name, "root": root, "trained_on": root == own or moved}


def trained_on(run: Path) -> str:
    """The data of the run that an encoder lies in."""
    facts = facts_of(run if run.is_dir() else run.parent)
    if facts is None:
        raise InputError(f"{run} is not in a run folder, so its data are unknown: give --data DIR")
    return facts["config"]["data"]["root"]


def facts_of(folder: Path) -> dict[str, Any] | None:
    """config.json of a run folder; None for any other, such as one of transformers, which keeps another config.json
    beside its weights."""
    path = folder / "config.json"
    facts = json.loads(path.read_text()) if path.is_file() else {}
    return facts if "config" in facts else None


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
