"""The comparison with the authors' own code is optional: without clones of it there is a line, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_without_clones_it_says_so_and_stores_nothing(tmp_path: Path) -> None:
    stored = ROOT / "benchmarks" / "results" / "parity.json"
    before = stored.read_bytes()
    (tmp_path / "dino").mkdir()
    command = [sys.executable, "benchmarks/parity.py", "--official", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"left out: {tmp_path} has no clone of dinov2, SimDINO\n" and not done.stderr
    assert stored.read_bytes() == before


def test_what_is_stored_was_within_its_tolerance() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "parity.json").read_text())["rows"]
    assert all(row["largest"] <= row["tolerance"] for row in rows)
    steps = {row["part"]: row["tolerance"] for row in rows if row["what"].startswith("student after")}
    assert steps == {"dino": 1e-12, "simdino": 1e-12, "dinov2": 3e-7, "simdinov2": 3e-7}, "what docs/parity.md says"
