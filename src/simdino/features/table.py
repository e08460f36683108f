"""Features as a table: path, label and vector of every image."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from simdino.errors import InputError
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.files import check_file, written
from simdino.keywords import ClassDepth, Device, Option, Positions, Reduced, TrainFolder, ValFolder, Workers
from simdino.result import Result
from simdino.text import readable

if TYPE_CHECKING:
    from simdino.features.extract import Features


@dataclass(frozen=True, kw_only=True)
class FeatureTable(Result):
    """A table that was written."""

    out: str
    images: int
    width: int  # numbers of a vector
    broken: dict[str, str]  # images left out, and why

    def __str__(self) -> str:
        return f"{self.images} vectors of {self.width} numbers in {self.out}"


def embed_to(
    encoder: str, images: str, *,
    out: Annotated[Path, Option("Table: .parquet or .csv.")] = Path("features.parquet"),
    split: Annotated[Literal["all", "train", "val"], Option("Which images.")] = "all",
    workers: Workers = 0, reduced: Reduced = False, positions: Positions = None, device: Device = "auto",
    train: TrainFolder = None, val: ValFolder = None, class_depth: ClassDepth = None,
    log: Log = to_stderr, progress: Progress = no_bar,
) -> FeatureTable:  # fmt: skip
    """Write a table with path, label and feature vector of every image."""
    from simdino.data.sources import DataPath, open_dataset
    from simdino.features.extract import extract
    from simdino.models.weights import on_device

    check_table(out)
    model = on_device(encoder, device=device, positions=positions, log=log)
    source = open_dataset(DataPath(root=images, train=train, val=val, class_depth=class_depth), split)
    features = extract(model, source, workers=workers, reduced=reduced, progress=progress)
    TABLES[out.suffix.lower()](features, out)
    width = features.vectors.shape[1]
    return FeatureTable(out=str(out), images=len(features), width=width, broken=features.broken)


def check_table(out: Path) -> None:
    """Raise InputError for a file that no features can be written to: before they are made, not after."""
    if out.suffix.lower() not in TABLES:
        raise InputError(f"--out {out} must end in {' or '.join(TABLES)}")
    check_file(out, option="--out")


def columns(features: Features) -> tuple[list[str], Sequence[str | None]]:
    """Path and class of each image, as `text.readable` has them; None without labels."""
    classes = list(map(readable, features.classes))
    labels = [None] * len(features) if features.labels is None else [classes[i] for i in features.labels]
    return list(map(readable, features.names)), labels


def write_csv(features: Features, out: Path) -> None:
    """Write a line for each image: path, label (the class's name, or nothing) and the vector's numbers v0, v1 and so on
    in as many digits as a float32 has."""
    with written(out, option="--out") as aside, aside.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "label", *(f"v{i}" for i in range(features.vectors.shape[1]))])
        for path, label, vector in zip(*columns(features), features.vectors.tolist(), strict=True):
            table.writerow([path, label, *(f"{number:.9g}" for number in vector)])


def write_parquet(features: Features, out: Path) -> None:
    """Write the columns path, label (the class's name, or null) and vector (float32 list)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths, labels = columns(features)
    width = features.vectors.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(features.vectors.flatten().numpy()), width)
    table = pa.table({"path": paths, "label": pa.array(labels, pa.string()), "vector": vectors})
    with written(out, option="--out") as aside, aside.open("wb") as file:  # pyarrow opens no name that is not UTF-8
        pq.write_table(table, file)


TABLES = {".parquet": write_parquet, ".csv": write_csv}
