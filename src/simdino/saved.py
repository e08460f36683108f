"""The JSON files of a run folder: they are read here, and every field is checked before it is used.

A folder may have been cut short by a full disk, edited by hand or written by another version: an InputError says which
field of which file is wrong and what it holds."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from simdino.config import Config
from simdino.errors import InputError
from simdino.methods import check_config, read_config
from simdino.settings import Range, json_name, problems, setting, shown, wrong_with

CONFIG, METRICS = "config.json", "metrics.jsonl"
OWN = ("checkpoints", METRICS, "encoder.safetensors")  # what a run folder has beside its config.json
STEPS = Range(at_least=0, at_most=10**9)


@dataclass(frozen=True, kw_only=True)
class RunMetadata:
    """The content of a run folder's config.json."""

    config: Config
    simdino: str | None = setting(None, "The version that the run was made by.")
    source_revision: str | None = setting(None, "The commit of its source.")
    command: str | None = setting(None, "What was typed.")
    machine: str | None = setting(None, "Where it began.")
    branch: dict[str, Any] | None = setting(None, "Of which run, after which of its steps, it is a branch.")
    data: dict[str, Any] = setting(text="What the data are called, and how many images and classes there are.")

    @staticmethod
    def from_dict(content: dict[str, Any]) -> RunMetadata:
        """Return the content from JSON values. Raises InputError that names each invalid field."""
        if "config" not in content:
            raise InputError("it has no config")
        config = read_config(content["config"])
        check_config(config, spoken=False)
        known = [field.name for field in fields(RunMetadata) if field.name != "config"]
        metadata = RunMetadata(config=config, **{name: content.get(name) for name in known})  # pyright: ignore
        found = problems(metadata, named=lambda field: field.name)
        if not found and not isinstance(metadata.data.get("name"), str):
            found = [f"data.name {shown(metadata.data.get('name'))} must be a text"]
        if not found and metadata.branch is not None and (wrong := wrong_with(metadata.branch.get("step"), int, STEPS)):
            found = [f"branch.step {shown(metadata.branch.get('step'))} must be {wrong}"]
        if found:
            raise InputError("; ".join(found))
        return metadata

    @property
    def own_after(self) -> int:
        """The step after which evaluations are of encoders that the folder has held: none of before it is in
        encoder-best.safetensors. A run from given weights has those of step 0 too."""
        if self.branch is not None:
            return self.branch["step"]
        return 0 if self.config.run.init is None else -1


def read_metadata(folder: Path) -> RunMetadata:
    """Return the content of a run folder's config.json. Raises InputError for no run, or an invalid field."""
    path = folder / CONFIG
    if not path.is_file():
        what = "it has no config.json" if folder.is_dir() or not folder.exists() else "give its folder"
        raise InputError(f"{folder} is not a run: {what}")
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise InputError(f"it is {json_name(content)} where an object belongs")
        return RunMetadata.from_dict(content)
    except InputError as error:
        raise InputError(f"{path}: {error}; put back what the run was made with, or start a new run") from None


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's, not one of transformers, which has a config.json too."""
    path = folder / CONFIG
    if not path.is_file():
        return False
    ours = any((folder / name).exists() for name in OWN)
    try:
        content = read_json(path)
    except InputError:
        return ours  # damaged: the files beside it tell whose it is
    if isinstance(content, dict) and "config" in content:
        return True
    return ours and not (isinstance(content, dict) and "model_type" in content)


def read_json(path: Path) -> Any:
    """Return the values in a JSON file. Raises InputError where it cannot be read or is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"it cannot be read: {error.strerror}") from None
    except RecursionError:
        raise InputError("it is not JSON of ours: it is nested without end") from None
    except ValueError as error:
        raise InputError(f"it is not JSON: {error}" if path.stat().st_size else "it is empty") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl or speed.jsonl: a step and numbers by name; none where there is no file. A last
    line that a kill has cut short is left out. Raises InputError for any other invalid line."""
    lines, rows = read_lines(path), []
    for row, number in lines:
        wrong = wrong_with_row(row)
        if wrong is None:
            rows.append(row)
        elif number != lines[-1][1]:
            raise InputError(f"line {number} of {path}: {wrong}; delete that line")
    return rows


def read_lines(path: Path) -> list[tuple[dict[str, Any], int]]:
    """Return the objects in a file of JSON lines with their line numbers, from 1. An incomplete last line is left out:
    the run may be writing it now. Raises InputError for any other line that is not an object."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    rows: list[tuple[dict[str, Any], int]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append((row, number))
        elif line.strip() and any(lines[number:]):
            raise InputError(f"line {number} of {path} is not a JSON object; delete that line")
    return rows


def wrong_with_row(row: dict[str, Any]) -> str | None:
    """Return what in a row is not a step or a number, or None."""
    if expected := wrong_with(row.get("step"), int, STEPS):
        return f"step {shown(row.get('step'))} must be {expected}"
    for name, value in row.items():
        if not (value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)):
            return f"{shown(name)} is {shown(value)} where a number belongs"
    return None
