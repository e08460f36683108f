"""What README and docs show runs, and what they name exists."""

from __future__ import annotations

import importlib
import pickle
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from simdino.cli import cli
from simdino.data.sources import open_dataset

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").rglob("*.md")))
LONGEST_README = 120


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a language, and with none those that four spaces set apart."""
    text = page.read_text()
    fenced = re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return fenced if language else [*fenced, *re.findall(r"(?:^ {4}\S.*\n)+", text, flags=re.MULTILINE)]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each `simdino ...` of a page's blocks."""
    for line in "\n".join(blocks(page)).splitlines():
        if line.strip().startswith("simdino "):
            yield shlex.split(line, comments=True)[1:]


def named_commands(page: Path) -> Iterator[list[str]]:
    """The words of each `simdino ...` between backquotes in a page's sentences and tables."""
    for line in re.findall(r"`simdino ([^`\n]+)`", page.read_text()):
        yield shlex.split(line)


COMMANDS = [(page, words) for page in PAGES for words in (*commands(page), *named_commands(page))]
PYTHON = [(page, code) for page in PAGES for code in blocks(page, "python")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, pico: None) -> Path:
    """A folder as the pages have it: photos/ and labelled/ with classes and splits, the run runs/photos, a picture, and
    small sets in the layouts of DAVIS, Copydays and revisited Paris."""
    folder = tmp_path_factory.mktemp("home")
    for split in ("train", "val"):
        source = open_dataset("digits", split)
        assert source.labels is not None
        for i in range(48 if split == "train" else 24):
            place = folder / "photos" / split / source.classes[source.labels[i] % 2] / f"{i}.png"
            paint(place, source.read(i).repeat_interleave(4, 1).repeat_interleave(4, 2).numpy()[0])
    (folder / "labelled").symlink_to(folder / "photos")
    words = ["pretrain", str(folder / "photos"), "--out", str(folder / "runs/photos"), *SHORT]
    assert CliRunner().invoke(cli, words).exit_code == 0
    paint(folder / "new.jpg", np.full((32, 32), 90))
    write_sets(folder)
    return folder


def paint(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_sets(folder: Path) -> None:
    """A video of three frames, a copy of one of two originals, and three houses with one query."""
    shades = {name: np.full((32, 32, 3), shade) for name, shade in (("a", 20), ("b", 120), ("c", 220))}
    davis = folder / "DAVIS"
    mask = np.zeros((32, 48))
    mask[8:16, 8:24] = 1
    for i in range(3):
        paint(davis / "JPEGImages/480p/bear" / f"{i:05d}.jpg", np.stack([mask * 200 + 10 * i] * 3, -1))
        paint(davis / "Annotations/480p/bear" / f"{i:05d}.png", mask)
    (davis / "ImageSets/2017").mkdir(parents=True)
    (davis / "ImageSets/2017/val.txt").write_text("bear\n")
    for place, shade in (("original/200000", "a"), ("original/200100", "b"), ("strong/200001", "a")):
        paint(folder / "copydays" / f"{place}.png", shades[shade])
    for name, pixels in shades.items():
        paint(folder / "rparis6k/jpg" / f"{name}.jpg", pixels)
    known = {"bbx": [0, 0, 32, 32], "easy": [1], "hard": [], "junk": []}
    truth = pickle.dumps({"imlist": ["a", "b"], "qimlist": ["c"], "gnd": [known]})
    (folder / "rparis6k/gnd_rparis6k.pkl").write_bytes(truth)


SHORT = shlex.split("--steps 2 --batch 8 --encoder vit_toy --threads 1 --local-views 0 --image-size 32 --patch-size 16")


def test_the_readme_is_a_face() -> None:
    assert len(README.read_text().splitlines()) <= LONGEST_README


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=[f"{page.stem}: {' '.join(words)}" for page, words in COMMANDS]
)
def test_every_command_shown_exists_with_its_options(page: Path, words: list[str]) -> None:
    chain: list[click.Command] = [cli]
    for word in words:
        last = chain[-1]
        if not isinstance(last, click.Group) or word.isupper() or word.startswith("--"):
            break
        inner = last.get_command(click.Context(last), word)
        assert inner is not None, f"{page.name}: {words} names no command"
        chain.append(inner)
    known = {name for command in chain for part in command.params for name in (*part.opts, *part.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= {*known, "--help"}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_commands_of_the_readme_run_one_after_the_other(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr(importlib.import_module("simdino.plan"), "run_folder", lambda _: Path("runs/again"))
    for words in commands(README):
        done = CliRunner().invoke(cli, [*short(words)])
        assert done.exit_code == 0, (words, done.output)
    assert (home / "features.parquet").is_file()
    assert list((home / "pictures").glob("*.png"))


IN_SHORT = {"--epochs": "0.5", "--images": "24", "--flops": "1e9", "--steps": "4", "--stop-below": "knn 0 at 2"}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("words", list(commands(ROOT / "docs/planning.md")), ids=" ".join)
def test_the_commands_of_planning_run(words: list[str], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    before = {path for path in home.rglob("*") if path.name == "config.json"}
    for name in IN_SHORT.keys() & set(words):
        words = [*words[: words.index(name) + 1], IN_SHORT[name], *words[words.index(name) + 2 :]]
    length = [] if IN_SHORT.keys() & set(words) else ["--steps", "4"]
    done = CliRunner().invoke(cli, [*words, *SHORT[2:], *length])
    assert done.exit_code == 0, (words, done.output)
    made = {path for path in home.rglob("*") if path.name == "config.json"} - before
    assert len(made) == (words[0] == "pretrain")


def short(words: list[str]) -> list[str]:
    """A command of minutes as one of two steps."""
    at = words.index("--minutes") if "--minutes" in words else None
    return words if at is None else [*words[:at], *words[at + 2 :], *SHORT]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("page", "code"), [
    pytest.param(page, code, id=page.stem, marks=[pytest.mark.extra("pycocotools")] if "objects.json" in code else [])
    for page, code in PYTHON
])  # fmt: skip
def test_every_python_block_runs(page: Path, code: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    code = code.replace("steps=300", "steps=4, encoder='vit_toy'").replace("limit=100", "limit=2")
    if "import simdino" not in code:
        code = "import simdino as sd\n" + code
    exec(compile(code, str(page), "exec"), {})


def test_every_file_named_exists_and_the_way_through_a_step_is_eight_files() -> None:
    tour = re.findall(r"^\| `(src/simdino/[\w/.]+)`", (ROOT / "docs/architecture.md").read_text(), flags=re.MULTILINE)
    assert len(tour) == 8
    for page in PAGES:
        text = page.read_text()
        named = re.findall(r"`((?:docs|tests|benchmarks|recipes|src)/[\w/.]+)`", text)
        assert [name for name in named if not (ROOT / name).exists()] == [], page
        linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
        assert [name for name in linked if not (page.parent / name).exists()] == [], page


def test_every_make_target_shown_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks(README)), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_the_tables_are_those_of_the_stored_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = importlib.import_module("tables")
    text = "\n".join(page.read_text() for page in PAGES)
    assert all(f"<!-- {name} -->" in text for name in tables.TABLES)
    assert tables.filled(text) == text, "python benchmarks/tables.py brings it up to date"


def test_every_page_stands_in_the_menu_of_the_site() -> None:
    """`make docs` holds it too, and every link; this needs no mkdocs."""
    menu = set(re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE))
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page != README}
    assert menu - {"index.md", "contributing.md", "changes.md"} == pages


@pytest.mark.parametrize("name", ["configuration", "protocols"])
def test_pages_of_settings_are_made_from_their_declarations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    module = importlib.import_module(name)
    assert module.page() == module.PAGE.read_text(), f"python docs/{name}.py brings it up to date"
