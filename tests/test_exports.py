"""Exported encoders are read back by the libraries they are for, and give the same tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import simdino as sd
from simdino.cli import main
from simdino.config import EncoderConfig
from simdino.contracts import Preprocess
from simdino.exports import FORMATS, export
from simdino.exports.format import Format, every_token
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder
from simdino.models.weights import load_encoder, save_encoder

ABOUT = Preprocess(resize=40, crop=32, channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
CONFIG = EncoderConfig(name="vit_toy", image_size=32, patch_size=8, drop_path=0.1)
KINDS = {
    "plain": {}, "registers": {"registers": 3, "positions": "antialias"}, "layer scale": {"layer_scale": 0.1},
    "mask token": {"mask_token": True}, "swiglu": {"ffn": "swiglu"},
}  # fmt: skip


def made(about: Preprocess = ABOUT, **settings: Any) -> Encoder:
    torch.manual_seed(0)
    return make_encoder(replace(CONFIG, **settings), about).eval()


@pytest.mark.parametrize("library", [pytest.param("installed", marks=pytest.mark.slow), "missing"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", ["hf", "timm"])
def test_what_is_exported_is_the_encoder(
    format: str, kind: str, library: str, tmp_path: Path, hide: Callable[[str], None]
) -> None:
    if library == "missing":
        hide({"hf": "transformers"}.get(format, format))
    else:
        pytest.importorskip({"hf": "transformers"}.get(format, format))
    encoder = made(**KINDS[kind])
    if (format, kind) == ("timm", "swiglu"):
        with pytest.raises(sd.InputError, match="--to timm holds no encoder with swiglu: take --to hf"):
            export(encoder, tmp_path / "out", format=format)
        return
    out = export(encoder, tmp_path / "out", format=format)
    assert not list(tmp_path.glob(".writing*"))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found, expected = FORMATS[format].read(encoder, out)(images), every_token(encoder)(images)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    if format == "hf":
        torch.testing.assert_close(load_encoder(out)(images).cls, encoder(images).cls)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_toy", {"registers": 3}), ("crate_nano", {}), ("conv_pico", {"mask_token": True}), ("hybrid_nano", {}),
        pytest.param("timm:resnet18", {}, marks=[pytest.mark.extra("timm"), pytest.mark.slow]),
    ],
)  # fmt: skip
def test_a_program_of_torch_gives_the_tokens_of_any_number_of_images(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    encoder = made(name=name, **settings)
    out = export(encoder, tmp_path / "out", format="torch")
    program = torch.export.load(out / "encoder.pt2").module()
    for count in (1, 5):
        images = torch.randn(count, 3, 32, 32)
        with torch.no_grad():
            expected, found = encoder(images), program(images)
        assert found.keys() == {"cls", "patches", *(["registers"] if settings.get("registers") else [])}
        for part, value in found.items():
            torch.testing.assert_close(value, getattr(expected, part), atol=1e-5, rtol=1e-5)
    assert Preprocess(**json.loads((out / "preprocess.json").read_text())).crop == ABOUT.crop


@pytest.mark.extra("transformers")
def test_the_processor_of_transformers_prepares_images_alike(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image
    from transformers import AutoImageProcessor

    encoder = made()
    export(encoder, tmp_path / "out", format="hf")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "out")(picture, return_tensors="pt")["pixel_values"][0]
    assert (theirs - encoder.transform(picture)).abs().max() < 3 / 255 / 0.2


def test_a_path_of_an_encoder_is_taken_and_the_command_does_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "encoder.safetensors"
    save_encoder(made(), where)
    assert export(str(where), str(tmp_path / "hf"), format="hf") == tmp_path / "hf"
    main(["export", str(where), "--to", "hf", "--out", str(tmp_path / "again"), "--json"])
    assert json.loads(capsys.readouterr().out) == {"out": str(tmp_path / "again"), "format": "hf"}
    for file in (tmp_path / "hf").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "format", "words"),
    [
        ({}, "hff", "--to 'hff' must be hf or timm or torch; did you mean hf?"),
        ({"name": "crate_nano"}, "hf", "--to hf holds no crate_nano: export a ViT of ours"),
        ({"patch_embed": "dual_norm"}, "timm", "--to timm holds no encoder with the patch embedding dual_norm"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_in_one_line(
    settings: dict[str, Any], format: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(sd.InputError, match=words) as caught:
        export(made(**settings), tmp_path / "out", format=format)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_anything_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(sd.InputError, match="is not empty: give another folder"):
        export(made(), tmp_path, format="hf")


def test_a_toy_format_is_one_entry_and_wrong_files_never_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(encoder: Encoder, folder: Path) -> None:
        save_file(encoder.state_dict(), folder / "weights.safetensors")

    def read(encoder: Encoder, folder: Path) -> Any:
        copy = made()
        copy.load_state_dict(load_file(folder / "weights.safetensors"))
        return every_token(copy)

    monkeypatch.setitem(FORMATS, "toy", Format(text="a toy", write=write, read=read))
    assert [path.name for path in export(made(), tmp_path / "good", format="toy").iterdir()] == ["weights.safetensors"]
    monkeypatch.setitem(FORMATS, "toy", Format(text="a toy", write=write, read=lambda _, __: torch.zeros_like))
    with pytest.raises(RuntimeError, match="does not give the encoder's tokens"):
        export(made(), tmp_path / "bad", format="toy")
    assert not (tmp_path / "bad").exists()
