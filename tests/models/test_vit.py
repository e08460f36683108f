"""The vision transformer against timm's, and what its options promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from encoders import made
from simdino.models.layers import DualPatchNorm, PatchEmbed
from simdino.models.vit import ENCODERS as VITS
from simdino.models.vit import ViT

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 4}
PARAMETERS = {
    "vit_tiny": 5_524_416,
    "vit_small": 21_665_664,
    "vit_base": 85_798_656,
    "vit_large": 303_301_632,
}  # patch 16, 224 pixels, no head


def random_vit(*, seed: int = 0, **options: Any) -> ViT:
    """A small ViT in which no parameter is zero or one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vit = made(ViT, **{"image_size": 16, "patch_size": 4, **SMALL, **options})
        for parameter in vit.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return vit.eval()


def images(count: int, size: int | tuple[int, int] = 16, *, channels: int = 3, seed: int = 0) -> Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def timm_weights(vit: ViT, *, positions_of_prefix: bool) -> dict[str, Tensor]:
    """Our weights under timm's keys. timm adds positions to the class token and registers, or to neither."""
    own = dict(vit.state_dict())
    positions, cls = own.pop("pos_embed"), own.pop("cls_token")
    registers = own.pop("register_tokens", None)
    if registers is not None:
        own["reg_token"] = registers
    if positions_of_prefix:
        none = torch.zeros(1, 0 if registers is None else registers.shape[1], cls.shape[-1])
        return own | {"cls_token": cls, "pos_embed": torch.cat([positions[:, :1], none, positions[:, 1:]], dim=1)}
    return own | {"cls_token": cls + positions[:, :1], "pos_embed": positions[:, 1:]}


def check_against(vit: ViT, reference: Any, x: Tensor) -> None:
    with torch.no_grad():
        ours, theirs = vit(x), reference.forward_features(x)
    prefix = reference.num_prefix_tokens
    torch.testing.assert_close(ours.cls, theirs[:, 0], rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.registers, theirs[:, 1:prefix], rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.patches, theirs[:, prefix:], rtol=0, atol=1e-4)
    assert ours.grid[0] * ours.grid[1] == ours.patches.shape[1]


# --- against timm -------------------------------------------------------------------------------------------------


@pytest.mark.extra("timm")
def test_timms_vit_tiny_with_its_own_weights() -> None:
    import timm

    reference = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0).eval()
    vit = made(ViT, image_size=224, patch_size=16, **VITS["vit_tiny"].shape).eval()
    vit.load_state_dict(reference.state_dict())  # without registers the keys are timm's own
    check_against(vit, reference, images(2, 224))


@pytest.mark.extra("timm")
@pytest.mark.parametrize("layer_scale", [None, 0.5])
@pytest.mark.parametrize(
    ("registers", "no_embed_class", "size"),
    [
        (0, False, 16),
        (0, True, 16),
        (3, False, 16),
        (3, True, 16),
        (0, False, (24, 12)),
        (0, True, (24, 12)),
        (3, True, (24, 12)),  # timm cannot resize the positions that registers have
    ],
)
def test_options_and_other_sizes_are_timms(
    registers: int, layer_scale: float | None, no_embed_class: bool, size: int | tuple[int, int]
) -> None:
    from timm.models.vision_transformer import VisionTransformer

    vit = random_vit(registers=registers, layer_scale=layer_scale, in_chans=2)
    reference = VisionTransformer(
        img_size=16, patch_size=4, in_chans=2, num_classes=0, embed_dim=32, depth=3, num_heads=4,
        init_values=layer_scale, reg_tokens=registers, no_embed_class=no_embed_class, dynamic_img_size=size != 16,
    ).eval()  # fmt: skip
    reference.load_state_dict(timm_weights(vit, positions_of_prefix=not no_embed_class))
    check_against(vit, reference, images(5, size, channels=2))


@pytest.mark.extra("timm")
@pytest.mark.parametrize("grid", [(4, 4), (2, 2), (6, 3), (1, 9), (14, 14)])
def test_positions_on_another_grid_are_timms(grid: tuple[int, int]) -> None:
    from timm.layers import resample_abs_pos_embed

    vit = random_vit()
    expected = resample_abs_pos_embed(vit.pos_embed, list(grid), old_size=[4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(vit.position_embedding(grid), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_reach_the_positions(dtype: torch.dtype) -> None:
    vit = random_vit()
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(vit.position_embedding((3, 5)), vit.position_embedding((3, 5)).float())
        cast = vit.position_embedding((3, 5))
    assert torch.equal(cast, vit.position_embedding((3, 5)))


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_named_sizes_have_the_published_number_of_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        vit = made(ViT, image_size=224, patch_size=16, **VITS[name].shape)
    assert sum(p.numel() for p in vit.parameters()) == count


# --- our own promises ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"registers": 2, "layer_scale": 0.3}], ids=["plain", "registers, layer scale"])
@pytest.mark.parametrize("keys", [None, torch.arange(6)], ids=["no drop path", "drop path"])
def test_without_patches_the_class_token_is_the_same(options: dict[str, Any], keys: Tensor | None) -> None:
    vit = random_vit(drop_path=0.5, **options)
    x = images(6, (12, 20))
    with torch.no_grad():
        full, short = vit(x, keys=keys), vit(x, keys=keys, patches=False)
    assert short.patches is None and short.registers is None and short.grid == full.grid == (3, 5)
    torch.testing.assert_close(short.cls, full.cls, rtol=0, atol=1e-6)


def test_without_patches_the_gradient_is_the_same() -> None:
    vit = random_vit().double()
    gradients = []
    for patches in (True, False):
        vit.zero_grad()
        vit(images(4).double(), patches=patches).cls.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in vit.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def test_what_other_parts_read_of_it() -> None:
    vit = random_vit(in_chans=2, registers=3)
    assert (vit.embed_dim, vit.patch_size, vit.in_chans) == (32, 4, 2)
    tokens = vit(images(5, channels=2))
    shapes = tokens.cls.shape, tokens.registers.shape, tokens.patches.shape, tokens.grid
    assert shapes == ((5, 32), (5, 3, 32), (5, 16, 32), (4, 4))
    assert random_vit()(images(5)).registers.shape == (5, 0, 32)


def test_initial_weights_are_dinos() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = made(ViT, image_size=64, patch_size=4, embed_dim=128, depth=1, num_heads=4, registers=64, layer_scale=0.1)
    spread = [vit.blocks[0].attn.qkv.weight, vit.blocks[0].mlp.fc1.weight, vit.pos_embed, vit.register_tokens]
    for weight in spread:
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not vit.blocks[0].mlp.fc1.bias.any() and vit.cls_token.any()
    assert vit.blocks[0].ls1.gamma.unique().tolist() == pytest.approx([0.1])
    assert vit.norm.eps == vit.blocks[0].norm1.eps == vit.blocks[0].norm2.eps == 1e-6


@pytest.mark.parametrize(
    ("options", "words"),
    [({"image_size": 18}, "18.*patch size 4"), ({"embed_dim": 30}, "30.*4 heads")],
)
def test_shapes_that_do_not_divide_are_refused(options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made(ViT, **{"image_size": 16, "patch_size": 4, **SMALL, **options})


@pytest.mark.parametrize("size", [(18, 16), (16, 18)])
def test_images_that_do_not_divide_into_patches_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels .* patches of 4"):
        random_vit()(images(1, size))


def test_patches_are_in_reading_order() -> None:
    embed = PatchEmbed(in_chans=1, embed_dim=1, patch_size=2)
    torch.nn.init.constant_(embed.proj.weight, 0.25)
    torch.nn.init.zeros_(embed.proj.bias)
    image = torch.arange(6.0).reshape(1, 1, 2, 3).repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert embed(image).flatten().tolist() == [0, 1, 2, 3, 4, 5]


# --- Dual PatchNorm -----------------------------------------------------------------------------------------------


def random_stem() -> DualPatchNorm:
    stem = random_vit(patch_embed="dual_norm", in_chans=2).double().patch_embed
    assert isinstance(stem, DualPatchNorm)
    return stem


def test_dual_patch_norm_is_its_formula() -> None:
    def norm(v: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
        return (v - v.mean()) / (v.var(unbiased=False) + 1e-6).sqrt() * layer.weight + layer.bias

    stem, x = random_stem(), images(2, (8, 12), channels=2).double()
    with torch.no_grad():
        tokens = stem(x)
        for image, own in zip(x, tokens, strict=True):
            for p, (top, left) in enumerate((top, left) for top in (0, 4) for left in (0, 4, 8)):
                rows = range(top, top + 4)
                pixels = torch.stack([image[c, i, j] for i in rows for j in range(left, left + 4) for c in (0, 1)])
                expected = norm(stem.proj.weight @ norm(pixels, stem.before) + stem.proj.bias, stem.after)
                torch.testing.assert_close(own[p], expected, rtol=0, atol=1e-12)


def test_dual_patch_norm_does_not_see_a_patchs_brightness_and_contrast() -> None:
    stem, x = random_stem(), images(2, channels=2).double()
    with torch.no_grad():
        torch.testing.assert_close(stem(3 * x + 5), stem(x), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"18 x 16 pixels .* patches of 4"):
        stem(images(1, (18, 16), channels=2).double())


def test_the_stem_is_all_that_dual_patch_norm_changes() -> None:
    dual, plain = random_vit(patch_embed="dual_norm", registers=2), random_vit(registers=2, seed=1)
    changed = dual.state_dict().keys() ^ plain.state_dict().keys()
    assert changed == {f"patch_embed.{part}.{name}" for part in ("before", "after") for name in ("weight", "bias")}
    assert isinstance(plain.patch_embed, PatchEmbed)
    plain.patch_embed = dual.patch_embed
    plain.load_state_dict(dual.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(images(2)).patches, dual(images(2)).patches)
