"""docs/troubleshooting.md has a heading for every verdict, and quotes every warning in the words of the program."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from simdino.evaluate.diagnostics.monitors import Status
from simdino.runs.verdict import Verdict

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "simdino"
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
STATUSES = [*get_args(get_type_hints(Verdict)["status"]), *get_args(Status)]
COLLECTING = {"data/survey.py": "warnings", "data/contents.py": "overlooked", "data/lists.py": "unread"}
"""Functions whose lines get their `warning: ` later, as do those of a method's `warnings`."""


def pattern(node: ast.expr) -> str | None:
    """What an f-string or a string can read as, as a regular expression; None for any other expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(pattern(part) or ".+" for part in node.values)
    return None


def strings(tree: ast.AST) -> Iterator[str]:
    """The patterns of all strings below, those within f-strings left out."""
    found = pattern(tree) if isinstance(tree, ast.expr) else None
    if found is not None:
        yield found
        return
    for child in ast.iter_child_nodes(tree):
        yield from strings(child)


@cache
def warnings() -> list[str]:
    """The pattern of every warning in the source."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        found += [text for text in strings(tree) if text.startswith(r"warning:\ ") and text != r"warning:\ .+"]
        name = COLLECTING.get(str(path.relative_to(SOURCE)), "warnings" if path.parent.name == "methods" else None)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                body = ast.Module(body=node.body[1:], type_ignores=[])  # without its docstring
                found += [rf"warning:\ {text}" for text in strings(body) if len(text) > 40]
    return found


@pytest.mark.parametrize("status", STATUSES)
def test_every_verdict_has_a_heading(status: str) -> None:
    assert re.search(rf"^### {status}$", PAGE, flags=re.MULTILINE | re.IGNORECASE)


def test_the_warnings_of_the_source_are_found() -> None:
    assert len(warnings()) >= 16
    assert any("cannot" in text for text in warnings())


@pytest.mark.parametrize("text", warnings())
def test_every_warning_is_quoted_below_a_heading(text: str) -> None:
    assert re.search(rf"^    {text}", PAGE, flags=re.MULTILINE)


def test_every_heading_quotes_a_warning_or_tells_of_a_verdict() -> None:
    sections = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]
    verdicts = {status.lower() for status in STATUSES}
    for section in sections:
        heading = section.partition("\n")[0]
        assert heading.lower() in verdicts or re.search(r"^    warning: ", section, flags=re.MULTILINE), heading
