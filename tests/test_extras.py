"""Without the extras: everything imports, every command has its help, and what needs one says what to install."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simdino.cli import main
from simdino.contracts import InputError
from simdino.data.opening import extensions, formats
from simdino.extras import EXTRAS, optional

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_CONTRIBUTORS = {"test", "transformers", "docs"}
"""Extras that no command needs."""
IN_PYTHON = {"faiss", "submitit"}
"""Packages of extras that no command needs, but a function or a recipe: tests/features/test_graph.py,
tests/test_recipe_scripts.py."""

WITHOUT = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] == sys.argv[1] else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]

import importlib, pkgutil
import click
import simdino
from simdino.cli import cli

for module in pkgutil.walk_packages(simdino.__path__, "simdino."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

def ask(command, path):
    context = click.Context(command, info_name=path)
    assert "--help" in command.get_help(context), path
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            ask(command.get_command(context, name), f"{path} {name}")

ask(cli, "simdino")
assert sys.argv[1] not in sys.modules
"""

COMMANDS = {
    "timm": "pretrain {photos} --encoder timm:resnet18 --out {run}",
    "huggingface_hub": "embed hf:nobody/nothing {photos} --out {run}.parquet",
    "onnxscript": "export {encoder} --to onnx --out {run}",
    "onnxruntime": "export {encoder} --to onnx --out {run}",
    "pydicom": "inspect {dicom}",
    "rasterio": "inspect {geo}",
    "pillow_heif": "inspect {heic}",
    "pycocotools": "evaluate discover {encoder} --data {photos} --annotations {photos}/truth.json",
    "pydensecrf": "evaluate discover {encoder} --data {photos} --crf",
    "umap": "show map {encoder} {photos} --layout umap --out {run}.html",
}
"""The package: a command that needs it."""


@pytest.fixture
def indices(tmp_path: Path) -> dict[str, Path]:
    """A folder of pictures and a toy encoder."""
    from simdino.config import EncoderConfig
    from simdino.contracts import Preprocess
    from simdino.models.catalogue import make_encoder
    from simdino.models.weights import save_encoder

    (tmp_path / "photos").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    preprocess = Preprocess(resize=16, crop=16, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3)
    encoder = make_encoder(EncoderConfig(name="vit_toy", image_size=16, patch_size=4), preprocess)
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    bad = {"dicom": ("x.dcm", bytes(128) + b"DICM" + bytes(99)), "geo": ("x.tif", b"II*\0" + bytes(99)),
           "heic": ("x.heic", b"")}  # fmt: skip
    for folder, (name, content) in bad.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(content)
    places = {name: tmp_path / name for name in (*bad, "photos", "run")}
    return places | {"encoder": tmp_path / "encoder.safetensors"}


@pytest.mark.slow
def test_each_extra_of_the_project_has_its_package_here() -> None:
    extras = PROJECT["optional-dependencies"]
    assert {extra for extra, _ in EXTRAS.values()} == extras.keys() - OF_CONTRIBUTORS
    for package, (extra, need) in EXTRAS.items():
        distributions = packages_distributions().get(package)
        if distributions is not None:  # else it is not installed, and cannot be asked
            required = {re.split(r"[><=]", requirement)[0] for requirement in extras[extra]}
            assert required & set(distributions), need
    assert COMMANDS.keys() | IN_PYTHON == EXTRAS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("package", EXTRAS)
def test_without_it_everything_imports_and_every_command_has_its_help(package: str) -> None:
    subprocess.run([sys.executable, "-c", WITHOUT, package], check=True)


@pytest.mark.parametrize("package", COMMANDS)
def test_the_command_that_needs_it_says_what_to_install(
    package: str, indices: dict[str, Path], hide: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    hide(package)
    formats.cache_clear(), extensions.cache_clear()  # as if this process had not read an image yet
    with pytest.raises(SystemExit) as end:
        main([word.format(**indices) for word in COMMANDS[package].split()])
    errors = capsys.readouterr().err
    assert end.value.code == 2
    assert f"pip install 'simdino[{EXTRAS[package][0]}]'" in errors and errors.count("\n") == 1, errors


@pytest.mark.parametrize("name", ["resnet18", "vit_smal"])
def test_without_timm_an_unknown_encoder_may_be_one_of_timms(name: str, hide: Callable[[str], None]) -> None:
    from simdino.models.catalogue import resolve_name

    hide("timm")
    resolve_name("vit_small")
    with pytest.raises(InputError, match=rf"unknown encoder {name!r}.*pip install 'simdino\[timm\]'"):
        resolve_name(name)


def test_a_package_that_is_here_but_broken_is_told_from_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pydensecrf.py").write_text("raise ImportError('made for another numpy')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "pydensecrf"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=r"which is here but broken \(made for another numpy\): pip install"):
        optional("pydensecrf")


NAMES = {"pillow": "PIL", "scikit-learn": "sklearn"}
"""Distributions whose package has another name."""


def test_the_source_imports_what_the_project_requires_and_nothing_else() -> None:
    """At the top or inside a function: a package of an extra goes through `optional`, any other must be required."""
    required = {re.split(r"[><=]", requirement)[0] for requirement in PROJECT["dependencies"]}
    allowed = {NAMES.get(name, name) for name in required} | {"simdino"} | set(sys.stdlib_module_names)
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} - allowed, path
