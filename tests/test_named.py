"""Named recipes have the numbers of the sources, typed out."""

from __future__ import annotations

import dataclasses
from math import sqrt
from typing import Any

import pytest
import torch

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.losses.dinov2 import DINOv2
from simdino.losses.simdino import SimDINO
from simdino.methods import make_loss, read_config
from simdino.models.catalogue import make_encoder
from simdino.models.weights import save_encoder
from simdino.options import Options
from simdino.plan import without_effect
from simdino.recipes import describe, named_presets
from test_recipes import IMAGENET, METHODS, PROTOTYPES, PUBLISHED, RATED, SMALL, check, resolved

# docs/parity.md, what the released codes set.
SHARED: dict[str, Any] = {
    "views.global_views": 2, "views.global_size": 224, "views.local_size": 96, "views.flip": 0.5, "views.jitter": 0.8,
    "views.brightness": 0.4, "views.contrast": 0.4, "views.saturation": 0.2, "views.hue": 0.1, "views.grey": 0.2,
    "views.blur_sigma": (0.1, 2.0), "views.solarize": (0.0, 0.2, 0.0), "encoder.patch_size": 16,
    "encoder.image_size": 224, "encoder.ffn": "mlp", "encoder.patch_embed": "patch", "projector.hidden_dim": 2048,
    "projector.out_dim": 256, "projector.separate": False, "optim.final_lr": 1e-6, "optim.warmup": 0.1,
    "optim.weight_decay": 0.04, "optim.final_weight_decay": 0.4, "optim.clip": 3.0, "optim.teacher": "ema",
    "optim.freeze_encoder": 0.0, "run.init": None, "views.interpolation": "bicubic",
}  # fmt: skip
IMAGENETS = {"data.channels": 3, "data.mean": (0.485, 0.456, 0.406), "data.std": (0.229, 0.224, 0.225)}
OWN = {"data.channels": 1, "data.mean": (0.3,), "data.std": (0.2,)}  # of the data
PILLOWS = {"views.blur_radius": None, "views.blur_edges": "repeat"}
TORCHVISIONS = {"views.blur_radius": 4, "views.blur_edges": "reflect"}
# How the released codes' schedules start, their frozen prototypes, what their processes see, their tokens.
STARTS: dict[str, dict[str, Any]] = {
    "simdino": {"optim.ramp": "inclusive", "optim.first_lr": 0.0, "encoder.token_std": 0.02} | PILLOWS,
    "simdinov2": {"optim.ramp": "exclusive", "optim.first_lr": 1e-6, "encoder.token_std": 1e-6} | TORCHVISIONS,
    "dino": {
        "optim.ramp": "inclusive", "optim.first_lr": 0.0, "optim.frozen_prototypes": "no_gradient",
        "loss.scope": "global", "encoder.token_std": 0.02,
    } | PILLOWS,
    "dinov2": {
        "optim.ramp": "inclusive", "optim.first_lr": 0.0, "optim.frozen_prototypes": "no_rate", "loss.scope": "shards",
        "loss.shard_size": 64, "encoder.token_std": 1e-6,
    } | TORCHVISIONS,
}  # fmt: skip
OURS = {"optim.ramp": "ahead", "optim.first_lr": 0.0, "encoder.token_std": 0.02} | PILLOWS
RATE = {"loss.eps": sqrt(0.05), "loss.gamma": "released", "loss.scope": "shards", "loss.rate_on": "mean"}
NO_PROTOTYPES = {"projector.prototypes": 0}
HEAD = {
    "projector.prototypes": 65_536, "loss.student_temperature": 0.1, "loss.center_momentum": 0.9,
    "loss.centering": "centering", "optim.freeze_prototypes": 0.01,
}  # fmt: skip
FIRST = {
    "views.mask_share": 0.0, "views.blur": (1.0, 0.1, 0.5), "views.global_scale": (0.4, 1.0),
    "views.local_scale": (0.05, 0.4), "encoder.registers": 0, "encoder.layer_scale": None, "encoder.drop_path": 0.1,
    "encoder.drop_path_rule": "linear", "encoder.mask_token": False, "encoder.positions": "offset",
    "optim.momentum": 0.996, "optim.clip_per": "parameter", "optim.layer_decay": 1.0, "optim.patch_embed_lr": 1.0,
}  # fmt: skip
SECOND = {
    "views.mask_share": 0.5, "views.mask_ratio": (0.1, 0.5), "encoder.mask_token": True,
    "encoder.drop_path_rule": "uniform", "loss.patch_weight": 1.0, "optim.clip_per": "part", "optim.layer_decay": 0.9,
    "optim.patch_embed_lr": 0.2,
}  # fmt: skip
RELEASED: dict[str, dict[str, Any]] = {
    "simdino": SHARED | RATE | NO_PROTOTYPES | FIRST | {
        "views.local_views": 10, "loss.shard_size": 64, "run.batch": 512, "optim.lr": 1e-3,
    },
    "simdinov2": SHARED | RATE | NO_PROTOTYPES | SECOND | {
        "views.local_views": 10, "views.blur": (1.0, 0.1, 0.5), "views.global_scale": (0.4, 1.0),
        "views.local_scale": (0.05, 0.4), "encoder.registers": 4, "encoder.layer_scale": 0.1,
        "encoder.drop_path": 0.2, "encoder.positions": "antialias", "loss.shard_size": 128, "loss.patch_rate": 0.0,
        "run.batch": 1024, "optim.lr": 4e-3, "optim.momentum": 0.9,
    },
    "dino": SHARED | HEAD | FIRST | {
        "views.local_views": 8, "projector.train_lengths": False, "optim.temperature": (0.04, 0.04), "run.batch": 512,
        "optim.lr": 1e-3,
    },
    "dinov2": SHARED | HEAD | SECOND | {
        "views.local_views": 8, "views.blur": (0.0, 0.9, 0.5), "views.global_scale": (0.32, 1.0),
        "views.local_scale": (0.05, 0.32), "encoder.registers": 0, "encoder.layer_scale": 1e-5,
        "encoder.drop_path": 0.3, "encoder.positions": "offset", "projector.train_lengths": True,
        "loss.koleo_weight": 0.1, "optim.temperature": (0.04, 0.07), "optim.temperature_warmup": 0.3,
        "optim.momentum": 0.992, "run.batch": 2048, "optim.lr": 4e-3 * sqrt(2),
    },
}  # fmt: skip
# The paper's text under the table: batch 1024, crops from 0.3 and to 0.3, the rate of the whole batch on the student;
# DINO's temperature to 0.07; DINOv2 with the blur that its code means.
PAPER_RATE = {"loss.gamma": "theorem", "loss.scope": "global", "loss.rate_on": "student", "run.batch": 1024}
PAPER_CROPS = {"views.global_scale": (0.3, 1.0), "views.local_scale": (0.05, 0.3), "views.local_views": 10}
PAPER: dict[str, dict[str, Any]] = {
    "simdino": RELEASED["simdino"] | PAPER_RATE | PAPER_CROPS | {"optim.lr": 2e-3},
    "simdinov2": RELEASED["simdinov2"] | PAPER_RATE | PAPER_CROPS | {"optim.lr": 4e-3},
    "dino": RELEASED["dino"] | PAPER_CROPS | {
        "run.batch": 1024, "optim.lr": 2e-3, "optim.temperature": (0.04, 0.07), "optim.temperature_warmup": 0.3,
    },
    "dinov2": RELEASED["dinov2"] | {"views.blur": (1.0, 0.1, 0.5), "run.batch": 1024, "optim.lr": 4e-3},
}  # fmt: skip
for _rated in RATED:
    PAPER[_rated].pop("loss.shard_size")
SHAPES = {"vits16": "vit_small", "vitb16": "vit_base", "vitl16": "vit_large"}


GREY = dataclasses.replace(IMAGENET, channels=1, mean=(0.3,), std=(0.2,))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", PUBLISHED)
@pytest.mark.parametrize(("suffix", "table"), [("_released", RELEASED), ("", PAPER)], ids=["released", "paper"])
def test_a_named_recipe_has_the_numbers_of_its_source(suffix: str, table: Any, method: str, shape: str) -> None:
    config = resolved(GREY, recipe=f"{method}_{shape}{suffix}")
    assert (config.run.method, config.encoder.name) == (method, SHAPES[shape])
    if suffix and method == "dinov2":
        assert config.run.steps == 125_000, "100 epochs of 1,250 steps"
    else:
        assert config.run.steps == 100 * (1_281_167 // config.run.batch), "100 epochs"
    check(config, table[method])
    check(config, IMAGENETS | STARTS[method] if suffix else OWN | OURS)


@pytest.mark.parametrize("method", METHODS)
def test_recipes_without_a_name_have_nothing_of_the_released_codes(method: str) -> None:
    config = resolved(SMALL, method=method)
    check(config, OURS | {"data.mean": SMALL.mean})
    if method in PROTOTYPES:
        check(config, {"loss.scope": "global", "optim.frozen_prototypes": "no_gradient"})


def test_the_length_of_dinov2_as_released_does_not_follow_the_data() -> None:
    small = dataclasses.replace(IMAGENET, images=5000)
    for statistics, batch in ((IMAGENET, None), (small, None), (IMAGENET, 1024)):
        assert resolved(statistics, recipe="dinov2_vitl16_released", batch=batch).run.steps == 125_000
    asked = resolved(recipe="dinov2_vitl16_released", epochs=2)
    assert asked.run.steps == 2 * (1_281_167 // 2048)
    assert resolved(recipe="dinov2_vitl16_released", steps=7).run.steps == 7


def test_trained_weights_keep_their_own_normalisation_in_a_released_recipe(tmp_path: Any) -> None:
    own = Preprocess(resize=256, crop=224, channels=3, mean=(0.5,) * 3, std=(0.4,) * 3)
    torch.manual_seed(0)
    small = EncoderConfig(name="vit_nano", image_size=224, patch_size=16)
    save_encoder(make_encoder(small, own), tmp_path / "encoder.safetensors")
    config = resolved(recipe="dino_vits16_released", init=str(tmp_path / "encoder.safetensors"))
    check(config, {"data.mean": own.mean, "data.std": own.std})


def test_shards_of_dinov2_can_be_left_and_must_divide_the_batch() -> None:
    with pytest.raises(InputError, match="--batch 500 is not divisible into shards of 64"):
        resolved(recipe="dinov2_vits16_released", batch=500)
    assert resolved(recipe="dinov2_vits16_released", batch=500, scope="global").loss.scope == "global"
    loss = make_loss(resolved(recipe="dinov2_vits16_released", prototypes=8))
    assert isinstance(loss, DINOv2) and loss.shard_size == 64
    whole = make_loss(resolved(SMALL, method="dinov2", prototypes=8))
    assert isinstance(whole, DINOv2) and whole.shard_size is None


def test_these_are_all_the_names() -> None:
    assert {f"{m}_{shape}{suffix}" for m in PUBLISHED for shape in SHAPES for suffix in ("", "_released")} == set(
        named_presets()
    )


@pytest.mark.parametrize("name", named_presets())
def test_every_named_recipe_can_be_described_and_read_back(name: str) -> None:
    config = resolved(recipe=name)
    assert read_config(config.as_dict()) == config
    assert any(config.run.method in line for line in describe(config))
    assert not without_effect(Options(recipe=name), config)


@pytest.mark.parametrize(
    ("name", "weight"), [("simdino_vitb16_released", 1 / 512 + 1 / 256), ("simdino_vitb16", sqrt(0.05 * 1024) / 256)]
)
def test_the_weight_of_the_rate_is_the_sources(name: str, weight: float) -> None:
    loss = make_loss(resolved(recipe=name))
    assert isinstance(loss, SimDINO) and loss.weight == pytest.approx(weight, rel=1e-12)


def test_the_released_runs_can_reach_the_rate_that_their_shards_allow() -> None:
    """gamma times the largest R, 0.450 for 64 x 8 and 0.560 for 128 x 8: docs/parity.md has the formula."""
    for name, largest in (("simdino_vitb16_released", 0.4496), ("simdinov2_vitb16_released", 0.5599)):
        loss = make_loss(resolved(recipe=name))
        assert isinstance(loss, SimDINO) and loss.weight * loss.ceiling == pytest.approx(largest, abs=1e-4)


@pytest.mark.parametrize(("method", "lr"), [("simdino", 5e-4), ("simdinov2", 2e-3), ("dino", 5e-4), ("dinov2", 2e-3)])
def test_the_rate_follows_the_batch_by_the_rule_of_its_source(method: str, lr: float) -> None:
    """Linearly from 5e-4 at 256 (DINO), by the square root from 4e-3 at 1024 (DINOv2)."""
    assert resolved(recipe=f"{method}_vits16", batch=256).optim.lr == pytest.approx(lr, rel=1e-12)
    assert resolved(recipe=f"{method}_vits16", batch=256, lr=0.7).optim.lr == 0.7
