"""The files of others: every layout loads, with what it says of its encoder, and one wrong key is named.

The layouts are written out here, from the official code of DINO, SimDINO and DINOv2, so that no mistake in a key map
can hide in a test that uses it."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders import made
from simdino.config import EncoderConfig
from simdino.contracts import InputError
from simdino.models.catalogue import make_encoder
from simdino.models.official import IMAGENET
from simdino.models.vit import ENCODERS as VITS
from simdino.models.vit import ViT
from simdino.models.weights import load_encoder

Tensors = dict[str, Tensor]
WIDTH, DEPTH = 128, 4  # two heads of 64
PARAMETERS = [  # published or counted from the official classes: (shape, options, with a mask token, without)
    ("vit_small", {}, 21_666_048, 21_665_664),
    ("vit_base", {}, 85_799_424, 85_798_656),
    ("vit_large", {}, 303_302_656, 303_301_632),
    ("vit_small", {"registers": 4, "layer_scale": 1.0}, 21_676_800, 21_676_416),
    ("vit_base", {"registers": 4, "layer_scale": 1.0}, 85_820_928, 85_820_160),
    ("vit_large", {"registers": 4, "layer_scale": 1.0}, 303_355_904, 303_354_880),
    ("vit_base", {"size": 518, "layer_scale": 1.0}, 86_580_480, 86_579_712),
    ("vit_base", {"size": 518, "layer_scale": 1.0, "registers": 4}, 86_583_552, 86_582_784),
    ("vit_large", {"size": 518, "layer_scale": 1.0}, 304_368_640, None),
    ("vit_large", {"size": 518, "layer_scale": 1.0, "registers": 4}, 304_372_736, None),
    ("vit_giant2", {"size": 518, "layer_scale": 1.0, "ffn": "swiglu"}, 1_136_480_768, None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "with_mask", "without"), PARAMETERS)
def test_parameter_counts_are_the_official_ones(
    name: str, options: dict[str, Any], with_mask: int, without: int | None
) -> None:
    options = options | VITS[name].shape
    size = options.pop("size", 224)
    for mask_token, count in ((True, with_mask), (False, without)):
        with torch.device("meta"):
            vit = made(ViT, image_size=size, patch_size=14 if size == 518 else 16, mask_token=mask_token, **options)
        assert count is None or sum(p.numel() for p in vit.parameters()) == count
    if (name, size, options.get("registers")) == ("vit_base", 224, 4):
        with torch.device("meta"):
            assert len(made(ViT, image_size=224, patch_size=16, mask_token=True, **options).state_dict()) == 176


# --- layouts ------------------------------------------------------------------------------------------------------


def noise(*shape: int) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def block(key: str, *, scaled: bool, gated: bool) -> Tensors:
    """A block's weights under `key`."""
    made: Tensors = {}
    gate = (int(WIDTH * 4 * 2 / 3) + 7) // 8 * 8
    linear = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)} | (
        {"mlp.w12": (2 * gate, WIDTH), "mlp.w3": (WIDTH, gate)}
        if gated
        else {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
    )
    for part, shape in {"norm1": (WIDTH,), "norm2": (WIDTH,), **linear}.items():
        made |= {f"{key}.{part}.weight": noise(*shape), f"{key}.{part}.bias": noise(shape[0])}
    return made | ({f"{key}.ls{i}.gamma": noise(WIDTH) for i in (1, 2)} if scaled else {})


def backbone(
    *, side: int, patch: int, registers: int = 0, dinov2: bool = True, gated: bool = False, chunks: int | None = None
) -> Tensors:
    """The keys of an encoder in the official code: DINO's or DINOv2's."""
    made = {
        "cls_token": noise(1, 1, WIDTH), "pos_embed": noise(1, 1 + side**2, WIDTH),
        "patch_embed.proj.weight": noise(WIDTH, 3, patch, patch), "patch_embed.proj.bias": noise(WIDTH),
        "norm.weight": noise(WIDTH), "norm.bias": noise(WIDTH),
    }  # fmt: skip
    if dinov2:
        made["mask_token"] = noise(1, WIDTH)
    if registers:
        made["register_tokens"] = noise(1, registers, WIDTH)
    for i in range(DEPTH):
        key = f"blocks.{i}" if chunks is None else f"blocks.{i // (DEPTH // chunks)}.{i}"
        made |= block(key, scaled=dinov2, gated=gated)
    return made


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + key: tensor for key, tensor in tensors.items()}


def head(prefix: str, *, last_layer: bool) -> Tensors:
    mlp = {f"{prefix}.mlp.{i}.{leaf}": noise(3) for i in (0, 2, 4) for leaf in ("weight", "bias")}
    last = {f"{prefix}.last_layer.weight_{leaf}": noise(3, 1) for leaf in "gv"}
    return mlp | (last if last_layer else {})


def zeros(tensors: Tensors) -> Tensors:
    return {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}


ARGS = argparse.Namespace(
    arch="vit_small", lr=0.0005, use_fp16=True, data_path="imagenet", local_crops_scale=(0.05, 0.4)
)
DINO = backbone(side=4, patch=16, dinov2=False)
DINO_CHECKPOINT = {
    "student": under("module.", under("backbone.", zeros(DINO)) | head("head", last_layer=True)),
    "teacher": under("backbone.", DINO) | head("head", last_layer=True),
    "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    "epoch": 100, "args": ARGS, "dino_loss": {"center": torch.zeros(1, 3)}, "fp16_scaler": {"scale": 2.0},
}  # fmt: skip
SIMDINO_CHECKPOINT = DINO_CHECKPOINT | {
    "student": under("_orig_mod.module.", under("backbone.", zeros(DINO)) | head("head", last_layer=False)),
    "teacher": under("_orig_mod.", under("backbone.", DINO) | head("head", last_layer=False)),
    "dino_loss": {},
}
TEACHER = backbone(side=4, patch=16, registers=4, chunks=2)
SIMDINOV2 = backbone(side=4, patch=16, chunks=4)  # trained without registers
TIMM = DINO | {"reg_token": noise(1, 2, WIDTH)}
HEADS = head("dino_head", last_layer=True) | head("ibot_head", last_layer=True)
V2 = {"drop_path": 0.0, "layer_scale": 1e-5, "mask_token": True}
V1 = {"drop_path": 0.0, "positions": "offset"}
LAYOUTS: dict[str, tuple[Any, Tensors, dict[str, Any]]] = {  # what a file holds, its encoder, its configuration
    "DINO checkpoint": (DINO_CHECKPOINT, DINO, V1),
    "DINO backbone": (DINO, DINO, V1),
    "DINO student only": ({"student": DINO_CHECKPOINT["student"]}, zeros(DINO), V1),
    "SimDINO checkpoint": (SIMDINO_CHECKPOINT, DINO, V1),
    "DINOv2 checkpoint": (
        {"teacher": under("backbone.", TEACHER) | HEADS},
        TEACHER,
        V2 | {"registers": 4, "positions": "antialias"},
    ),
    "DINOv2 checkpoint without registers": (
        {"teacher": under("backbone.", SIMDINOV2) | head("dino_head", last_layer=True)},
        SIMDINOV2,
        V2 | {"positions": "offset"},
    ),
    "SimDINOv2 checkpoint": (
        {"teacher": under("backbone.", TEACHER) | head("dino_head", last_layer=False)},
        TEACHER,
        V2 | {"registers": 4, "positions": "antialias"},
    ),
    "SimDINOv2 checkpoint without registers": (
        {"teacher": under("backbone.", SIMDINOV2) | head("dino_head", last_layer=False)},
        SIMDINOV2,
        V2 | {"positions": "antialias"},
    ),
    "DINOv2 hub": (b := backbone(side=37, patch=14), b, V2 | {"positions": "offset"}),
    "DINOv2 hub, registers": (
        b := backbone(side=37, patch=14, registers=4),
        b,
        V2 | {"registers": 4, "positions": "antialias"},
    ),
    "DINOv2 hub, ViT-g": (
        b := backbone(side=37, patch=14, gated=True),
        b,
        V2 | {"ffn": "swiglu", "positions": "offset"},
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("layout", LAYOUTS)


def saved(held: Any, folder: Path) -> Path:
    torch.save(held, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def with_teacher(held: Any, change: Callable[[Tensors], None]) -> Any:
    """A copy of what a file holds in which the weights that are taken are changed."""
    held = dict(held)
    part = next((name for name in ("teacher", "student") if name in held), None)
    tensors = dict(held if part is None else held[part])
    change(tensors)
    return tensors if part is None else held | {part: tensors}


@EVERY
def test_every_layout_loads(layout: str, tmp_path: Path) -> None:
    held, expected, options = LAYOUTS[layout]
    said: list[str] = []
    encoder = load_encoder(saved(held, tmp_path), log=said.append)
    side, patch = (37, 14) if "hub" in layout else (4, 16)
    shape = {"name": "vit", "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2}
    assert encoder.config == EncoderConfig(**shape, image_size=side * patch, patch_size=patch, **options)
    own = encoder.state_dict()
    assert len(own) == len(expected)
    for key, tensor in expected.items():
        parts = key.split(".")
        name = ".".join(["blocks", *parts[2:]]) if parts[0] == "blocks" and parts[2].isdigit() else key
        assert torch.equal(own[name], tensor), key
    assert not encoder.training and encoder.preprocess.crop == (224 if side == 37 else 64)
    alone = layout in ("DINO backbone", "DINOv2 hub", "DINOv2 hub, ViT-g")  # does not tell its rule for positions
    assert ["student" in line for line in said] == [True] * ("student only" in layout) + [False] * alone
    with torch.no_grad():
        assert encoder(torch.randn(1, 3, patch * 2, patch * 3)).grid == (2, 3)


@EVERY
def test_a_wrong_key_is_named(layout: str, tmp_path: Path) -> None:
    def misspelt(tensors: Tensors) -> None:
        key = next(key for key in tensors if key.endswith("attn.qkv.weight"))
        tensors[key.replace("weight", "weigth")] = tensors.pop(key)

    held = with_teacher(LAYOUTS[layout][0], misspelt)
    with pytest.raises(InputError) as error:
        load_encoder(saved(held, tmp_path))
    message = str(error.value)
    assert "missing blocks.0.attn.qkv.weight" in message and "surplus blocks.0.attn.qkv.weigth" in message
    assert "checkpoint.pth" in message and "\n" not in message


@pytest.mark.slow
@EVERY
@pytest.mark.parametrize("part", ["cls_token", "norm.bias", "patch_embed.proj.bias", "mlp.(fc2|w3).weight"])
def test_a_wrong_shape_is_named(layout: str, part: str, tmp_path: Path) -> None:
    def cut(tensors: Tensors) -> None:
        tensors[next(key for key in tensors if re.search(f"{part}$", key))] = torch.zeros(7)

    held = with_teacher(LAYOUTS[layout][0], cut)
    with pytest.raises(InputError, match=rf"{part} is \(7,\), expected \("):
        load_encoder(saved(held, tmp_path))


@pytest.mark.slow
def test_names_of_ours_and_their_preprocessing(tmp_path: Path) -> None:
    config = EncoderConfig(name="vit_tiny", image_size=224, patch_size=32, drop_path=0.0, positions="offset")
    encoder = make_encoder(config, IMAGENET)
    loaded = load_encoder(saved(encoder.state_dict(), tmp_path))
    assert loaded.config == config and loaded.preprocess == IMAGENET
    small = load_encoder(tmp_path / "checkpoint.pth", image_size=96, log=lambda _: None)
    assert (small.preprocess.resize, small.preprocess.crop) == (110, 96)


@pytest.mark.extra("timm")
def test_timms_layout_loads_too(tmp_path: Path) -> None:
    import timm

    theirs = timm.models.VisionTransformer(
        img_size=64, embed_dim=WIDTH, depth=2, num_heads=2, reg_tokens=2, no_embed_class=True, num_classes=0
    ).eval()
    loaded = load_encoder(saved(theirs.state_dict(), tmp_path))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x).cls, theirs(x), rtol=0, atol=1e-4)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    loaded = load_encoder(saved({key: tensor.half() for key, tensor in DINO.items()}, tmp_path))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


# --- what is no encoder -------------------------------------------------------------------------------------------


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("code of the file was run",)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"teacher": DINO, "args": Path("x")}, r"holds pathlib[.\w]*Path, and loading it could run code"),
        ({"teacher": DINO, "args": Trap()}, r"holds \S+, and loading it could run code"),
        ({"teacher": DINO, "args": argparse.Namespace(trap=Trap())}, "could run code"),
        ([1, 2], "holds no weights but a list"),
        ({"epoch": 3, "lr": 0.1}, "holds no weights: it has epoch, lr"),
        ({}, "holds no weights: it has nothing"),
        ({"weight": torch.zeros(2)}, r"no ViT .*: missing patch_embed.proj.weight; its keys: weight"),
        (DINO | {"pos_embed": torch.zeros(16, WIDTH)}, r"pos_embed is \(16, 128\)"),
        (TIMM | {"pos_embed": torch.zeros(16)}, r"pos_embed is \(16,\)"),
        (TIMM | {"reg_token": torch.zeros(16)}, r"register_tokens is \(16,\)"),
        (DINO | {"pos_embed": torch.zeros(1, 16, WIDTH)}, r"pos_embed in .* is \(1, 16, 128\): expected 1 \+ a square"),
        (DINO | {"patch_embed.proj.weight": torch.zeros(100, 3, 16, 16)}, "width 100, no multiple of 64"),
    ],
)  # fmt: skip
def test_what_is_no_encoder_is_said(held: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as error:
        load_encoder(saved(held, tmp_path))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello world", b"PK\x03\x04 cut short", pickle.dumps({"a": print}, protocol=2), b"\x80\x02}q\x00(U\x01aK"],
)
def test_files_that_are_no_checkpoints_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pth (is not a readable PyTorch file|holds)") as error:
        load_encoder(tmp_path / "x.pth")
    assert "\n" not in str(error.value)
