"""The ConvNets against a loop over places, and what their options promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from encoders import made
from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.exports.format import plain_vit
from simdino.features.attention import attention_maps, last_heads
from simdino.models.catalogue import make_encoder
from simdino.models.conv import ENCODERS as CONVS
from simdino.models.conv import GROUP, ConvNet, Hybrid, means_of_quarters
from simdino.models.groups import parameter_groups
from simdino.models.vit import ViT
from simdino.models.weights import load_encoder, save_encoder
from simdino.rng import sample_keys

SMALL = {"image_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 3}
CONVNETS = [name for name in CONVS if name.startswith("conv")]
HYBRIDS = [name for name in CONVS if name.startswith("hybrid")]
PREPROCESS = Preprocess(resize=18, crop=16, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3)


def random_net(*, seed: int = 0, **options: Any) -> Any:
    """A small ConvNet in float64 in which no parameter is zero or one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = made(ConvNet, **SMALL | options).double()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return net


def images(count: int = 3, side: int = 16) -> Tensor:
    return torch.randn(count, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def convolved(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """A convolution [C, h, w] -> [O, h/s, w/s] with a border of zeros, one place after another."""
    size = weight.shape[-1]
    edge = size // 2 if size < 4 else 0
    padded = torch.zeros(x.shape[0], x.shape[1] + 2 * edge, x.shape[2] + 2 * edge, dtype=x.dtype)
    padded[:, edge : edge + x.shape[1], edge : edge + x.shape[2]] = x
    out = torch.zeros(len(weight), x.shape[1] // stride, x.shape[2] // stride, dtype=x.dtype)
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            window = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = (weight * window).sum((1, 2, 3))
    return out


def normalised(x: Tensor, norm: torch.nn.GroupNorm) -> Tensor:
    """Each group of channels less its mean, by its standard deviation, then ReLU."""
    parts = []
    for part in x.split(GROUP):
        parts.append((part - part.mean()) / (part.var(correction=0) + 1e-5).sqrt())
    return (torch.cat(parts) * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp_min(0)


def halved(x: Tensor) -> Tensor:
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def by_hand(net: Any, image: Tensor) -> Tensor:
    """The map of the last stage, [D, h, w]."""
    x = convolved(image, net.patch_embed.weight, net.patch_embed.stride[0])
    for block in net.blocks:
        y = normalised(x, block.norm1)
        branch = convolved(convolved_in(block, y), block.conv2.weight, 1)
        if block.shortcut is not None:
            x = torch.einsum("oc,chw->ohw", block.shortcut.weight[:, :, 0, 0], halved(y))
        x = x + branch
    return normalised(x, net.norm)


def convolved_in(block: Any, y: Tensor) -> Tensor:
    return normalised(convolved(y, block.conv1.weight, block.stride), block.norm2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patch_size": 8},
        {"patch_size": 16},
        {"depth": 6},
        {"pool": "quarters"},
        {"patch_size": 16, "pool": "quarters"},
    ],
)
def test_it_is_the_formula_place_by_place(options: dict[str, Any]) -> None:
    net, batch = random_net(**options), images()
    with torch.no_grad():
        tokens = net(batch)
        maps = torch.stack([by_hand(net, image) for image in batch])
    assert tokens.grid == tuple(maps.shape[2:])
    torch.testing.assert_close(tokens.patches, maps.flatten(2).mT, rtol=1e-9, atol=1e-12)
    weight, bias = net.proj.weight, net.proj.bias
    quarters = F.adaptive_avg_pool2d(maps, 2)  # [N, D, 2, 2]
    means = maps.mean((2, 3))
    if options.get("pool") == "quarters":
        means = torch.cat([quarters[:, :, i, j] for i in (0, 1) for j in (0, 1)], 1)
    torch.testing.assert_close(tokens.cls, means @ weight.T + bias, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 5), (1, 4), (7, 7)])
def test_quarters_are_those_of_adaptive_pooling(shape: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *shape, dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(maps, 2).permute(0, 2, 3, 1).flatten(1)  # a quarter after the other
    torch.testing.assert_close(means_of_quarters(maps), expected)


def test_an_image_has_the_same_tokens_in_every_batch_and_at_every_size() -> None:
    net, batch = random_net(), images(4)
    with torch.no_grad():
        whole = net(batch).cls
        torch.testing.assert_close(torch.cat([net(image[None]).cls for image in batch]), whole)
        torch.testing.assert_close(net(batch, patches=False).cls, whole)
        assert net(images(2, side=24)).grid == (6, 6)
    assert not net.batch_norm


def masked() -> tuple[Tensor, Tensor, Tensor]:
    """Two images, the same with other pixels in a patch of one and in the first row of patches of the other, and the
    masks of these patches."""
    batch = images(2)
    masks, other = torch.zeros(2, 16, dtype=torch.bool), batch.clone()
    masks[0, 5] = masks[1, :4] = True
    other[0, :, 4:8, 4:8] = 7.0
    other[1, :, :4] = -3.0
    return batch, other, masks


def test_what_a_mask_hides_is_not_seen() -> None:
    net, (batch, other, masks) = random_net(mask_token=True), masked()
    with torch.no_grad():
        torch.testing.assert_close(net(batch, masks=masks).patches, net(other, masks=masks).patches, rtol=0, atol=0)
        assert not torch.equal(net(batch).patches, net(other).patches)
        painted = batch.clone()
        painted[0, :, 4:8, 4:8] = painted[1, :, :4] = 0.0
        net.mask_token.zero_()
        torch.testing.assert_close(net(batch, masks=masks).patches, net(painted).patches)


def test_drop_path_is_a_function_of_the_key_of_an_image() -> None:
    net, batch = random_net(drop_path=0.5, depth=6, embed_dim=128), images(8)
    keys = torch.as_tensor(sample_keys(0, 0, torch.arange(8).numpy()).astype("int64"))
    with torch.no_grad():
        dropped = net(batch, keys=keys).cls
        alone = torch.cat([net(batch[i : i + 1], keys=keys[i : i + 1]).cls for i in range(8)])
        torch.testing.assert_close(dropped, alone)
        assert not torch.allclose(dropped, net(batch).cls)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 96}, "width 96 is not a multiple of 64"), ({"embed_dim": None}, "width 0 is not"),
        ({"depth": 4}, "depth 4 is not divisible by the 3 stages"), ({"depth": None}, "depth 0 is not divisible"),
        ({"patch_size": 2}, "patch size 2 must be one of"), ({"patch_size": 32}, "patch size 32 must be one of"),
        ({"image_size": 18}, "image size 18 is not divisible"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(ConvNet, **SMALL | options)


@pytest.mark.parametrize(("size", "side"), [(8, 4), (28, 4), (32, 8), (64, 16), (224, 16)])
def test_patches_follow_the_size_of_the_images(size: int, side: int) -> None:
    assert CONVS["conv_pico"].patch_for(size, 2) == side


@pytest.mark.parametrize("name", CONVS)
def test_the_memory_that_is_reckoned_is_less_than_that_of_its_weights(name: str) -> None:
    kind = CONVS[name]
    encoder = make_encoder(EncoderConfig(name=name, image_size=64, patch_size=16, drop_path=0.0), PREPROCESS)
    assert kind.embed_dim is not None and kind.depth is not None
    reckoned = kind.depth * kind.block_size * kind.embed_dim**2
    assert 0.5 < reckoned / sum(parameter.numel() for parameter in encoder.parameters()) < 1


def test_the_patch_embedding_has_the_learning_rate_of_its_setting() -> None:
    model = torch.nn.ModuleDict({"encoder": random_net()})
    groups = parameter_groups(model, patch_embed_lr=0.2, layer_decay=0.5)
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    net: Any = model["encoder"]
    assert scales[id(net.patch_embed.weight)] == 0.2 * 0.5**4
    assert [scales[id(block.conv1.weight)] for block in net.blocks] == [0.125, 0.25, 0.5]
    assert scales[id(net.norm.weight)] == 1


def test_images_of_other_sizes_than_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="images of 16 x 18 pixels"):
        random_net()(torch.zeros(1, 3, 16, 18, dtype=torch.float64))


@pytest.mark.parametrize("name", CONVS)
def test_it_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    encoder = make_encoder(EncoderConfig(name=name, image_size=16, patch_size=16, drop_path=0.0), PREPROCESS).eval()
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    loaded = load_encoder(tmp_path / "encoder.safetensors").eval()
    batch = images().float()
    with torch.no_grad():
        assert torch.equal(loaded(batch).cls, encoder(batch).cls)
        larger = load_encoder(tmp_path / "encoder.safetensors", image_size=32)
        assert larger.preprocess.crop == 32 and larger(batch).grid == (1, 1)
        if name in CONVNETS:
            assert torch.equal(larger(batch).cls, encoder(batch).cls)
    if name not in CONVNETS:
        return
    with pytest.raises(InputError, match="fit patches of 16 pixels and 3 channels only: give no patch_size or"):
        load_encoder(tmp_path / "encoder.safetensors", patch_size=32)


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("name", ["conv_pico", "hybrid_nano"])
def test_other_channels_that_are_alike_give_the_same_tokens(name: str, channels: int, tmp_path: Path) -> None:
    config = EncoderConfig(name=name, image_size=16, patch_size=4, drop_path=0.0, mask_token=True)
    encoder = make_encoder(config, PREPROCESS).eval()
    if name == "conv_pico":
        torch.nn.init.normal_(encoder.get_parameter("mask_token"))
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    other = load_encoder(tmp_path / "encoder.safetensors", channels=channels).eval()
    assert other.in_chans == other.preprocess.channels == channels == len(other.preprocess.mean)
    grey = images().float()[:, :1]
    with torch.no_grad():
        same = encoder(grey.expand(-1, 3, -1, -1)), other(grey.expand(-1, channels, -1, -1))
    torch.testing.assert_close(same[0].patches, same[1].patches, atol=1e-4, rtol=1e-4)
    assert other.get_parameter("mask_token").shape[1] == (channels if name == "conv_pico" else other.embed_dim)


def test_where_a_place_is_like_the_mean_stands_for_attention() -> None:
    net, batch = random_net(), images(2)
    heads = last_heads(net, batch)
    maps = torch.stack([by_hand(net, image) for image in batch])
    mean = maps.mean((2, 3), keepdim=True)
    cosines = F.cosine_similarity(maps, mean.expand_as(maps))
    expected = (cosines / 0.07).exp()
    expected = expected / (expected.sum((1, 2), keepdim=True) + torch.e ** (1 / 0.07))  # the class token's own share
    torch.testing.assert_close(heads.class_attention()[:, 0], expected, rtol=1e-6, atol=1e-9)
    keys = F.normalize(heads.patch_keys(), dim=-1)
    torch.testing.assert_close(keys, F.normalize(maps.flatten(2).mT, dim=-1), rtol=1e-6, atol=1e-9)
    assert attention_maps_of(net).shape == (1, 8, 8)


def attention_maps_of(net: Any) -> Tensor:
    """Of a picture of the default size, twice that of training."""
    net = net.float()
    net.preprocess, net.config = replace(PREPROCESS, resize=16), EncoderConfig(name="conv_pico", image_size=16)
    return attention_maps(net, torch.zeros(3, 40, 40, dtype=torch.uint8)).heads


# --- hybrids -------------------------------------------------------------------------------------------------------


def random_hybrid(**options: Any) -> Any:
    """A small hybrid in float64 in which no parameter is zero or one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = made(Hybrid, **SMALL | {"num_heads": 4, "depth": 2} | options).double()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return net


def test_a_hybrid_is_a_transformer_on_the_places_of_a_convnet() -> None:
    hybrid, batch = random_hybrid(registers=2), images(2, side=8)
    plain = made(ViT, **SMALL | {"num_heads": 4, "depth": 2, "registers": 2}).double()
    weights = {name: value for name, value in hybrid.state_dict().items() if not name.startswith("patch_embed.")}
    plain.load_state_dict({**plain.state_dict(), **weights})
    net = random_net()
    net.proj = torch.nn.Identity()
    net.load_state_dict(
        {name[16:]: v for name, v in hybrid.state_dict().items() if name.startswith("patch_embed.net.")}
    )
    plain.patch_embed = torch.nn.Module()
    with torch.no_grad():
        plain.patch_embed.forward = lambda x: torch.stack([by_hand(net, one).flatten(1).mT for one in x])
        ours, expected = hybrid(batch), plain(batch)
        alone = hybrid(batch, patches=False).cls
    assert ours.grid == (2, 2)
    for part in ("cls", "patches", "registers"):
        torch.testing.assert_close(getattr(ours, part), getattr(expected, part), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(alone, expected.cls, rtol=1e-9, atol=1e-9)


def test_what_a_mask_hides_from_a_hybrid_is_not_seen() -> None:
    net, (batch, other, masks) = random_hybrid(mask_token=True), masked()
    with torch.no_grad():
        seen = net(batch, masks=masks)
        torch.testing.assert_close(seen.patches, net(other, masks=masks).patches, rtol=0, atol=0)
        assert not torch.equal(net(batch).patches, net(other).patches)
        net.mask_token.add_(1)
        assert not torch.equal(net(batch, masks=masks).cls, seen.cls)


def test_a_hybrid_has_attention_and_a_class_token() -> None:
    net, batch = random_hybrid(), images(2)
    attention, projection = net.last_attention()
    queries, keys = projection(torch.randn(2, 17, 64, dtype=torch.float64))
    assert queries.shape == keys.shape == (2, 4, 17, 16)
    assert attention is net.blocks[-1].attn and net.has_class_token
    assert len(net.last_blocks(batch, 2)) == 2


@pytest.mark.parametrize("to", ["hf", "timm"])
def test_other_libraries_hold_no_hybrid(to: str, tmp_path: Path) -> None:
    encoder = make_encoder(EncoderConfig(name="hybrid_nano", image_size=16, patch_size=4, drop_path=0.0), PREPROCESS)
    with pytest.raises(InputError, match=f"--to {to} holds no hybrid_nano"):
        plain_vit(encoder, name=to)
