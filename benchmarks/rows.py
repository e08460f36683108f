"""Rows of results: stored as JSON under benchmarks/results and printed as a Markdown table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def keep(name: str, rows: Sequence[Row], *, keys: Sequence[str], columns: Mapping[str, str]) -> None:
    """Put rows into benchmarks/results/NAME.json and print them.

    keys: fields that name a row. A row takes the place of a stored one of the same name and leaves the others; without
    keys the new rows replace all. columns: heading -> field, of what is printed after the keys.
    """
    path = RESULTS / f"{name}.json"
    old = json.loads(path.read_text())["rows"] if keys and path.exists() else []
    stored = {tuple(row[key] for key in keys): row for row in [*old, *rows]} if keys else dict(enumerate(rows))
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"rows": list(stored.values())}, indent=1))
    shown = {key: key for key in keys} | dict(columns)
    print("| " + " | ".join(shown) + " |")
    print("|---" * len(shown) + "|")
    for row in rows:
        cells = [row.get(field) for field in shown.values()]
        print("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")
