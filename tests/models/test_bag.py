"""A bag of channels: each channel alone through one encoder, features joined."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import simdino as sd
from simdino.assembly import step_bytes
from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.data.survey import DatasetStatistics
from simdino.evaluate.classification.training import set_drop_path
from simdino.methods import make_loss
from simdino.models.bag import BagOfChannels
from simdino.models.catalogue import make_encoder
from simdino.models.groups import parameter_groups
from simdino.models.projector import Embedder, Projector
from simdino.models.weights import load_encoder, save_encoder
from simdino.options import Options
from simdino.recipes import resolve

CHANNELS = 5
MEANS = (0.1, 0.2, 0.3, 0.4, 0.5)


PHOTOS = DatasetStatistics(
    images=100, read=100, broken={}, channels=3, short_side=28, long_side=28, smallest=28, mean=(0.5,) * 3,
    std=(0.2,) * 3, labels=0, class_counts={},
)  # fmt: skip


def bag(name: str = "bag:conv_pico", *, channels: int = CHANNELS, **options: Any) -> BagOfChannels:
    torch.manual_seed(0)
    about = Preprocess(resize=16, crop=16, channels=channels, mean=MEANS[:channels], std=(0.2,) * channels)
    made = make_encoder(EncoderConfig(name=name, image_size=16, patch_size=4, drop_path=0.0, **options), about)
    assert isinstance(made, BagOfChannels)
    return made.eval()


def images(count: int = 3, channels: int = CHANNELS) -> Tensor:
    return torch.randn(count, channels, 16, 16, generator=torch.Generator().manual_seed(1))


def by_hand(made: BagOfChannels, batch: Tensor, part: str) -> Tensor:
    """One channel of one image after the other."""
    rows = [
        torch.cat([getattr(made.encoder(image[c][None, None]), part)[0] for c in range(len(image))], -1)
        for image in batch
    ]
    return torch.stack(rows)


@pytest.mark.parametrize(("name", "registers"), [("bag:conv_pico", 0), ("bag:vit_pico", 2)])
def test_each_channel_is_encoded_alone_and_features_are_joined(name: str, registers: int) -> None:
    made, batch = bag(name, registers=registers), images()
    with torch.no_grad():
        tokens = made(batch)
        assert tokens.cls.shape == (3, made.embed_dim) and made.embed_dim == CHANNELS * made.encoder.embed_dim
        for part in ("cls", "patches", *(["registers"] if registers else [])):
            torch.testing.assert_close(getattr(tokens, part), by_hand(made, batch, part))
        assert made(batch, patches=False).patches is None
        (last,) = made.last_blocks(batch, 1)
        torch.testing.assert_close(last.cls, tokens.cls)


def test_all_channels_of_an_image_have_its_mask_and_its_dropped_branches() -> None:
    made, batch = bag("bag:vit_pico", mask_token=True), images(2)
    other, masks = batch.clone(), torch.zeros(2, 16, dtype=torch.bool)
    masks[1, 5], other[1, :, 4:8, 4:8] = True, 9.0
    with torch.no_grad():
        torch.testing.assert_close(made(batch, masks=masks).cls, made(other, masks=masks).cls)
        assert not torch.equal(made(batch).cls[1], made(other).cls[1])
    dropping = bag("bag:vit_pico")
    dropping.encoder.rates = (0.0, *[0.5] * (dropping.depth - 1))
    same = images(1).mean(1, keepdim=True).expand(4, CHANNELS, -1, -1)
    with torch.no_grad():
        parts = dropping(same, keys=torch.arange(4) * 7919).cls.unflatten(1, (CHANNELS, -1))
    torch.testing.assert_close(parts, parts[:, :1].expand_as(parts))
    assert len({tuple(row) for row in parts[:, 0].tolist()}) > 1


def test_the_weights_serve_any_number_of_channels(tmp_path: Path) -> None:
    made, path = bag(), tmp_path / "bag.safetensors"
    save_encoder(made, path)
    again, more = load_encoder(path), load_encoder(path, channels=7)
    batch = images(2, 7)
    with torch.no_grad():
        torch.testing.assert_close(again(batch[:, :CHANNELS]).cls, made(batch[:, :CHANNELS]).cls)
        torch.testing.assert_close(more(batch).cls[:, : made.embed_dim], made(batch[:, :CHANNELS]).cls)
    assert again.preprocess == made.preprocess and again.config == made.config
    assert (more.in_chans, more.embed_dim, more.preprocess.channels) == (7, 7 * 128, 7)
    assert more.preprocess.mean == pytest.approx((0.3,) * 7)
    with pytest.raises(ValueError, match="images have 5 channels, expected 7"):
        more(images())
    with torch.no_grad():
        assert load_encoder(path, image_size=24)(torch.zeros(1, CHANNELS, 24, 24)).grid == (6, 6)


def test_weights_for_colours_become_a_bag(tmp_path: Path) -> None:
    plain, path = bag("bag:vit_pico", channels=1), tmp_path / "rgb.safetensors"
    about = Preprocess(resize=16, crop=16, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2,) * 3)
    torch.manual_seed(3)
    colours = make_encoder(replace(plain.encoder.config, drop_path=0.0), about)
    save_encoder(colours, path)
    found = load_encoder(f"bag:{path}", channels=2, log=lambda _: None)
    batch = images(2, 2)
    with torch.no_grad():
        grey = [colours.eval()(batch[:, [c] * 3]).cls for c in range(2)]  # a channel three times is grey
        torch.testing.assert_close(found(batch).cls, torch.cat(grey, 1), rtol=1e-4, atol=1e-5)
    assert found.preprocess.mean == pytest.approx((0.5, 0.5))


def test_a_bag_of_a_bag_is_that_bag(tmp_path: Path) -> None:
    save_encoder(bag(), tmp_path / "bag.safetensors")
    found = load_encoder(f"bag:{tmp_path / 'bag.safetensors'}", channels=2, log=lambda _: None)
    assert found.config.name == "bag:conv_pico" and (found.in_chans, found.embed_dim) == (2, 256)


def test_its_layers_patch_embedding_and_rates_are_the_encoders() -> None:
    made = bag("bag:vit_pico")
    for name, _ in made.encoder.named_parameters():
        assert made.layer_of(f"encoder.{name}") == made.encoder.layer_of(name)
    set_drop_path(made, 0.4, log=lambda _: None)
    assert made.rates == made.encoder.rates and max(made.rates or ()) == pytest.approx(0.4)
    model = Embedder(made, Projector(embed_dim=made.embed_dim, hidden_dim=8, out_dim=4))
    slow = [group for group in parameter_groups(model, patch_embed_lr=0.5) if group["lr_scale"] == 0.5]
    names = {id(p): name for name, p in made.encoder.named_parameters()}
    assert {names[id(p)] for group in slow for p in group["params"]} == {
        "patch_embed.proj.weight", "patch_embed.proj.bias"
    }  # fmt: skip


def test_sizes_of_a_run_count_every_channel() -> None:
    statistics = replace(PHOTOS, channels=5, mean=MEANS, std=(0.2,) * 5)
    plain, joined = (
        resolve("images", Options(encoder=name), statistics=statistics) for name in ("vit_nano", "bag:vit_nano")
    )
    assert make_loss(joined).rank == 5 * 192 + 1 and make_loss(plain).rank == 193
    assert step_bytes(joined)["activations"] == 5 * step_bytes(plain)["activations"]
    bare = resolve("images", Options({"projector.layers": 0}, encoder="bag:vit_nano"), statistics=statistics)
    assert make_loss(bare).dim == 5 * 192


@pytest.mark.parametrize("name", ["bag:conv_pcio", "bag:timm:resnet18", "bag:"])
def test_a_bag_is_of_our_encoders(name: str) -> None:
    with pytest.raises(InputError, match=f"unknown encoder '{name}': bag: goes before one of vit_"):
        bag(name)


@pytest.mark.slow
def test_it_trains_embeds_and_starts_from_colours(tmp_path: Path) -> None:
    data = tmp_path / "images"
    data.mkdir()
    draw = np.random.default_rng(0)
    for i in range(24):
        np.save(data / f"{i}.npy", draw.integers(0, 4000, (2, 20, 20), dtype=np.uint16))
    run = sd.pretrain(str(data), tmp_path / "run", encoder="bag:conv_pico", steps=2, batch=8, log=lambda _: None)
    vectors = sd.embed(run.encoder, str(data))
    assert vectors.vectors.shape == (24, 2 * 128)
    alone = sd.load_encoder(tmp_path / "run").embed(data / "3.npy")
    torch.testing.assert_close(vectors.vectors[vectors.names.index("3.npy")], alone[0], rtol=1e-4, atol=1e-5)
    sd.pretrain("digits", tmp_path / "digits", steps=2, batch=8, log=lambda _: None)
    start = f"bag:{tmp_path / 'digits'}"
    more = sd.pretrain(str(data), tmp_path / "more", init=start, steps=2, batch=8, log=lambda _: None)
    assert more.encoder.config.name == "bag:conv_pico" and more.encoder.in_chans == 2
    masked = sd.pretrain(
        str(data), tmp_path / "masked", init=start, method="simdinov2", steps=2, batch=8, log=lambda _: None
    )
    bare = sd.pretrain(
        str(data), tmp_path / "bare", settings={"projector.layers": 0}, init=str(masked.folder), steps=2, batch=8,
        log=lambda _: None,
    )  # fmt: skip
    assert masked.encoder.config.mask_token and bare.encoder.config.mask_token
    assert resolve("images", Options(init=start), statistics=PHOTOS).data.channels == 3
