"""Weights for other images: what must stay the same does, and every change is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder
from simdino.models.resize import kernel_for, prepared_for, resize_kernel
from simdino.models.weights import load_encoder, save_encoder

RGB = Preprocess(resize=32, crop=28, channels=3, mean=(0.1, 0.2, 0.6), std=(0.2, 0.2, 0.5))
CONFIG = EncoderConfig(name="vit", embed_dim=48, depth=2, num_heads=3, image_size=28, patch_size=7, mask_token=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "encoder.safetensors"
    save_encoder(make_encoder(CONFIG, RGB), path)
    return path


def changed(path: Path, **sizes: int) -> tuple[Encoder, list[str]]:
    said: list[str] = []
    return load_encoder(path, **sizes, log=said.append), said


def resized(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True)


@pytest.mark.parametrize("size", [7, 9, 14, 16])
def test_a_larger_kernel_gives_an_enlarged_patch_the_token_it_had(size: int) -> None:
    kernel, patch = torch.randn(5, 3, 7, 7), torch.randn(4, 3, 7, 7)
    before = torch.einsum("dcij,ncij->nd", kernel, patch)
    after = torch.einsum("dcij,ncij->nd", resize_kernel(kernel, size), resized(patch, size))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-3)


@pytest.mark.extra("timm")
@pytest.mark.parametrize("size", [4, 8, 14, 24])
def test_kernels_are_resized_as_timm_does(size: int) -> None:
    from timm.layers import resample_patch_embed

    kernel = torch.randn(8, 3, 16, 16)
    torch.testing.assert_close(
        resize_kernel(kernel, size), resample_patch_embed(kernel, [size, size]), rtol=0, atol=1e-3
    )


def test_a_grey_image_and_its_three_channels_have_the_same_tokens() -> None:
    def tokens(kernel: Tensor, images: Tensor) -> Tensor:
        return F.conv2d(images, kernel, stride=4)

    grey, kernel = torch.randn(2, 1, 8, 8), torch.randn(6, 3, 4, 4)
    one = kernel_for(kernel, patch_size=4, channels=1, log=lambda _: None)
    three = kernel_for(one, patch_size=4, channels=3, log=lambda _: None)
    rgb = grey.expand(-1, 3, -1, -1)
    torch.testing.assert_close(tokens(one, grey), tokens(kernel, rgb), rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens(three, rgb), tokens(one, grey), rtol=0, atol=1e-5)


def test_preprocessing_goes_along() -> None:
    assert prepared_for(RGB, crop=56, channels=1) == Preprocess(
        resize=64, crop=56, channels=1, mean=(pytest.approx(0.3),), std=(pytest.approx(0.3),)
    )
    grey = Preprocess(resize=32, crop=28, channels=1, mean=(0.4,), std=(0.2,))
    assert prepared_for(grey, crop=28, channels=3) == Preprocess(
        resize=32, crop=28, channels=3, mean=(0.4,) * 3, std=(0.2,) * 3
    )
    assert prepared_for(RGB, crop=28, channels=4).mean == (pytest.approx(0.3),) * 4


def test_another_image_size_bakes_the_positions_that_were_interpolated(written: Path) -> None:
    encoder, said = changed(written, image_size=42)
    assert encoder.pos_embed.shape == (1, 1 + 36, 48) and encoder.config.image_size == 42
    assert (encoder.preprocess.crop, encoder.preprocess.resize) == (42, 48)
    assert said == ["position embedding resized from 4 x 4 to 6 x 6 patches (antialias)"]
    x = torch.randn(2, 3, 42, 42)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x).patches, load_encoder(written)(x).patches, rtol=0, atol=1e-5)


def test_everything_at_once(written: Path, tmp_path: Path) -> None:
    encoder, said = changed(written, image_size=24, patch_size=8, channels=1)
    assert [line.split()[0] for line in said] == ["patch", "patch", "position"]
    assert encoder.patch_embed.proj.weight.shape == (48, 1, 8, 8) and encoder.pos_embed.shape == (1, 10, 48)
    assert encoder(torch.randn(1, 1, 24, 24)).grid == (3, 3)
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    again, said = changed(tmp_path)
    assert said == [] and again.config == encoder.config and again.preprocess == encoder.preprocess


def test_nothing_asked_for_is_nothing_changed(written: Path) -> None:
    encoder, said = changed(written, image_size=28, patch_size=7, channels=3)
    assert said == [] and encoder.config == CONFIG and encoder.preprocess == RGB
    plain = load_encoder(written).state_dict()
    assert all(torch.equal(tensor, plain[key]) for key, tensor in encoder.state_dict().items())


@pytest.mark.parametrize(
    "config", [replace(CONFIG, patch_embed="dual_norm"), replace(CONFIG, name="crate_nano", embed_dim=None)]
)
def test_a_stem_of_another_kind_takes_other_image_sizes_only(config: EncoderConfig, tmp_path: Path) -> None:
    save_encoder(make_encoder(config, RGB), tmp_path / "encoder.safetensors")
    encoder, said = changed(tmp_path, image_size=42)
    assert encoder.pos_embed.shape[1] == 1 + 36 and len(said) == 1
    with torch.no_grad():
        x = torch.randn(2, 3, 42, 42)
        torch.testing.assert_close(encoder(x).cls, load_encoder(tmp_path)(x).cls, rtol=0, atol=1e-5)
    for other in ({"patch_size": 14}, {"channels": 1}):
        with pytest.raises(InputError, match="fit patches of 7 pixels and 3 channels only"):
            load_encoder(tmp_path, **other)


def test_what_cannot_be_is_said(written: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"28 pixels do not divide into patches of 8"):
        load_encoder(written, patch_size=8)
    for name in ("image_size", "patch_size", "channels"):
        with pytest.raises(InputError, match=f"{name} 0 must be 1 or more"):
            load_encoder(written, **{name: 0})


@pytest.mark.extra("timm")
def test_a_file_of_timms_keeps_its_size(tmp_path: Path) -> None:
    save_encoder(make_encoder(EncoderConfig(name="timm:resnet18", image_size=32), RGB), tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="holds timm:resnet18, whose weights fit images of 32 pixels and 3 channels"):
        load_encoder(tmp_path / "x.safetensors", image_size=64)
