"""The key maps, against the models of timm and of transformers themselves: the same weights, the same tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from encoders import made
from simdino.models.layouts import bare, from_hf, from_timm, to_hf, to_timm
from simdino.models.vit import ENCODERS as VITS
from simdino.models.vit import ViT
from simdino.models.weights import load_encoder

pytestmark = pytest.mark.slow

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3}
SIDES = [(70, 70), (98, 98), (70, 112)]  # native, larger, oblong
BARE, REGISTERS, SWIGLU = {}, {"registers": 4}, {"registers": 4, "ffn": "swiglu"}


def stirred(module: nn.Module, seed: int = 0) -> Any:
    """No parameter zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def our_vit(**options: Any) -> ViT:
    return stirred(
        made(ViT, **{"image_size": 70, "patch_size": 14, "layer_scale": 1.0, "mask_token": True, **TINY, **options})
    )


def pictures(side: tuple[int, int]) -> Tensor:
    return torch.randn(2, 3, *side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def our_tokens(vit: nn.Module, x: Tensor) -> Tensor:
    """Class token, registers, patches: [N, 1 + S + P, D]."""
    tokens = vit(x)
    return torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key, tensor in a.items():
        assert torch.equal(tensor, b[key]), key


# --- timm ---------------------------------------------------------------------------------------------------------


def timm_vit(*, registers: int = 0, ffn: str = "mlp", layer_scale: float | None = 1.0) -> Any:
    """As timm builds vit_*_patch14_dinov2, vit_*_patch14_reg4_dinov2 and the ViT-g of the latter."""
    from timm.layers import SwiGLUPacked
    from timm.models.vision_transformer import VisionTransformer

    gated = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 2 * 128 / 48} if ffn == "swiglu" else {}
    return stirred(
        VisionTransformer(
            img_size=70, patch_size=14, embed_dim=48, depth=2, num_heads=3, init_values=layer_scale, num_classes=0,
            reg_tokens=registers, no_embed_class=registers > 0, dynamic_img_size=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6), **gated,
        ),
        seed=2,
    )  # fmt: skip


TIMM_KINDS = pytest.mark.parametrize(
    "kind", [BARE, {"layer_scale": None}, REGISTERS, SWIGLU], ids=["dinov2", "dino", "registers", "swiglu"]
)


@pytest.mark.extra("timm")
@TIMM_KINDS
@pytest.mark.parametrize("side", SIDES)
def test_timm_to_ours_and_ours_to_timm(kind: dict[str, Any], side: tuple[int, int]) -> None:
    theirs, ours = timm_vit(**kind), our_vit(**kind, mask_token=False)
    ours.load_state_dict(from_timm(theirs.state_dict()))
    with torch.no_grad():
        close(our_tokens(ours, pictures(side)), theirs.forward_features(pictures(side)))

    ours = our_vit(**kind)
    theirs.load_state_dict(to_timm(ours.state_dict()))
    with torch.no_grad():
        close(our_tokens(ours, pictures(side)), theirs.forward_features(pictures(side)))


@pytest.mark.extra("timm")
@TIMM_KINDS
def test_timms_weights_come_back_from_us_as_they_were(kind: dict[str, Any]) -> None:
    theirs = timm_vit(**kind).state_dict()
    same(to_timm(from_timm(theirs)), theirs)


@pytest.mark.extra("timm")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_small_patch16_224.dino", {"image_size": 224, "patch_size": 16}),
        ("vit_small_patch14_dinov2", {"image_size": 518, "patch_size": 14, "layer_scale": 1.0}),
        ("vit_small_patch14_reg4_dinov2", {"image_size": 518, "patch_size": 14, "layer_scale": 1.0, "registers": 4}),
    ],
)
def test_the_small_vits_of_timm_at_their_own_size(name: str, options: dict[str, Any]) -> None:
    import timm

    theirs = timm.create_model(name, pretrained=False, num_classes=0).eval()
    ours = made(ViT, **VITS["vit_small"].shape, **options).eval()
    ours.load_state_dict(from_timm(theirs.state_dict()))
    x = pictures((options["image_size"],) * 2)[:1]
    with torch.no_grad():
        close(our_tokens(ours, x), theirs.forward_features(x))


# --- transformers -------------------------------------------------------------------------------------------------


def hf_model(*, registers: int = 0, ffn: str = "mlp") -> Any:
    import transformers

    options = {
        "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "mlp_ratio": 4, "image_size": 70,
        "patch_size": 14, "use_swiglu_ffn": ffn == "swiglu", "use_mask_token": True,
    }  # fmt: skip
    if registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=registers, **options)
        return stirred(transformers.Dinov2WithRegistersModel(config), seed=3)
    return stirred(transformers.Dinov2Model(transformers.Dinov2Config(**options)), seed=3)


HF_KINDS = pytest.mark.parametrize(
    "kind", [BARE, {"ffn": "swiglu"}, REGISTERS, SWIGLU], ids=["plain", "plain swiglu", "registers", "registers swiglu"]
)


@pytest.mark.extra("transformers")
@HF_KINDS
def test_a_folder_of_transformers_loads(kind: dict[str, Any], tmp_path: Path) -> None:
    theirs = hf_model(**kind)
    theirs.save_pretrained(tmp_path)
    ours = load_encoder(tmp_path)
    assert ours.config.positions == ("antialias" if "registers" in kind else "plain")
    for side in SIDES:
        with torch.no_grad():
            close(our_tokens(ours, pictures(side)), theirs(pictures(side)).last_hidden_state)


@pytest.mark.extra("transformers")
@HF_KINDS
@pytest.mark.parametrize("layer_scale", [None, 0.5])
def test_transformers_loads_our_file(kind: dict[str, Any], layer_scale: float | None, tmp_path: Path) -> None:
    theirs = hf_model(**kind)
    theirs.config.save_pretrained(tmp_path)
    rule = "antialias" if "registers" in kind else "plain"
    ours = our_vit(**kind, layer_scale=layer_scale, mask_token=False, positions=rule)
    save_file({k: t.contiguous() for k, t in to_hf(ours.state_dict()).items()}, tmp_path / "model.safetensors")
    loaded, about = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(about[part] for part in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for side in SIDES:
        with torch.no_grad():
            close(our_tokens(ours, pictures(side)), loaded.eval()(pictures(side)).last_hidden_state)


@pytest.mark.extra("transformers")
@HF_KINDS
def test_the_files_of_transformers_come_back_from_us_as_they_were(kind: dict[str, Any], tmp_path: Path) -> None:
    hf_model(**kind).save_pretrained(tmp_path)
    theirs = load_file(tmp_path / "model.safetensors")
    same(to_hf(from_hf(theirs)), theirs)


def test_the_file_of_a_classifier_loses_it_and_its_prefix() -> None:
    ours = dict(our_vit().state_dict())
    theirs = {f"dinov2.{key}": tensor for key, tensor in to_hf(ours).items()} | {"classifier.weight": torch.zeros(1)}
    same(from_hf(theirs), ours)


# --- the official code --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone.", "_orig_mod.module.backbone."])
def test_wrappers_heads_and_chunks_are_taken_off(prefix: str) -> None:
    ours = dict(our_vit(depth=4).state_dict())
    chunked = {
        key.replace(f"blocks.{i}.", f"blocks.{i // 2}.{i}."): tensor
        for key, tensor in ours.items()
        for i in [int(key.split(".")[1]) if key.startswith("blocks.") else -1]
    }
    heads = {"head.mlp.0.weight", "dino_head.last_layer.weight_g", "ibot_head.mlp.4.bias"}
    for tensors in (ours, chunked):
        file = {prefix + key: tensor for key, tensor in tensors.items()}
        same(bare(file | {prefix.replace("backbone.", "") + key: torch.zeros(1) for key in heads}), ours)
