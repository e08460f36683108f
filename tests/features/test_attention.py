"""Attention of pictures of any shape, and the patches that hold most of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.features.attention import attention_maps, last_heads, mass_mask
from simdino.features.extract import inputs
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder

PREPROCESS = Preprocess(resize=16, crop=16, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3)

CRATE = {"name": "crate_tiny", "embed_dim": 32, "depth": 1, "num_heads": 2}


def make(name: str = "vit_toy", *, preprocess: Preprocess = PREPROCESS, **words: int) -> Encoder:
    torch.manual_seed(0)
    config = EncoderConfig(**{"name": name, "image_size": preprocess.crop, "patch_size": 4, **words})
    return make_encoder(config, preprocess).eval()


def picture(height: int = 30, width: int = 50) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def slow_mask(values: list[float], mass: float) -> list[bool]:
    """From the weakest on, value by value."""
    total, running, kept = sum(values), 0.0, [False] * len(values)
    for i in sorted(range(len(values)), key=values.__getitem__):
        running += values[i] / total
        kept[i] = running > 1 - mass
    return kept


@pytest.mark.parametrize("mass", [0.1, 0.6, 0.95, 1.0])
def test_the_mask_is_that_of_the_loop(mass: float) -> None:
    attention = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0)).pow(4)
    found = mass_mask(attention, mass)
    for head, mask in zip(attention, found, strict=True):
        assert mask.flatten().tolist() == slow_mask(head.double().flatten().tolist(), mass)
        assert float(head[mask].sum() / head.sum()) >= mass - 1e-6


def test_the_strongest_patch_is_always_kept() -> None:
    attention = torch.full((2, 3), 0.001)
    attention[1, 2] = 1
    assert mass_mask(attention, 0.01).nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("mass", [0.0, -1.0, 1.5, float("nan")])
def test_a_mass_that_is_no_share_is_refused(mass: float) -> None:
    with pytest.raises(InputError, match="--mass"):
        mass_mask(torch.ones(2, 2), mass)


@pytest.mark.parametrize("words", [{}, {"registers": 3}, CRATE], ids=["vit", "registers", "crate"])
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (7, 40)])
def test_a_picture_keeps_its_aspect_and_loses_less_than_a_patch(words: dict, shape: tuple[int, int]) -> None:
    encoder = make(**words)
    maps = attention_maps(encoder, picture(*shape), size=18)
    short, long = sorted(maps.image.shape[1:])
    assert short == 16 and long % 4 == 0  # 18 holds four patches
    exact = min(4 * 16, 16 * max(shape) / min(shape))
    assert exact - 4.5 <= long <= exact + 0.5
    assert maps.heads.shape == (2, maps.image.shape[1] // 4, maps.image.shape[2] // 4)
    expected = last_heads(encoder, inputs(encoder, maps.image[None])).class_attention()[0]
    assert torch.equal(maps.heads, expected) and torch.allclose(maps.mean, expected.mean(0))
    assert (maps.heads.sum((1, 2)) < 1).all()  # the class token and the registers have their share


def test_pictures_are_looked_at_in_twice_the_size_of_training_unless_given() -> None:
    assert attention_maps(make(), picture(40, 40)).image.shape == (3, 32, 32)
    assert attention_maps(make(), picture(40, 40), size=1).image.shape == (3, 4, 4)


@pytest.mark.extra("timm")
@pytest.mark.parametrize(("name", "why"), [
    ("timm:resnet18", "no patches"), ("timm:vit_wee_patch16_reg1_gap_256", "no class token"),
])  # fmt: skip
def test_an_encoder_whose_attention_cannot_be_read_is_refused(name: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        attention_maps(make(name, preprocess=replace(PREPROCESS, crop=32, resize=32)), picture())
