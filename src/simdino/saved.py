"""What the JSON files of a run folder log: read in one place, and every field checked before anything is done with it.

A folder may have been cut by a full disk, edited by hand or written by another version: the line of an InputError says
which field of which file is wrong and what it holds."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from simdino.config import Config
from simdino.errors import InputError
from simdino.settings import Range, json_name, problems, setting, shown, wrong_with

CONFIG, METRICS = "config.json", "metrics.jsonl"
OWN = ("checkpoints", METRICS, "encoder.safetensors")  # what a folder beside a config.json of ours has
STEPS = Range(at_least=0, at_most=10**9)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """config.json of a run folder."""

    config: Config
    simdino: str | None = setting(None, "The version that the run was made by.")
    source_revision: str | None = setting(None, "The commit of its source.")
    command: str | None = setting(None, "What was typed.")
    machine: str | None = setting(None, "Where it began.")
    data: dict[str, Any] = setting(text="What the data are called, and how many images and classes there are.")

    @staticmethod
    def from_dict(content: dict[str, Any]) -> Facts:
        """The facts that JSON values say. Raises InputError that names each field that is none."""
        if "config" not in content:
            raise InputError("it has no config")
        config = Config.from_dict(content["config"])
        config.check(spoken=False)
        known = [field.name for field in fields(Facts) if field.name != "config"]
        facts = Facts(config=config, **{name: content.get(name) for name in known})  # pyright: ignore
        found = [line for line in problems(facts, named=lambda field: field.name) if not line.startswith("config ")]
        if not found and not isinstance(facts.data.get("name"), str):
            found = [f"data.name {shown(facts.data.get('name'))} must be a text"]
        if found:
            raise InputError("; ".join(found))
        return facts


def read_facts(folder: Path) -> Facts:
    """config.json of a run folder. Raises InputError when the folder is no run, or for a field that cannot be."""
    path = folder / CONFIG
    if not path.is_file():
        what = "it has no config.json" if folder.is_dir() or not folder.exists() else "give its folder"
        raise InputError(f"{folder} is not a run: {what}")
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise InputError(f"it is {json_name(content)} where an object belongs")
        return Facts.from_dict(content)
    except InputError as error:
        raise InputError(f"{path}: {error}; put back what the run was made with, or start a new run") from None


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, and not one of transformers, which keeps a config.json of its own."""
    path = folder / CONFIG
    if not path.is_file():
        return False
    ours = any((folder / name).exists() for name in OWN)
    try:
        content = read_json(path)
    except InputError:
        return ours  # damaged: what lies beside it tells whose it is
    if isinstance(content, dict) and "config" in content:
        return True
    return ours and not (isinstance(content, dict) and "model_type" in content)


def read_json(path: Path) -> Any:
    """The values in a JSON file. Raises InputError for one that holds anything else."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"it cannot be read: {error.strerror}") from None
    except RecursionError:
        raise InputError("it is not JSON of ours: it is nested without end") from None
    except ValueError as error:
        raise InputError(f"it is not JSON: {error}" if path.stat().st_size else "it is empty") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl or speed.jsonl, a step and numbers by name; none without the file. A kill may have cut
    the last line short, which is left out. Raises InputError for any other line that is none of ours."""
    lines = read_lines(path)
    for row, number in lines:
        if wrong := wrong_with_row(row):
            if number == lines[-1][1]:
                del lines[-1]
                break
            raise InputError(f"line {number} of {path}: {wrong}; delete that line")
    return [row for row, _ in lines]


def read_lines(path: Path) -> list[tuple[dict[str, Any], int]]:
    """The objects in a file of JSON lines and the lines' numbers, from 1. The last line may be cut off: the run may be
    writing it now. Raises InputError for any other line that is no object."""
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
    """What in a row is no step or no number; None where all is well."""
    if expected := wrong_with(row.get("step"), int, STEPS):
        return f"step {shown(row.get('step'))} must be {expected}"
    for name, value in row.items():
        if not (value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)):
            return f"{shown(name)} is {shown(value)} where a number belongs"
    return None
