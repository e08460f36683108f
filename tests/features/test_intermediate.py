"""What is read from inside an encoder equals what the encoder computes, eagerly and from the formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from encoders import made
from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.features.attention import last_heads
from simdino.models.adapters import TimmEncoder
from simdino.models.catalogue import make_encoder
from simdino.models.crate import CRATE
from simdino.models.encoder import Encoder
from simdino.models.vit import ViT

pytestmark = pytest.mark.slow

TIMM = pytest.mark.extra("timm")
SIZES = {"image_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
PREPROCESS = Preprocess(resize=32, crop=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)


def named(encoder: Encoder) -> Encoder:
    encoder.config, encoder.preprocess = EncoderConfig(name="here"), PREPROCESS
    return encoder.eval()


def vit(**words: int) -> Encoder:
    torch.manual_seed(0)
    return named(made(ViT, **SIZES, **words))


def timm_vit(name: str = "vit_tiny_patch16_224", size: int = 32) -> Encoder:
    torch.manual_seed(0)
    return named(TimmEncoder(name, image_size=size, in_chans=3))


def images(height: int = 32, width: int = 48) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def stored_attention(encoder: Encoder, x: Tensor) -> Tensor:
    """The last block's whole attention, from the query, key and value weights and the formula, in float64:
    [N, K, T, T]."""
    inputs: list[Tensor] = []
    owner = encoder.model if isinstance(encoder, TimmEncoder) else encoder
    block = owner.blocks[-1]
    hook = block.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    encoder(x)
    hook.remove()
    tokens = block.norm1(inputs[0]).double()
    if isinstance(encoder, CRATE):
        q = k = tokens @ block.attn.subspaces.weight.double().T
        heads = block.attn.num_heads
    else:
        heads = block.attn.num_heads
        q, k, _ = (tokens @ block.attn.qkv.weight.double().T + block.attn.qkv.bias.double()).chunk(3, -1)
    rows = []
    for head in range(heads):
        part = slice(head * q.shape[-1] // heads, (head + 1) * q.shape[-1] // heads)
        scores = torch.einsum("nqd,nkd->nqk", q[..., part], k[..., part]) / (q.shape[-1] / heads) ** 0.5
        rows.append(scores.exp() / scores.exp().sum(-1, keepdim=True))
    return torch.stack(rows, 1)


@pytest.mark.parametrize(
    ("make", "prefix"),
    [
        (vit, 1),
        (lambda: vit(registers=4), 5),
        (lambda: named(made(CRATE, **SIZES)), 1),
        pytest.param(timm_vit, 1, marks=TIMM),
        pytest.param(lambda: timm_vit("vit_small_patch14_reg4_dinov2", 28), 5, marks=TIMM),
    ],
    ids=["vit", "registers", "crate", "timm", "timm with registers"],
)
@torch.no_grad()
def test_class_attention_is_the_softmax_written_out(make, prefix: int) -> None:
    encoder = make()
    patch = encoder.patch_size
    x = images(2 * patch, 3 * patch)
    expected = stored_attention(encoder, x)[:, :, 0, prefix:]
    attention = last_heads(encoder, x).class_attention()
    assert attention.shape == (2, expected.shape[1], 2, 3)
    torch.testing.assert_close(attention.flatten(2).double(), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_keys_are_those_of_the_qkv_layer() -> None:
    encoder = vit(registers=2)
    seen: list[Tensor] = []
    hook = encoder.blocks[-1].attn.qkv.register_forward_hook(lambda _, __, y: seen.append(y))  # pyright: ignore
    encoder(images())
    hook.remove()
    torch.testing.assert_close(last_heads(encoder, images()).patch_keys(), seen[0][:, 3:, 48:96])


@pytest.mark.parametrize(
    "make", [lambda: vit(registers=2), lambda: named(made(CRATE, **SIZES)), pytest.param(timm_vit, marks=TIMM)]
)
@torch.no_grad()
def test_the_last_of_the_last_blocks_is_the_encoder_itself(make) -> None:
    encoder = make()
    x = images()
    blocks, whole = encoder.last_blocks(x, 3), encoder(x)
    assert len(blocks) == 3
    torch.testing.assert_close(blocks[-1].cls, whole.cls)
    torch.testing.assert_close(blocks[-1].patches, whole.patches)
    assert blocks[-1].grid == whole.grid
    assert not torch.allclose(blocks[0].cls, blocks[1].cls)


@torch.no_grad()
def test_earlier_blocks_are_those_of_a_shorter_encoder() -> None:
    encoder = vit()
    second = encoder.last_blocks(images(), 2)[0]
    del encoder.blocks[-1]  # pyright: ignore[reportIndexIssue, reportOperatorIssue]
    torch.testing.assert_close(second.cls, encoder(images()).cls)


@pytest.mark.extra("timm")
def test_an_encoder_without_what_is_asked_for_says_so_in_one_line() -> None:
    convolutional = named(TimmEncoder("resnet10t", image_size=32, in_chans=3))
    with pytest.raises(InputError, match="cannot be read"):
        last_heads(convolutional, images())
    with pytest.raises(InputError, match="ask for 1"):
        convolutional.last_blocks(images(), 4)
    with pytest.raises(InputError, match="depth 4"):
        vit().last_blocks(images(), 5)
    assert len(convolutional.last_blocks(images(), 1)) == 1


@pytest.mark.extra("timm")
@pytest.mark.parametrize("name", [
    "cait_xxs24_224", "convit_tiny", "deit_tiny_distilled_patch16_224", "vit_wee_patch16_reg1_gap_256",
])  # fmt: skip
def test_class_tokens_on_the_way_are_those_of_models_that_put_them_out(name: str) -> None:
    encoder = timm_vit(name)
    with pytest.raises(InputError, match="has no 2 last blocks with a class token each"):
        encoder.last_blocks(images(32, 32), 2)
    assert torch.equal(encoder.last_blocks(images(32, 32), 1)[0].cls, encoder(images(32, 32)).cls)


@pytest.mark.extra("timm")
def test_attention_whose_biases_lie_elsewhere_is_not_read() -> None:
    with pytest.raises(InputError, match="cannot be read"):
        last_heads(timm_vit("beit_base_patch16_224"), images(32, 32))


def test_looking_inside_leaves_no_hook_behind() -> None:
    encoder = make_encoder(EncoderConfig(name="vit_nano", image_size=32, patch_size=8, drop_path=0.0), PREPROCESS)
    last_heads(encoder, images())
    encoder.last_blocks(images(), 2)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in encoder.modules())
