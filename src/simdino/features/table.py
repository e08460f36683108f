"""Features as a table: path, label and numbers of every image, written while images are embedded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from simdino import __version__
from simdino.errors import InputError
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.files import check_file
from simdino.keywords import ClassDepth, Device, Option, Positions, Reduced, TokenKind, TrainFolder, ValFolder, Workers
from simdino.result import Result
from simdino.text import encodable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from simdino.data.base import Source
    from simdino.features.extract import PreparedBatch
    from simdino.features.parts import Parts
    from simdino.models.encoder import Encoder

ENDS = (".parquet", ".csv")  # of a table's name
BATCH_BYTES = 128 * 2**20  # of the numbers of a batch, which has fewer images where they have many


@dataclass(frozen=True, kw_only=True)
class FeatureTable(Result):
    """A table that was written."""

    out: str
    images: int
    width: int  # numbers of a vector
    tokens: TokenKind
    grid: tuple[int, int] | None  # rows and columns of the patches whose vectors an image has; None: it has one
    broken: dict[str, str]  # images left out, and why

    def __str__(self) -> str:
        each = f"{self.grid[0]} x {self.grid[1]} vectors" if self.grid else "vectors"
        images = f"{self.images} images, each of " if self.grid else f"{self.images} "
        return f"{images}{each} of {self.width} numbers in {self.out}"


def embed_to(
    encoder: str, images: str, *,
    out: Annotated[Path, Option("Table: .parquet or .csv.")] = Path("features.parquet"),
    tokens: Annotated[
        TokenKind, Option("Vectors of an image: class token, mean of the patch tokens, or every patch token.")
    ] = "cls",
    dtype: Annotated[
        Literal["float32", "float16"], Option("Numbers of the table; float16 is half as large, to three digits.")
    ] = "float32",
    split: Annotated[Literal["all", "train", "val"], Option("Which images.")] = "all",
    workers: Workers = 0, reduced: Reduced = False, positions: Positions = None, device: Device = "auto",
    train: TrainFolder = None, val: ValFolder = None, class_depth: ClassDepth = None,
    log: Log = to_stderr, progress: Progress = no_bar,
) -> FeatureTable:  # fmt: skip
    """Write a table with path, label and feature vector of every image.

    It grows in parts beside --out, so that the same command goes on where an earlier one was stopped."""
    from simdino.data.sources import DataPath, open_dataset
    from simdino.models.weights import on_device

    check_table(out, tokens=tokens)
    model = on_device(encoder, device=device, positions=positions, log=log)
    source = open_dataset(DataPath(root=images, train=train, val=val, class_depth=class_depth), split)
    return embed_source(
        model, source, out, name=encoder, tokens=tokens, dtype=dtype, workers=workers, reduced=reduced, log=log,
        progress=progress,
    )  # fmt: skip


def check_table(out: Path, *, tokens: TokenKind = "cls") -> None:
    """Raise InputError for a file that no features can be written to: before they are made, not after."""
    if out.suffix.lower() not in ENDS:
        raise InputError(f"--out {out} must end in {' or '.join(ENDS)}")
    if tokens == "patches" and out.suffix.lower() == ".csv":
        raise InputError(f"--out {out}: a CSV has one vector a line, and --tokens patches has many: give a .parquet")
    check_file(out, option="--out")


def embed_source(
    encoder: Encoder, source: Source, out: Path, *,
    name: str, tokens: TokenKind = "cls", dtype: Literal["float32", "float16"] = "float32", workers: int = 0,
    reduced: bool = False, log: Log = to_stderr, progress: Progress = no_bar,
) -> FeatureTable:  # fmt: skip
    """Write the table of a source's readable images, in its order, or go on with it; what is done lies in `parts`.

    name: of the encoder. Raises InputError where no image is readable, for patches of an encoder that has none, and
    where another process writes this table."""
    from simdino.device import fastest
    from simdino.features.extract import BATCH, kept_shape, prepared, reader
    from simdino.features.parts import Parts, claimed, discard
    from simdino.features.rows import schema_of

    shape, grid = kept_shape(encoder, tokens)
    batch = max(1, min(BATCH, BATCH_BYTES // (4 * prod(shape))))
    options = {"tokens": tokens, "dtype": dtype, "reduced": reduced, "device": encoder.device.type, "batch": batch}
    belongs = belonging(encoder, source, options)
    with claimed(out, belongs, precision=fastest(str(encoder.device)), log=log) as (folder, precision):
        about = {**made_by(encoder, name, belongs["encoder"]), **options, "grid": grid, "precision": precision}
        column = "patches" if tokens == "patches" else "vector"
        parts = Parts(folder, schema_of(shape, dtype, column=column, about=about))
        if parts.done:
            log(f"goes on after {parts.done:,} of {len(source):,} images")
        read = reader(encoder, tokens, precision)
        batches = prepared(
            source, encoder.preprocess, workers=workers, reduced=reduced, batch=batch, first=ceil(parts.done / batch)
        )
        left = ceil((len(source) - parts.done) / batch)
        fill(parts, source, progress(batches, f"features of {source.name}", left), read, batch=batch)
        broken = {source.names[i]: reason for i, reason in parts.all_broken().items()}
        if parts.rows:
            parts.join(out)
        discard(folder)
    if not parts.rows:
        raise InputError(f"no readable image in {source.name}: {len(broken)} tried")
    return FeatureTable(out=str(out), images=parts.rows, width=shape[-1], tokens=tokens, grid=grid, broken=broken)


def fill(
    parts: Parts, source: Source, batches: Iterable[PreparedBatch], read: Callable[[Tensor], Tensor], *, batch: int
) -> None:
    """Add the rows of a source's batches, each of so many images, to the parts before them."""
    from simdino.features.rows import rows_of

    for ids, images, broken in batches:
        rows = rows_of(source, ids, read(images), parts.schema) if ids else None
        parts.add(rows, broken=broken, after=min(parts.after + batch, len(source)))
    parts.write()


def belonging(encoder: Encoder, source: Source, options: dict[str, Any]) -> dict[str, Any]:
    """Everything that a table's rows follow from, by the names of `parts.OTHER`."""
    from simdino.models.weights import fingerprint

    labels = hashlib.sha256(json.dumps(source.classes).encode())
    labels.update(b"" if source.labels is None else source.labels.tobytes())
    return {
        "encoder": fingerprint(encoder),
        "images": {"count": len(source), "names and sizes": source.fingerprint(), "labels": labels.hexdigest()},
        "options": options,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What else the numbers depend on."""
    import torch

    return {"simdino": __version__, "torch": torch.__version__}


def made_by(encoder: Encoder, name: str, weights: str) -> dict[str, Any]:
    """What a table tells of its encoder. weights: their fingerprint."""
    from simdino.models.weights import described

    about = described(encoder)
    return {
        "encoder": encodable(name), "weights": weights, "config": about["encoder"],
        "preprocess": about["preprocess"], **versions(),
    }  # fmt: skip
