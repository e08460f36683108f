"""What the README shows runs, and what it names exists."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

from simdino.cli import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_block_runs_and_prints_a_verdict_and_a_score(tmp_path):
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    code = code.replace("steps=300", "steps=4")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "20-NN" in done.stdout
    assert "Too early to tell" in done.stdout or "xpansion" in done.stdout


def test_every_command_shown_exists_with_its_options():
    shown = [line.split("#")[0].split() for text in blocks("") for line in text.splitlines()]
    commands = [words for words in shown if words and words[0] == "simdino"]
    assert {words[1] for words in commands} == {"inspect", "pretrain", "evaluate", "embed"}
    for words in commands:
        command = cli.commands[words[1]]
        options = {name for part in command.params for name in part.opts}
        assert {word for word in words if word.startswith("--")} <= options, words


def test_every_file_of_the_tour_exists_and_the_way_through_a_step_is_eight_files():
    tour = re.findall(r"^\| `(src/simdino/[\w/.]+)`", README, flags=re.MULTILINE)
    assert len(tour) == 8
    named = tour + re.findall(r"`((?:docs|tests)/[\w/.]+)`", README)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_make_target_shown_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("")), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_the_tables_are_those_of_the_stored_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    readme = importlib.import_module("readme")
    assert all(f"<!-- {name} -->" in README for name in readme.TABLES)
    assert readme.filled(README) == README, "python benchmarks/readme.py brings it up to date"
