"""The house rules: who may import whom, how long a file may be, what the public names are."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import click
import pytest

import simdino
from simdino.cli import cli
from simdino.evaluate import PROTOCOLS
from simdino.keywords import keywords
from simdino.options import every_setting
from simdino.show import PICTURES

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "simdino"
MODULES = sorted(SOURCE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

ORDER = {
    "__init__": 0, "errors": 0, "cosine": 0, "text": 0, "rng": 0, "extras": 1, "feedback": 1, "files": 1, "result": 1,
    "settings": 1, "contracts": 2, "config": 2, "trunk": 3, "marks": 3, "keywords": 3, "device": 3, "defaults": 3,
    "data": 3,
    "models": 4, "losses": 4, "methods": 5, "options": 6, "saved": 6, "features": 6, "runs": 7, "peaks": 7,
    "evaluate": 8, "train": 9, "show": 10, "exports": 10, "recipes": 10, "assembly": 11, "timing": 12, "plan": 13,
    "pretraining": 14, "forecasting": 14, "cli": 15, "__main__": 16,
}  # fmt: skip
"""A part imports parts of a smaller number, and itself. Say here where a new part belongs."""

FORBIDDEN = {("evaluate", "losses.simdino"), ("recipes", "train"), ("recipes", "show"), ("recipes", "evaluate")}
EVERY_PART = {"data", "models", "methods", "evaluate", "train", "show"}

PUBLIC = {
    "Config", "EmbeddingIndex", "InputError", "Tokens", "__version__", "embed", "evaluate", "export",
    "forecast", "list_encoders",
    "list_formats", "list_methods", "list_recipes", "list_runs", "load_encoder", "pretrain", "recipes", "resume",
}  # fmt: skip

WORDS = {
    "simdino": {"--version"},
    "simdino pretrain": {
        "DATA", "--at", "--cool-down", "--json", "--out", "--resume", "--set",
        *(one.name for one in every_setting().values() if one.word), "--no-compile", "--no-labels", "--no-recompute",
    },
    "simdino plan": {
        "DATA", "--gpu", "--json", "--set", "--utilisation",
        *(one.name for one in every_setting().values() if one.word), "--no-compile", "--no-labels", "--no-recompute",
    },
    "simdino evaluate": set(),
    "simdino classify": {"CLASSIFIER", "IMAGES", "--device", "--json", "--out", "--workers"},
    "simdino embed": {
        "--class-depth", "--train", "--val",
        "ENCODER", "IMAGES", "--device", "--dtype", "--json", "--no-reduced", "--out", "--positions", "--reduced",
        "--split", "--tokens", "--workers",
    },
    "simdino show": set(),
    "simdino inspect": {
        "DATA", "--channels", "--class-depth", "--json", "--kind", "--sheet", "--train", "--val", "--values"
    },
    "simdino export": {
        "ENCODER", "--image-size", "--json", "--license", "--no-private", "--out", "--private", "--push", "--to"
    },
    "simdino runs": {"FOLDER", "--json"},
    "simdino report": {"RUNS", "--json", "--out"},
}  # fmt: skip

ONE_STEP = (
    "cli/training.py", "pretraining.py", "train/loop.py", "data/loader.py", "train/step.py", "models/projector.py",
    "models/vit.py", "losses/simdino.py",
)  # fmt: skip
"""The way from the command line through one training step."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    """src/simdino/train/loop.py -> train.loop"""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Every module named in an import, wherever it stands; `from a import b` names a and a.b."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def own_imports(path: Path) -> set[str]:
    """The modules of simdino that a file imports, such as train.loop; the package itself is __init__."""
    names = {name.removeprefix("simdino.") for name in imported(path) if name.startswith("simdino.")}
    files = {name for name in names if module_file(name) is not None}
    loose = {simdino._WHERE[name].removeprefix("simdino.") for name in names - files if name in simdino._WHERE}
    return files | loose


def module_file(name: str) -> Path | None:
    path = SOURCE / name.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [path for path in MODULES if path != SOURCE / "__init__.py"], ids=ids)
def test_imports_go_one_way(path: Path) -> None:
    name = name_of(path)
    part = name.split(".")[0]
    assert part in ORDER, f"say in ORDER where {part} belongs"
    for other in own_imports(path):
        other_part = other.split(".")[0]
        allowed = other_part == part or ORDER[other_part] < ORDER[part]
        assert allowed, f"{name} imports {other}, a part that comes after it or stands beside it"
        assert (part, other) not in FORBIDDEN, f"{name} imports {other}"
        assert (part, other_part) not in FORBIDDEN, f"{name} imports {other}"


def test_only_the_assembly_sees_every_part() -> None:
    seers = {name_of(p) for p in MODULES if {other.split(".")[0] for other in own_imports(p)} >= EVERY_PART}
    assert seers == {"pretraining"}


def test_one_file_imports_torch_distributed() -> None:
    def of_processes(name: str) -> bool:
        return name.startswith(("torch.distributed", "torch.nn.parallel"))

    assert [name_of(path) for path in MODULES if any(map(of_processes, imported(path)))] == ["train.parallel"]
    mentions = [
        name_of(path) for path in MODULES if re.search(r"torch\.distributed\.\w|DistributedData", path.read_text())
    ]
    assert mentions == ["train.parallel"]


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=ids)
def test_files_and_functions_are_short_and_named_for_what_they_do(path: Path) -> None:
    assert not {"utils", "helpers", "common", "misc"} & set(path.with_suffix("").parts[len(ROOT.parts) :])
    longest = {"train/step.py": 80}.get(str(path.relative_to(SOURCE)) if path in MODULES else "", 400)
    assert len(path.read_text().splitlines()) <= longest
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, node.name


def test_public_names_are_these() -> None:
    assert set(simdino.__all__) == PUBLIC
    assert len(simdino.__all__) == len(PUBLIC)
    assert all(getattr(simdino, name) is not None for name in PUBLIC)
    with pytest.raises(AttributeError, match="it has Config, EmbeddingIndex, "):
        _ = simdino.nothing


def test_editors_and_the_interpreter_see_the_same_names() -> None:
    block = next(node for node in tree(SOURCE / "__init__.py").body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip
    assert typed == simdino._WHERE
    assert [*typed, "__version__"] == sorted(simdino.__all__, key=[*typed, "__version__"].index)


def words_of(command: click.Command, path: str = "simdino") -> dict[str, set[str]]:
    found = {path: set[str]()}
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            found[path].add(str(parameter.name).upper())
        else:
            found[path] |= {word for word in (*parameter.opts, *parameter.secondary_opts) if word.startswith("--")}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            found |= words_of(below, f"{path} {name}")
    return found


def test_command_line_words_are_these() -> None:
    found = words_of(cli)
    made = {*(f"simdino evaluate {name}" for name in PROTOCOLS), *(f"simdino show {name}" for name in PICTURES)}
    assert {path: words for path, words in found.items() if path not in made} == WORDS
    for name, picture in PICTURES.items():
        declared = {keyword.word for keyword in keywords(picture).values()} | {"ENCODER", "IMAGES", "--json"}
        assert {word for word in found[f"simdino show {name}"] if not word.startswith("--no-")} == declared
    for name, protocol in PROTOCOLS.items():
        declared = {keyword.word for keyword in keywords(protocol.function).values()}
        shared = {"ENCODER", "--data", "--device", "--json", "--positions"}
        more = found[f"simdino evaluate {name}"] - declared - shared
        assert not {word for word in more if not word.startswith("--no-")} - {"--train", "--val", "--class-depth"}


STILL = """
import logging, os, random, signal, sys, threading, warnings
def world():
    return dict(
        environment=dict(os.environ), filters=list(warnings.filters), threads=threading.active_count(),
        handlers=list(logging.getLogger().handlers), random=random.getstate(),
        signals={n: signal.getsignal(n) for n in signal.valid_signals() if n not in (9, 19)},
        hooks=(sys.excepthook, sys.displayhook), folder=os.getcwd(), limit=sys.getrecursionlimit())
before = world()
import simdino
assert world() == before
assert not [name for name in sys.modules if name.split(".")[0] in ("torch", "numpy", "PIL", "click", "sklearn")]
import numpy, torch
def arithmetic():
    return (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.get_rng_state().tolist(),
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(), numpy.random.get_state()[1].tolist(),
        numpy.geterr(), random.getstate(), os.getcwd(),
        signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
before = arithmetic()
for name in simdino.__all__: getattr(simdino, name)
import simdino.cli, simdino.evaluate.classification.neighbours, simdino.show.report
assert arithmetic() == before
"""


@pytest.mark.slow
def test_importing_changes_nothing_and_loads_nothing_heavy() -> None:
    subprocess.run([sys.executable, "-c", STILL], check=True)


def module_name(path: str) -> str:
    """models/vit.py -> models.vit"""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_one_step_is_at_most_eight_files_each_called_by_one_before_it() -> None:
    assert len(ONE_STEP) <= 8
    for i, name in enumerate(ONE_STEP[1:], start=1):
        module = module_name(name)
        callers = {other for path in ONE_STEP[:i] for other in own_imports(SOURCE / path)}
        if "methods" in callers:  # a table of files that are imported by name
            callers |= {"methods.method", "methods.simdino"}
        if "models.catalogue" in callers:  # another
            callers |= {"models.vit"}
        for assembly in (
            "assembly.py", "methods/method.py", "methods/simdino.py", "models/starting.py", "models/catalogue.py",
        ):  # fmt: skip
            callers |= own_imports(SOURCE / assembly) if module_name(assembly) in callers else set()
        assert module in callers, f"{name} is not on the way"


def test_the_tour_leads_through_these_files() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    indices = [text.find(f"src/simdino/{name}") for name in ONE_STEP]
    assert -1 not in indices, dict(zip(ONE_STEP, indices, strict=True))


def own_files() -> list[Path]:
    """What git tracks or would track."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout of the repository, so there is no list of its files")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def machine_words() -> set[str]:
    """Paths and package hosts that only this machine has."""
    settings = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    said = " ".join(
        [settings.stdout, *(value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_")))]
    )
    hosts = set(re.findall(r"https?://(?:[^@/\s']*@)?([\w.-]+)", said)) - {"download.pytorch.org", "github.com"}
    homes = {str(path) + "/" for path in (ROOT, ROOT.parent, Path.home(), Path(sys.prefix)) if len(path.parts) > 1}
    return hosts | homes


def test_nothing_in_the_tree_names_this_machine() -> None:
    words = machine_words()
    for path in own_files():
        text = path.read_bytes().decode(errors="replace")
        assert not [word for word in words if word in text], path
        assert not re.search(r"--(extra-)?index-url|find-links", text) or path == Path(__file__), path


@pytest.mark.parametrize("path", [*sorted(ROOT.glob("benchmarks/*.py")), *sorted(ROOT.glob("recipes/*.py"))], ids=ids)
def test_scripts_import_names_that_exist(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("simdino"):
            module = importlib.import_module(str(node.module))
            assert not [alias.name for alias in node.names if not hasattr(module, alias.name)], node.module
