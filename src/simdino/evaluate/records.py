"""evaluations.jsonl of a run folder: one line for each protocol, data set and settings, the latest result."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

FILE = "evaluations.jsonl"
ENCODER = "encoder.safetensors"  # what is scored where a run folder is
KEY = ("protocol", "data", "root", "settings")  # what a line is about; a new one replaces that of the same


def keep(run: Path, row: dict[str, Any]) -> None:
    """Write a result into the run's file in place of an older one about the same, with the encoder it is of.

    Raises OSError when the folder cannot be written to."""
    path = run / FILE
    row = {**row, "encoder": fingerprint(run)}
    old = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    lines = [line for line in old if line.strip() and about(line) != [row.get(name) for name in KEY]]
    aside = path.with_name(f".writing-{FILE}.{os.getpid()}")  # a resumed run removes what a kill leaves under this name
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in [*lines, json.dumps(row)]))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def about(line: str) -> list[Any] | None:
    """What a line is about; None for one that is not ours, which stays."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return [row.get(name) for name in KEY] if isinstance(row, dict) else None


def fingerprint(run: Path) -> str | None:
    """Which weights the run's encoder file holds; None without one. A run that goes on changes them."""
    path = run / ENCODER
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
