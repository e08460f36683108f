"""Folders of transformers, with and without transformers itself: what is read of them and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from simdino.contracts import InputError
from simdino.models.weights import load_encoder

Tensors = dict[str, Tensor]
WIDTH = 128  # two heads of 64


def noise(*shape: int) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def hf_folder(folder: Path, **about: Any) -> Path:
    about = {"model_type": "dinov2", "num_attention_heads": 2, **about}
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def hf_tensors() -> Tensors:
    """A file of Dinov2Model, one block."""
    made = {
        "embeddings.cls_token": noise(1, 1, WIDTH), "embeddings.position_embeddings": noise(1, 17, WIDTH),
        "embeddings.mask_token": noise(1, WIDTH),
        "embeddings.patch_embeddings.projection.weight": noise(WIDTH, 3, 16, 16),
        "embeddings.patch_embeddings.projection.bias": noise(WIDTH),
        "layernorm.weight": noise(WIDTH), "layernorm.bias": noise(WIDTH),
        **{f"encoder.layer.0.layer_scale{i}.lambda1": noise(WIDTH) for i in (1, 2)},
    }  # fmt: skip
    linear = {
        **{f"attention.attention.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")},
        "attention.output.dense": (WIDTH, WIDTH), "mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH),
        "norm1": (WIDTH,), "norm2": (WIDTH,),
    }  # fmt: skip
    for part, shape in linear.items():
        made[f"encoder.layer.0.{part}.weight"] = noise(*shape)
        made[f"encoder.layer.0.{part}.bias"] = noise(shape[0])
    return made


def test_transformers_files_of_both_kinds_load(tmp_path: Path) -> None:
    tensors = hf_tensors()
    torch.save(tensors, hf_folder(tmp_path) / "pytorch_model.bin")
    first = load_encoder(f"hf:{tmp_path}").state_dict()
    save_file(tensors, tmp_path / "model.safetensors")
    second = load_encoder(tmp_path).state_dict()
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    assert torch.equal(
        first["blocks.0.attn.qkv.bias"][WIDTH : 2 * WIDTH], tensors["encoder.layer.0.attention.attention.key.bias"]
    )


@pytest.mark.parametrize(
    "key", ["encoder.layer.0.attention.attention.key.weight", "embeddings.cls_token", "layernorm.bias"]
)
def test_a_wrong_key_of_transformers_is_named(key: str, tmp_path: Path) -> None:
    tensors = hf_tensors()
    save_file(tensors | {key + "x": tensors.pop(key)}, hf_folder(tmp_path) / "model.safetensors")
    with pytest.raises(InputError, match=rf"missing .*surplus {key}x"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"model_type": "bert"}, "model of type 'bert' of transformers: only dinov2 and dinov2_with_registers"),
        ({"layer_norm_eps": 1e-12}, "has layer_norm_eps 1e-12"),
        ({"num_attention_heads": 3}, "width 128, which does not divide into the 3 heads"),
        ({}, "no model.safetensors and no pytorch_model.bin"),
    ],
)
def test_other_models_of_transformers_are_refused(about: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path, **about)
    if about:
        save_file(hf_tensors(), folder / "model.safetensors")
    with pytest.raises(InputError, match=words):
        load_encoder(folder)


def test_broken_files_of_transformers_are_said(tmp_path: Path) -> None:
    (hf_folder(tmp_path) / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"model\.safetensors is not a readable safetensors file"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not readable JSON"):
        load_encoder(tmp_path)


@pytest.mark.extra("huggingface_hub")
def test_a_name_on_the_hub_out_of_reach_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("facebook/dinov2-small", "not a name"):
        with pytest.raises(InputError, match=f"hf:{name} is no folder and could not be fetched") as error:
            load_encoder(f"hf:{name}")
        assert "\n" not in str(error.value)
