"""The recipes of docs/extending.md as they stand there: each file goes into a copy of the package, each line into its
table, then the commands run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r'^```python title="([^"]+)"\n(.*?)^```', PAGE, flags=re.DOTALL | re.MULTILINE)
SCRIPTS = re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
COMMANDS = [line for script in SCRIPTS for line in script.splitlines() if line]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in src/, which every recipe has extended."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "src" / "simdino", folder / "src" / "simdino")
    for title, text in BLOCKS:
        name, _, table = title.partition(": ")
        if table:
            add_lines(folder / name, table, text)
        else:
            assert not (ROOT / name).exists(), name
            (folder / name).write_text(text)
    return folder


def add_lines(path: Path, table: str, text: str) -> None:
    """Put lines where a person would: an import before the first one, an assignment in place of that name's, an entry
    at the end of the table."""
    lines = path.read_text().splitlines()
    for line in text.splitlines():
        if line.startswith(("from ", "import ")):
            at = next(i for i, old in enumerate(lines) if old.startswith("from simdino"))
            lines.insert(at, line)
        elif line.startswith(f"{table} ="):
            at = next(i for i, old in enumerate(lines) if old.startswith((f"{table} =", f"{table}:")))
            lines[at] = line
        else:
            start = next(i for i, old in enumerate(lines) if old.startswith((f"{table} =", f"{table}:")))
            at = next(i for i, old in enumerate(lines[start:], start) if old == "}")
            lines.insert(at, line)
    path.write_text("\n".join(lines) + "\n")


def test_a_recipe_is_one_file_and_one_line() -> None:
    files = [title for title, _ in BLOCKS if ": " not in title]
    tables = [text.splitlines() for title, text in BLOCKS if ": " in title]
    headings = len(re.findall(r"^## ", PAGE, flags=re.MULTILINE))
    assert len(files) == len(tables) == len(set(files)) == headings - 1  # an option needs no file
    assert all(len(lines) == 1 for lines in tables)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_a_recipe_run(command: str, place: Path) -> None:
    words = shlex.split(command)
    assert words[0] == "python"
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=place, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(place / "src"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
