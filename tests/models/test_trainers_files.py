"""Files as seven trainers write them load, equal their source, and start runs and evaluations; code in them does not
run, and is named."""

from __future__ import annotations

import argparse
import functools
import json
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trainers import DINO, PATCH, SIZE, TRAINERS, V2, WIDTH, write

from simdino.assembly import preprocessing
from simdino.cli import main
from simdino.contracts import InputError
from simdino.models import weights
from simdino.models.starting import starting_encoder
from simdino.models.weights import load_encoder, save_encoder
from simdino.options import Options
from simdino.recipes import resolve

pytestmark = pytest.mark.slow

EVERY = pytest.mark.parametrize("name", TRAINERS)
BARE = "encoder alone, which does not tell its family"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        (folder / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "ab"[i % 2] / f"{i}.png")
    return folder


@EVERY
@pytest.mark.parametrize(("numpy", "zipped"), [(1, True), (2, True), (1, False), (2, False)])
def test_every_trainers_file_loads_and_equals_its_source(name: str, numpy: int, zipped: bool, tmp_path: Path) -> None:
    trainer, said = TRAINERS[name], []
    encoder = load_encoder(write(trainer.file, tmp_path / "x.pth", numpy=numpy, zipped=zipped), log=said.append)
    assert encoder.config.positions == trainer.rule and said == []
    for size in (SIZE, SIZE + 2 * PATCH, SIZE - PATCH):
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = trainer.features(trainer.encoder, images, trainer.rule)
            torch.testing.assert_close(encoder(images).cls, expected, rtol=0, atol=1e-5)


@EVERY
def test_every_trainers_file_starts_a_run_and_an_evaluation(
    name: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(TRAINERS[name].file, tmp_path / "x.pth")
    options = Options(init=str(path), image_size=SIZE, batch=4, steps=1)
    config = resolve(str(pictures), options)
    started = starting_encoder(config, preprocessing(config), fresh=True).state_dict()
    assert config.encoder.positions == TRAINERS[name].rule
    assert all(torch.equal(tensor, started[key]) for key, tensor in load_encoder(path).state_dict().items())
    words = ["--data", str(pictures), "--leave-one-out", "--k", "5", "--no-baselines", "--json"]
    main(["evaluate", "knn", str(path), *words])
    assert json.loads(capsys.readouterr().out)["encoder"]["top1"] >= 0


@pytest.mark.parametrize(
    "number", [np.float32(0.5), np.float16(0.5), np.int64(3), np.bool_(True), np.dtypes.Float64DType]
)
def test_numbers_of_numpy_of_other_kinds_load_too(number: Any, tmp_path: Path) -> None:
    load_encoder(write(TRAINERS["DINO"].file | {"best": number}, tmp_path / "x.pth"))


def test_a_wider_encoder_of_mae_has_sixteen_heads(tmp_path: Path) -> None:
    wide = {
        name: torch.zeros([1280 * n // WIDTH if n % WIDTH == 0 else n for n in t.shape]) for name, t in DINO.items()
    }
    assert load_encoder(write({"model": wide}, tmp_path / "x.pth"), log=lambda _: None).config.num_heads == 16


# --- positions ----------------------------------------------------------------------------------------------------


def features(encoder: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return encoder(images).cls


@pytest.mark.parametrize("rule", ["antialias", "offset", "plain"])
@pytest.mark.parametrize("alone", [DINO, V2], ids=["no layer scale", "layer scale"])
def test_positions_decides_for_an_encoder_alone(alone: Any, rule: Any, tmp_path: Path) -> None:
    said: list[str] = []
    path = write(alone, tmp_path / "x.pth")
    taken = load_encoder(path, log=said.append)
    assert len(said) == 1 and BARE in said[0] and "offset" in said[0] and taken.config.positions == "offset"
    encoder = load_encoder(path, positions=rule, log=said.append)
    assert len(said) == 1 and encoder.config.positions == rule
    images = torch.randn(2, 3, SIZE + 2 * PATCH, SIZE + 2 * PATCH)
    expected = TRAINERS["DINO"].features(alone, images, rule)
    torch.testing.assert_close(features(encoder, images), expected, rtol=0, atol=1e-5)


def test_positions_of_a_told_family_may_be_overruled_and_of_our_own_files_not(tmp_path: Path) -> None:
    path = write(TRAINERS["MAE"].file, tmp_path / "x.pth")
    assert load_encoder(path, positions="antialias").config.positions == "antialias"
    save_encoder(load_encoder(path), tmp_path / "encoder.safetensors")
    assert load_encoder(tmp_path, positions="plain").config.positions == "plain"
    with pytest.raises(InputError, match="says its own rule for positions, plain"):
        load_encoder(tmp_path, positions="offset")


RULE = ["--positions", "antialias"]
WAYS = {  # to give the rule, with a folder of pictures and one to write to
    "evaluate": lambda path, data, _: ["evaluate", "knn", path, *RULE, "--data", data, "--leave-one-out", "--k", "5"],
    "embed": lambda path, data, out: ["embed", path, data, *RULE, "--out", f"{out}/f.parquet"],
    "show": lambda path, data, out: ["show", "pca", path, data, *RULE, "--count", "2", "--out", f"{out}/pictures"],
}


@pytest.mark.parametrize("way", WAYS)
def test_every_command_takes_the_rule(
    way: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, rules = write(V2, tmp_path / "x.pth"), []
    fitted = weights.fitted
    monkeypatch.setattr(weights, "fitted", lambda w, **sizes: rules.append(w.config.positions) or fitted(w, **sizes))
    words = WAYS[way](str(path), str(pictures), str(tmp_path))
    main(words)
    assert rules == ["antialias"] and BARE not in capsys.readouterr().err
    main([word for word in words if word not in RULE])
    assert rules == ["antialias", "offset"] and BARE in capsys.readouterr().err


def test_a_run_starts_with_the_rule_and_keeps_it(pictures: Path, tmp_path: Path) -> None:
    path = write(V2, tmp_path / "x.pth")
    options = Options(init=str(path), positions="antialias", image_size=SIZE + 2 * PATCH, batch=4, steps=1)
    config = resolve(str(pictures), options)
    started = starting_encoder(config, preprocessing(config), fresh=True)
    assert config.encoder.positions == "antialias"
    expected = load_encoder(path, positions="antialias", image_size=SIZE + 2 * PATCH).state_dict()["pos_embed"]
    assert torch.equal(started.state_dict()["pos_embed"], expected)


def test_a_run_without_weights_takes_the_rule_too(pictures: Path) -> None:
    options = Options(encoder="vit_nano", positions="plain", steps=1)
    assert resolve(str(pictures), options).encoder.positions == "plain"


# --- code ---------------------------------------------------------------------------------------------------------


class Call:
    """Unpickling it would call a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


MARK = "code-was-run"
CODE: dict[str, tuple[Any, str]] = {
    "os.system": (Call(os.system, f"touch {MARK}"), r"(posix|nt|os)\.system"),
    "eval": (Call(eval, f"open('{MARK}', 'w')"), "eval"),
    "exec": (Call(exec, f"open('{MARK}', 'w')"), "exec"),
    "open": (Call(open, MARK, "w"), r"(_?io\.)?open"),
    "getattr": (Call(getattr, "text", "upper"), "getattr"),
    "__import__": (Call(__import__, "antigravity"), "__import__"),
    "subprocess": (Call(subprocess.Popen, ["touch", MARK]), r"(subprocess|commands)\.Popen"),
    "partial": (functools.partial(os.system, f"touch {MARK}"), r"functools\.partial"),
    "hub": (Call(torch.hub.load, "owner/name", "model"), r"torch\.hub\.load"),
    "numpy.load": (Call(np.load, "y.npy", None, True), r"numpy\S*\.load"),
    "objects of numpy": (np.array([Call(os.system, MARK)], object), r"numpy\._?core\.multiarray\._reconstruct"),
    "pickle": (Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {MARK}"), 2)), r"_?pickle\.loads"),
    "model": (torch.nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["arguments", "rate", "weights"])
@pytest.mark.parametrize("kind", CODE)
def test_code_in_a_file_is_refused_by_name(
    kind: str, place: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, words = CODE[kind]
    held = {
        "arguments": lambda: {**TRAINERS["DINO"].file, "args": argparse.Namespace(lr=np.float64(1), more=code)},
        "rate": lambda: {"model": DINO, "optimizer": {"param_groups": [{"lr": code}]}},
        "weights": lambda: {"model": {**DINO, "norm.bias": code}},
    }[place]()
    with pytest.raises(InputError, match=rf"x\.pth holds ({words}), and loading it could run code") as error:
        load_encoder(write(held, tmp_path / "x.pth", zipped=zipped))
    assert "\n" not in str(error.value) and not (tmp_path / MARK).exists()


class AsNumber:
    """A number of numpy's that holds something else."""

    def __init__(self, kind: str, held: Any) -> None:
        self.kind, self.held = kind, held

    def __reduce__(self) -> tuple[Any, ...]:
        return np.float64(0).__reduce__()[0], (np.dtype(self.kind), self.held)


@pytest.mark.parametrize(
    "number", [AsNumber("O", [1]), AsNumber("f8", "text"), AsNumber("f8", b"short"), AsNumber("V8", b"12345678")]
)
def test_numbers_that_are_none_are_refused_in_one_line(number: AsNumber, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.pth is not a readable PyTorch file") as error:
        load_encoder(write(DINO | {"lr": number}, tmp_path / "x.pth"))
    assert "\n" not in str(error.value)
