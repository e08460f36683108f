"""evaluations.jsonl of a run folder: one line for each protocol, data set and settings, with the latest result."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from simdino.contracts import InputError
from simdino.data.sources import DataPath, absolute
from simdino.feedback import Log
from simdino.files import write_aside
from simdino.runs.checkpoints import hash_file
from simdino.saved import RunMetadata, is_run, read_metadata

FILE = "evaluations.jsonl"
ENCODER = "encoder.safetensors"  # the file of a run folder that is scored
KEY = ("protocol", "data", "root", "settings")  # a new line replaces the one with the same values of these


def keep(run: Path, row: dict[str, Any]) -> None:
    """Write a result into the run's file, in place of an older one with the same key, with the encoder's fingerprint.

    Raises OSError when the folder cannot be written to."""
    path = run / FILE
    row = {**row, "encoder": fingerprint(run)}
    old = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    lines = [line for line in old if line.strip() and key_of(line) != [row.get(name) for name in KEY]]
    write_aside(path, "".join(line + "\n" for line in [*lines, json.dumps(row)]).encode())


def key_of(line: str) -> list[Any] | None:
    """Return the key of a line; None for a line that is not ours, which is kept."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return [row.get(name) for name in KEY] if isinstance(row, dict) else None


def fingerprint(run: Path) -> str | None:
    """Return the fingerprint of the run's encoder weights, None without them. It changes when the run goes on."""
    path = run / ENCODER
    return hash_file(path)[:16] if path.is_file() else None


def keep_result(
    run: Path, *, protocol: str, where: DataPath | None, name: str, counted: dict[str, int], settings: dict[str, Any],
    results: Any, brief: str, log: Log,
) -> None:  # fmt: skip
    """Keep a protocol's result where `run` is a run folder, for its report. Any other encoder has no place for it.

    where, name: the data scored on, as given (None for images that are open already) and by name. counted: train_images
    and validation_images, where there are such. settings: what else tells one result from another. results: values that
    JSON holds. brief: the result for a person, in lines as reports show them. log: called with a line where the folder
    cannot be written to."""
    try:
        metadata = metadata_of(run)
        if metadata is None:
            return
        folders = {} if where is None else where.folders()
        data = which_data(where, name, counted, metadata)
        keep(run, {"protocol": protocol, **data, "settings": settings | folders, "results": results, "said": brief})
    except (InputError, OSError) as error:
        log(f"the scores are not kept: {error}")


def which_data(where: DataPath | None, name: str, counted: dict[str, int], metadata: RunMetadata) -> dict[str, Any]:
    """Return an evaluation's data as evaluations.jsonl names them, and whether the run was trained on them. Where the
    run's own data are no longer found, their name and numbers of images decide. metadata: config.json of the run."""
    own, root = absolute(metadata.config.data.root), None if where is None else absolute(str(where))
    moved = not Path(own).exists() and {"name": name, **counted}.items() <= metadata.data.items()
    return {"data": name, "root": root, "trained_on": root == own or moved}


def asked_data(encoder: str | Path, data: DataPath) -> DataPath:
    """Return the data that a person asked for. Without a root they are those that the run was trained on, read as the
    run reads them except for the folders that are named."""
    return data if data.root is not None else replace(trained_on(Path(encoder)), **data.folders())


def trained_on(run: Path, *, option: str = "--data") -> DataPath:
    """Return the data of the run that an encoder lies in. Raises InputError where it is not in a run folder. option:
    what a person may give instead."""
    metadata = metadata_of(run if run.is_dir() else run.parent)
    if metadata is None:
        raise InputError(f"{run} is not in a run folder, so its data are unknown: give {option} DIR")
    return DataPath.of(metadata.config.data)


def metadata_of(folder: Path) -> RunMetadata | None:
    """Return config.json of a run folder; None for any other folder, such as one of transformers. Raises InputError
    where one of its fields is invalid."""
    return read_metadata(folder) if is_run(folder) else None
