"""An encoder's file: everything in it, nothing else, and plain words when it does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder
from simdino.models.weights import KEY, load_encoder, save_encoder

PREPROCESS = Preprocess(resize=36, crop=32, channels=1, mean=(0.25,), std=(0.5,))


def new_encoder(**options: Any) -> Encoder:
    config = EncoderConfig(**{"name": "vit_nano", "image_size": 32, "patch_size": 8, "drop_path": 0.2, **options})
    return make_encoder(config, PREPROCESS)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "encoder.safetensors"
    save_encoder(new_encoder(), path)
    return path


def rewritten(path: Path, target: Path, *, metadata: dict[str, str] | None = None, **changes: Any) -> Path:
    """A copy of a file with some tensors replaced, added, or (None) left out."""
    with safe_open(path, framework="pt") as file:
        own = file.metadata()
    tensors = {name: t for name, t in (load_file(path) | changes).items() if t is not None}
    save_file(tensors, target, metadata=own if metadata is None else metadata)
    return target


@pytest.mark.parametrize(
    "options",
    [{}, {"registers": 4, "layer_scale": 0.1}, {"patch_embed": "dual_norm"}],
    ids=["plain", "registers, layer scale", "dual norm"],
)
def test_round_trip(tmp_path: Path, options: dict[str, Any]) -> None:
    encoder = new_encoder(**options)
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    x = torch.randn(2, 1, 32, 32)
    for where in (tmp_path, str(tmp_path), tmp_path / "encoder.safetensors"):  # a run folder or the file
        loaded = load_encoder(where)
        assert loaded.config == encoder.config and loaded.preprocess == encoder.preprocess
        assert not loaded.training
        assert loaded.state_dict().keys() == encoder.state_dict().keys()
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in encoder.state_dict().items())
        assert torch.equal(loaded(x).cls, encoder.eval()(x).cls)


def test_the_same_weights_give_the_same_bytes_at_any_time_and_place(tmp_path: Path, written: Path) -> None:
    again = tmp_path / "other.safetensors"
    save_encoder(load_encoder(written), again)
    assert again.read_bytes() == written.read_bytes()


def test_the_metadata_holds_configuration_and_preprocessing_and_nothing_else(written: Path) -> None:
    with safe_open(written, framework="pt") as file:
        assert list(file.metadata()) == [KEY]
        about = json.loads(file.metadata()[KEY])
    assert about == {
        "encoder": {
            "name": "vit_nano",
            "embed_dim": None,
            "depth": None,
            "num_heads": None,
            "image_size": 32,
            "patch_size": 8,
            "registers": 0,
            "layer_scale": None,
            "drop_path": 0.2,
            "drop_path_rule": "linear",
            "mask_token": False,
            "ffn": "mlp",
            "pool": "mean",
            "positions": "antialias",
            "patch_embed": "patch",
            "token_std": 0.02,
        },
        "preprocess": {"resize": 36, "crop": 32, "channels": 1, "mean": [0.25], "std": [0.5], "values": None},
    }


def test_nothing_is_left_beside_the_file_and_an_old_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(b"old")
    save_encoder(new_encoder(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.safetensors"]
    load_encoder(path)


def test_missing_surplus_and_misshapen_keys_are_all_named(tmp_path: Path, written: Path) -> None:
    path = rewritten(
        written, tmp_path / "x.safetensors",
        **{"norm.bias": None, "head.weight": torch.zeros(3), "cls_token": torch.zeros(1, 1, 7)},
    )  # fmt: skip
    with pytest.raises(InputError) as error:
        load_encoder(path)
    message = str(error.value)
    assert "missing norm.bias" in message and "surplus head.weight" in message
    assert f"cls_token is (1, 1, 7), expected {tuple(load_file(written)['cls_token'].shape)}" in message
    assert str(path) in message and "\n" not in message


def test_files_of_others_are_refused(tmp_path: Path, written: Path) -> None:
    foreign = rewritten(written, tmp_path / "foreign.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="not written by simdino"):
        load_encoder(foreign)
    bare = tmp_path / "bare.safetensors"
    save_file({"weight": torch.zeros(2)}, bare)
    with pytest.raises(InputError, match="not written by simdino"):
        load_encoder(bare)


def test_files_that_are_no_safetensors_are_refused(tmp_path: Path, written: Path) -> None:
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(written.read_bytes()[:-100])
    for name in ("empty.safetensors", "cut.safetensors"):
        with pytest.raises(InputError, match=f"{name} is not a readable safetensors file"):
            load_encoder(tmp_path / name)


def test_no_file_is_said_with_what_was_expected(tmp_path: Path) -> None:
    for where in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match=r"no encoder at .*encoder\.safetensors"):
            load_encoder(where)


@pytest.mark.parametrize(
    "about",
    [
        {"encoder": {"name": "vit_nano", "unknown_field": 1}, "preprocess": {}},
        {"encoder": {"name": "vit_unknown"}, "preprocess": PREPROCESS.__dict__},
        {"encoder": {}},
    ],
    ids=["unknown field", "unknown name", "no preprocessing"],
)
def test_a_configuration_of_another_version_is_refused_as_input(
    tmp_path: Path, written: Path, about: dict[str, Any]
) -> None:
    path = rewritten(written, tmp_path / "x.safetensors", metadata={KEY: json.dumps(about)})
    with pytest.raises(InputError, match=r"x\.safetensors"):
        load_encoder(path)
