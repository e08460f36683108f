"""CRATE against a loop-and-formula oracle on the released files' layout, and what its options promise."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from encoders import made
from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.models.catalogue import make_encoder, resolve_name
from simdino.models.crate import CRATE, WhiteBoxBlock, from_official
from simdino.models.crate import ENCODERS as CRATES
from simdino.models.layers import DropPathRows, attend, resize_positions
from simdino.models.resize import Weights
from simdino.models.weights import load_encoder, load_strictly, save_encoder
from simdino.rng import sample_keys

SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 3}
PREPROCESS = Preprocess(resize=18, crop=16, channels=1, mean=(0.25,), std=(0.5,))
PARAMETERS = {
    "crate_tiny": 6_090_856,
    "crate_small": 13_116_328,
    "crate_base": 22_796_008,
    "crate_large": 77_641_192,
}  # patch 16, 224 pixels, with a linear classifier of 1,000 classes


def random_crate(*, seed: int = 0, **options: Any) -> CRATE:
    """A small CRATE in float64 in which no parameter is zero or one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        crate = made(CRATE, **{"image_size": 16, "patch_size": 4, "in_chans": 2, **SMALL, **options})
        for parameter in crate.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return crate.double().eval()


def images(count: int, size: tuple[int, int] = (16, 16), *, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def keys(count: int, *, seed: int = 0) -> Tensor:
    return torch.from_numpy(sample_keys(seed, 0, range(count)))


# --- the oracle: one vector at a time, from the formulas ----------------------------------------------------------


def official_state(*, width: int = 24, depth: int = 3, patch: int = 4, channels: int = 2, grid: int = 4) -> Any:
    """Random numbers under the keys and in the shapes of a released file."""
    generator = torch.Generator().manual_seed(3)
    pixels = channels * patch**2
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embedding": (1, 1 + grid**2, width)}
    for place, size in ((1, pixels), (3, width)):
        shapes |= {f"to_patch_embedding.{place}.{name}": (size,) for name in ("weight", "bias")}
    shapes |= {"to_patch_embedding.2.weight": (width, pixels), "to_patch_embedding.2.bias": (width,)}
    for i in range(depth):
        at = f"transformer.layers.{i}"
        shapes |= {f"{at}.{half}.norm.{name}": (width,) for half in (0, 1) for name in ("weight", "bias")}
        shapes |= {f"{at}.0.fn.qkv.weight": (width, width), f"{at}.1.fn.weight": (width, width)}
        shapes |= {f"{at}.0.fn.to_out.0.weight": (width, width), f"{at}.0.fn.to_out.0.bias": (width,)}
    shapes |= {f"mlp_head.0.{name}": (width,) for name in ("weight", "bias")}
    shapes |= {"mlp_head.1.weight": (10, width), "mlp_head.1.bias": (10,)}
    tensors = {k: 0.4 * torch.randn(s, generator=generator, dtype=torch.float64) for k, s in shapes.items()}
    return {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}


def normed(v: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    centred = v - v.sum() / len(v)
    variance = (centred * centred).sum() / len(v)
    return centred / (variance + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def block_by_hand(x: list[Tensor], state: dict[str, Tensor], at: str, heads: int) -> list[Tensor]:
    """Tokens in, tokens out."""
    size = len(x[0]) // heads
    mixed: list[list[Tensor]] = [[] for _ in x]
    for k in range(heads):
        basis = state[f"{at}.0.fn.qkv.weight"][k * size : (k + 1) * size]
        w = [basis @ normed(v, state, f"{at}.0.norm") for v in x]
        for t, own in enumerate(w):
            likeness = torch.stack([((own * other).sum() / sqrt(size)).exp() for other in w])
            mixed[t].append(sum((a * other for a, other in zip(likeness, w, strict=True)), 0 * own) / likeness.sum())
    out, d = [], state[f"{at}.1.fn.weight"]
    for v, parts in zip(x, mixed, strict=True):
        added = state[f"{at}.0.fn.to_out.0.weight"] @ torch.cat(parts) + state[f"{at}.0.fn.to_out.0.bias"]
        y = normed(v + added, state, f"{at}.1.norm")
        out.append((y + 0.1 * (d.T @ y - d.T @ d @ y) - 0.1 * 0.1).clamp_min(0))
    return out


def by_hand(image: Tensor, file: Any, *, patch: int = 4, heads: int = 3, depth: int = 3) -> Tensor:
    """All tokens of one image [C, H, W], before the classifier's linear layer: [1 + P, D]."""
    state = {key.removeprefix("module."): value for key, value in file["state_dict"].items()}
    tokens = [state["cls_token"][0, 0]]
    for top in range(0, image.shape[1], patch):
        for left in range(0, image.shape[2], patch):
            pixels = [image[:, top + i, left + j] for i in range(patch) for j in range(patch)]
            v = normed(torch.cat(pixels), state, "to_patch_embedding.1")
            v = state["to_patch_embedding.2.weight"] @ v + state["to_patch_embedding.2.bias"]
            tokens.append(normed(v, state, "to_patch_embedding.3"))
    tokens = [v + position for v, position in zip(tokens, state["pos_embedding"][0], strict=True)]
    for i in range(depth):
        tokens = block_by_hand(tokens, state, f"transformer.layers.{i}", heads)
    return torch.stack([normed(v, state, "mlp_head.0") for v in tokens])


def weights(file: Any) -> Weights:
    config = EncoderConfig(name="crate_nano", image_size=16, patch_size=4)
    return Weights(origin="crate.pth", config=config, preprocess=PREPROCESS, tensors=from_official(file))


def test_a_released_file_is_recognised(tmp_path: Path) -> None:
    file = official_state(**{"width": 384, "depth": 12, "patch": 8, "channels": 3, "grid": 2})
    torch.save(file, tmp_path / "crate.pth")
    loaded = load_encoder(tmp_path / "crate.pth")
    assert isinstance(loaded, CRATE) and loaded.config.name == "crate_tiny"
    assert (loaded.config.image_size, loaded.config.patch_size, loaded.preprocess.crop) == (16, 8, 16)
    assert torch.equal(
        loaded.blocks[3].ista.dictionary.double(), from_official(file)["blocks.3.ista.dictionary"].float().double()
    )


def test_an_official_file_gives_the_tokens_of_the_formulas() -> None:
    file = official_state()
    crate = random_crate()
    load_strictly(crate, weights(file))
    x = images(2)
    with torch.no_grad():
        tokens = crate(x)
    expected = torch.stack([by_hand(image, file) for image in x])
    torch.testing.assert_close(tokens.cls, expected[:, 0], rtol=0, atol=1e-11)
    torch.testing.assert_close(tokens.patches, expected[:, 1:], rtol=0, atol=1e-11)
    assert tokens.grid == (4, 4) and tokens.registers is not None and tokens.registers.shape == (2, 0, 24)


def test_a_block_is_the_formulas() -> None:
    file = official_state(depth=1)
    state = {key.removeprefix("module."): value for key, value in file["state_dict"].items()}
    own = {name: tensor for name, tensor in from_official(file).items() if name.startswith("blocks.0.")}
    block = WhiteBoxBlock(embed_dim=24, num_heads=3).double()
    block.load_state_dict({name.removeprefix("blocks.0."): tensor for name, tensor in own.items()})
    x = torch.randn(2, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([torch.stack(block_by_hand(list(v), state, "transformer.layers.0", 3)) for v in x])
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(block(x, queries=2), expected[:, :2], rtol=0, atol=1e-12)
    assert 0.05 < (expected == 0).double().mean() < 0.95 and expected.min() == 0


def test_attention_on_a_cpu_is_the_fused_kernels() -> None:
    w = torch.randn(2, 3, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fused = F.scaled_dot_product_attention(w, w, w).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attend(w, w, w), fused, rtol=0, atol=1e-12)


# --- files --------------------------------------------------------------------------------------------------------


def test_the_outer_key_and_the_prefix_may_be_missing_and_the_classifier_goes() -> None:
    file = official_state()
    bare = {key.removeprefix("module."): value for key, value in file["state_dict"].items()}
    one, two = from_official(file), from_official(bare)
    assert one.keys() == two.keys() == dict(random_crate().state_dict()).keys()
    assert all(one[name] is two[name] for name in one)


def test_wrong_and_missing_keys_are_named() -> None:
    file = official_state()
    file["state_dict"]["module.transformer.layers.0.1.fn.D1"] = torch.zeros(1)
    file["state_dict"]["module.mlp_head.2.weight"] = torch.zeros(1)
    with pytest.raises(InputError, match=r"layers\.0\.1\.fn\.D1, module\.mlp_head\.2\.weight"):
        from_official(file)
    file = official_state()
    del file["state_dict"]["module.transformer.layers.1.1.fn.weight"]
    with pytest.raises(InputError, match=r"crate\.pth .*missing blocks\.1\.ista\.dictionary"):
        load_strictly(random_crate(), weights(file))


def named_crate(**options: Any) -> Any:
    config = EncoderConfig(**{"name": "crate_nano", "image_size": 16, "patch_size": 8, **options})
    return make_encoder(config, PREPROCESS)


def test_round_trip(tmp_path: Path) -> None:
    encoder = named_crate(registers=2, mask_token=True, drop_path=0.2, positions="plain").eval()
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    loaded = load_encoder(tmp_path)
    assert isinstance(loaded, CRATE) and loaded.config == encoder.config and loaded.preprocess == PREPROCESS
    x = images(2)[:, :1].float()
    with torch.no_grad():
        assert torch.equal(loaded(x).cls, encoder(x).cls)


# --- names and sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_named_sizes_have_the_published_number_of_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        crate = made(CRATE, image_size=224, patch_size=16, **CRATES[name].shape)
    assert sum(p.numel() for p in crate.parameters()) + 1000 * crate.embed_dim + 1000 == count


def test_names_are_in_the_catalogue() -> None:
    for name in CRATES:
        resolve_name(name)
    with pytest.raises(InputError, match=r"crate_large.* and .*; did you mean crate_small\?"):
        resolve_name("crate_smal")


@pytest.mark.parametrize("options", [{"layer_scale": 0.1}, {"ffn": "swiglu"}])
def test_parts_that_it_does_not_have_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="crate_nano has neither"):
        named_crate(**options)


def test_what_other_parts_read_of_it() -> None:
    crate = random_crate(registers=3)
    assert (crate.embed_dim, crate.patch_size, crate.in_chans, crate.depth) == (24, 4, 2, 3)
    layers = {name: crate.layer_of(name) for name, _ in crate.named_parameters()}
    assert layers["patch_embed.before.weight"] == layers["cls_token"] == layers["register_tokens"] == 0
    assert layers["blocks.2.ista.dictionary"] == 3 and layers["norm.weight"] == 4
    tokens = crate(images(5))
    assert tokens.registers.shape == (5, 3, 24) and tokens.patches.shape == (5, 16, 24)


def test_initial_weights_are_the_originals() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        crate = made(CRATE, image_size=64, patch_size=4, embed_dim=96, depth=1, num_heads=4, registers=64)
    for token in (crate.cls_token, crate.pos_embed, crate.register_tokens):
        assert token.std().item() == pytest.approx(1, rel=0.3 if token.numel() == 96 else 0.05)
    block = crate.blocks[0]
    assert block.ista.dictionary.abs().max().item() == pytest.approx(sqrt(6 / 96), rel=0.01)
    assert block.attn.subspaces.bias is None and block.attn.proj.bias is not None
    stem = crate.patch_embed
    assert {m.eps for m in (stem.before, stem.after, block.norm1, block.norm2, crate.norm)} == {1e-5}


# --- what self-supervision asks of it -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"registers": 2}], ids=["plain", "registers"])
@pytest.mark.parametrize("some_keys", [None, torch.arange(6)], ids=["no drop path", "drop path"])
def test_without_patches_the_class_token_and_its_gradient_are_the_same(
    options: dict[str, Any], some_keys: Tensor | None
) -> None:
    crate = random_crate(drop_path=0.5, **options)
    gradients, tokens = [], []
    for patches in (True, False):
        crate.zero_grad()
        tokens.append(crate(images(6, (12, 20)), keys=some_keys, patches=patches))
        tokens[-1].cls.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in crate.parameters()]))
    full, short = tokens
    assert short.patches is None and short.registers is None and short.grid == full.grid == (3, 5)
    torch.testing.assert_close(short.cls, full.cls, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def test_drop_path_is_a_function_of_the_keys() -> None:
    crate, x, own = random_crate(drop_path=0.6), images(16), keys(16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = crate(x, keys=own).cls
        torch.testing.assert_close(crate(x[order], keys=own[order]).cls, whole[order], rtol=0, atol=1e-11)
        pieces = torch.cat([crate(a, keys=b).cls for a, b in zip(x.split(5), own.split(5), strict=True)])
        torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-11)
        assert (crate(x, keys=keys(16, seed=1)).cls - whole).abs().max() > 0.01
        plain = random_crate(drop_path=0.0)
        assert torch.equal(crate(x).cls, plain(x).cls)
        assert torch.equal(plain(x, keys=own).cls, plain(x).cls)


def test_a_factor_scales_the_attention_of_its_own_image_and_never_the_sparse_code() -> None:
    block = random_crate(depth=1).blocks[0]
    x = torch.randn(3, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = block(x, kept=[DropPathRows(rows=torch.tensor([1, 2]), factor=2.0)])
        torch.testing.assert_close(out[0], block.ista(block.norm2(x[0])), rtol=0, atol=1e-12)
        doubled = block.ista(block.norm2(x + 2 * block.attn(block.norm1(x))))
        torch.testing.assert_close(out[1:], doubled[1:], rtol=0, atol=1e-12)


def first_tokens(crate: CRATE, x: Tensor, masks: Tensor | None) -> Tensor:
    """What the first block is given."""
    seen: list[Tensor] = []
    hook = crate.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        crate(x, masks=masks)
    hook.remove()
    return seen[0]


def test_masks_replace_exactly_the_masked_patches_before_positions() -> None:
    crate = random_crate(mask_token=True, registers=1)
    x, masks = images(3, (12, 8)), torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    plain, masked = first_tokens(crate, x, None), first_tokens(crate, x, masks)
    assert torch.equal(masked[:, :2], plain[:, :2]) and masks.any() and not masks.all()
    assert torch.equal(masked[:, 2:][~masks], plain[:, 2:][~masks])
    filled = (crate.mask_token + crate.position_embedding((3, 2))[:, 1:]).expand(3, -1, -1)
    assert torch.equal(masked[:, 2:][masks], filled[masks])


def test_positions_on_other_grids_are_interpolated_and_on_their_own_left_alone() -> None:
    crate = random_crate(positions="plain")
    assert torch.equal(crate.position_embedding((4, 4)), crate.pos_embed)
    own = crate.pos_embed[:, 1:].unflatten(1, (4, 4))
    other = crate.position_embedding((2, 5))
    assert torch.equal(other[:, 1:], resize_positions(own, (2, 5), rule="plain").flatten(1, 2))
    assert torch.equal(other[:, :1], crate.pos_embed[:, :1])
    assert crate(images(2, (8, 20))).patches.shape == (2, 10, 24)


def test_bfloat16_is_near_float32() -> None:
    crate, x = random_crate().float(), images(4).float()
    with torch.no_grad():
        expected = crate(x).cls
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = crate(x).cls
    assert torch.cosine_similarity(rounded.float(), expected).min() > 0.99
