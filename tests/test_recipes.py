"""What a run takes by its method, its encoder and the machine; and words that contradict one another are refused."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from typing import Any

import pytest
import torch

from simdino.config import Config
from simdino.contracts import InputError
from simdino.data.survey import DatasetStatistics
from simdino.losses.dino import DINO
from simdino.losses.dinov2 import DINOv2
from simdino.losses.simdino import SimDINO
from simdino.losses.simdinov2 import SimDINOv2
from simdino.methods import METHODS as KNOWN
from simdino.methods import check_config, make_loss
from simdino.methods.dino import PrototypeConfig
from simdino.methods.simdino import RateConfig
from simdino.options import Options
from simdino.plan import without_effect
from simdino.recipes import named_presets, preset_for, resolve, workers_for

METHODS = list(KNOWN)
PUBLISHED = [name for name, method in KNOWN.items() if method.recipes]
RATED = [name for name, method in KNOWN.items() if method.settings is RateConfig]
PROTOTYPES = [name for name, method in KNOWN.items() if method.settings is PrototypeConfig]
AS_USUAL = {"optim.optimizer", "optim.teacher", "projector.layers"}  # where SimDINO has its own
CHANGES = {
    "simdino": set(),
    "simdinov2": {"views.mask_share", "encoder.mask_token", *AS_USUAL},
    "dino": {"projector.prototypes", "optim.lr", *AS_USUAL},
    "dinov2": {
        "views.mask_share", "encoder.mask_token", "projector.prototypes", "projector.train_lengths",
        "optim.temperature", *AS_USUAL,
    },
}  # fmt: skip
"""What a method changes of the settings that follow the images."""
IMAGENET = DatasetStatistics(
    images=1_281_167, read=1000, broken={}, channels=3, short_side=375, long_side=500, smallest=60,
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), labels=1000, class_counts={},
)  # fmt: skip
SMALL = dataclasses.replace(IMAGENET, images=5000, short_side=28, long_side=28)


def resolved(statistics: DatasetStatistics = IMAGENET, **words: Any) -> Config:
    return resolve("images", Options(**words), statistics=statistics)


def check(config: Config, expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        group, field = name.split(".")
        found = getattr(getattr(config, group), field)
        assert found == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), name


# --- methods without a name -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistics", [IMAGENET, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("method", CHANGES)
def test_a_method_changes_masks_heads_loss_schedules_and_no_more(statistics: DatasetStatistics, method: str) -> None:
    base, config = resolved(statistics).as_dict(), resolved(statistics, method=method).as_dict()
    changed = {
        f"{group}.{field}"
        for group in base
        for field in base[group].keys() & config[group].keys()
        if base[group][field] != config[group][field]
    }
    slower = {"optim.momentum"} if statistics is SMALL and method in PROTOTYPES else set()  # a short run
    assert changed - {"run.method"} == CHANGES[method] | slower


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_its_own_settings_of_the_loss(method: str) -> None:
    assert type(resolved(SMALL, method=method).loss) is KNOWN[method].settings


@pytest.mark.parametrize(
    ("method", "kind"), [("simdino", SimDINO), ("simdinov2", SimDINOv2), ("dino", DINO), ("dinov2", DINOv2)]
)
def test_a_method_is_its_objective_with_the_sizes_of_the_run(method: str, kind: type) -> None:
    words = {"prototypes": 96, "centering": "sinkhorn"} if method in PROTOTYPES else {"eps": 0.4, "scope": "shards"}
    config = resolved(SMALL, method=method, batch=128, local_views=3, **words)
    loss = make_loss(config, torch.device("cpu"))
    assert type(loss) is kind
    assert (loss.batch, loss.dim, loss.global_views, loss.local_views) == (
        128,
        128 if method == "simdino" else 256,
        2,
        3,
    )
    if isinstance(loss, DINO):
        assert (loss.prototypes, loss.centering) == (96, "sinkhorn")
        assert all(value.shape == (96,) for value in loss.buffers.values())
        assert len(loss.buffers) == (2 if method == "dinov2" else 1)
    else:
        assert isinstance(loss, SimDINO)
        assert (loss.eps, loss.scope, loss.shards) == (0.4, "shards", 2) and not loss.buffers


@pytest.mark.parametrize("method", METHODS)
def test_words_of_all_methods_are_taken(method: str) -> None:
    config = resolved(SMALL, method=method, teacher="none", momentum=0.5, drop_path=0.2, layer_decay=0.7, lr=0.1)
    check(config, {
        "optim.teacher": "none", "optim.momentum": 0.5, "encoder.drop_path": 0.2, "optim.layer_decay": 0.7,
        "optim.lr": 0.1,
    })  # fmt: skip


def test_words_of_prototypes_are_taken() -> None:
    config = resolved(SMALL, method="dinov2", prototypes=33, centering="sinkhorn", teacher_temperature=0.06)
    check(config, {
        "projector.prototypes": 33, "loss.centering": "sinkhorn", "optim.temperature": (0.04, 0.06),
    })  # fmt: skip
    colder = resolved(SMALL, method="dinov2", teacher_temperature=0.03)
    assert colder.optim.temperature == (0.03, 0.03), "a temperature never falls"


# --- refusals -------------------------------------------------------------------------------------------------------


def refused(**words: Any) -> str:
    with pytest.raises(InputError) as caught:
        resolved(**words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("recipe", named_presets())
def test_a_method_that_contradicts_a_recipe_is_refused(recipe: str) -> None:
    own = recipe.split("_", maxsplit=1)[0]
    assert resolved(recipe=recipe, method=own) == resolved(recipe=recipe)
    for method in METHODS:
        if method != own:
            said = refused(recipe=recipe, method=method)
            assert said == f"--method {method} contradicts --recipe {recipe}, which is {own}"


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    assert refused(recipe="simdino_vits14").endswith("; did you mean simdino_vits16?")


RATE_WORDS = {"eps": 0.3, "gamma": "theorem", "rho": 2.0, "scope": "shards", "patch_rate": 0.5}
PROTOTYPE_WORDS = {"centering": "sinkhorn", "prototypes": 100, "teacher_temperature": 0.05}
FOREIGN = [(method, word) for method in PROTOTYPES for word in RATE_WORDS if (method, word) != ("dinov2", "scope")]
FOREIGN += [(method, word) for method in RATED for word in PROTOTYPE_WORDS]


@pytest.mark.parametrize(("method", "word"), FOREIGN)
@pytest.mark.parametrize("by", ["method", "recipe"])
def test_words_of_the_other_family_are_refused(by: str, method: str, word: str) -> None:
    chosen = {"method": method} if by == "method" else {"recipe": f"{method}_vits16"}
    said = refused(**chosen, **{word: (RATE_WORDS | PROTOTYPE_WORDS)[word]})
    assert said == f"--{word.replace('_', '-')} has no meaning for --method {method}: leave it out"


def test_a_rate_of_patches_is_refused_where_patches_have_no_loss() -> None:
    assert "--patch-rate has no meaning for --method simdino" in refused(method="simdino", patch_rate=0.5)
    assert resolved(method="simdinov2", patch_rate=0.5).loss.patch_rate == 0.5


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"method": "dino", "prototypes": 1}, "--prototypes 1 must be 2 or more"),
        ({"method": "dinov2", "teacher_temperature": 0.0}, "--teacher-temperature 0.0 must be above 0"),
        ({"method": "dinov2", "teacher_temperature": float("nan")}, "must be above 0"),
        ({"method": "simdinov2", "patch_rate": -1.0}, "--patch-rate -1.0 must be 0 or more"),
        ({"method": "simdinov2", "patch_rate": float("inf")}, "--patch-rate inf must be 0 or more"),
        ({"recipe": "simdino_vits16_released", "batch": 500}, "--batch 500 is not divisible into shards of 64"),
        ({"layer_decay": 0.0}, "--layer-decay 0.0 must be above 0, at most 1"),
        ({"layer_decay": 1.5}, "--layer-decay 1.5 must be above 0, at most 1"),
        ({"freeze_encoder": 1.0}, "--freeze-encoder 1.0 must be 0 or more, below 1"),
    ],
)
def test_values_out_of_range_are_refused(words: dict[str, Any], text: str) -> None:
    assert text in refused(**words)


def test_a_channel_that_is_the_same_in_every_image_is_not_divided_by_nothing() -> None:
    green = dataclasses.replace(SMALL, mean=(0.0, 0.4, 0.0), std=(0.0, 0.3, 0.0))
    assert resolved(green).data.std == (1.0, 0.3, 1.0)


# --- what follows from the machine and from the encoder -------------------------------------------------------------


def test_photos_get_a_run_that_the_machine_can_carry() -> None:
    small, large = (preset_for(500, "simdino", gpu=gpu) for gpu in (False, True))
    assert (small.encoder.name, small.views.global_size, small.views.local_views) == ("conv_nano", 128, 0)
    assert (large.encoder.name, large.views.global_size, large.views.local_views) == ("vit_small", 224, 10)
    assert preset_for(128, "simdino", gpu=False).encoder == preset_for(128, "simdino", gpu=True).encoder
    assert resolved(device="cpu").views.global_size == 128


@pytest.mark.parametrize(("side", "patch"), [(8, 4), (28, 4), (32, 4), (40, 4), (128, 8), (500, 16)])
def test_a_vit_in_place_of_the_default_has_seven_patches_a_side(side: int, patch: int) -> None:
    images = dataclasses.replace(IMAGENET, short_side=side, long_side=side)
    config = resolved(images, encoder="vit_nano", device="cpu")
    assert config.encoder.patch_size == patch and config.views.global_size % patch == 0
    assert config.optim.optimizer == "muon"


@pytest.mark.parametrize(
    ("encoder", "share"), [("conv_nano", 1), ("conv_tiny", 1), ("vit_nano", 0.5), ("crate_nano", 0.5)]
)
def test_what_has_no_norm_after_each_layer_bears_half_of_muons_rate(encoder: str, share: float) -> None:
    lr = [resolved(encoder=encoder, device="cpu", optimizer=optimizer).optim.lr for optimizer in ("adamw", "muon")]
    assert lr[1] == pytest.approx(share * lr[0])
    assert resolved(encoder=encoder, device="cpu", optimizer="muon", lr=0.002).optim.lr == 0.002  # said, so taken


@pytest.mark.extra("timm")
@pytest.mark.parametrize(
    ("encoder", "words", "sizes"),
    [
        ("vit_small_patch14_dinov2", {}, (126, 42)),
        ("vit_small_patch14_dinov2", {"image_size": 224}, (224, 84)),
        ("vit_small_patch16_224", {"image_size": 192}, (192, 64)),
        ("vit_small_patch16_224", {}, (128, 48)),
        ("resnet18", {}, (128, 48)),
    ],
)
def test_crops_are_multiples_of_the_patches_of_a_model_of_timm(
    encoder: str, words: dict[str, Any], sizes: tuple[int, int]
) -> None:
    config = resolved(encoder=encoder, device="cpu", local_views=2, **words)
    assert (config.views.global_size, config.views.local_size) == sizes
    assert config.encoder.image_size == sizes[0]


of_timm = partial(pytest.param, marks=pytest.mark.extra("timm"))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        of_timm({"encoder": "resnet18", "patch_size": 8}, "--patch-size has no effect with timm:resnet18"),
        of_timm({"encoder": "resnet18", "compile": True}, "--compile has no effect with timm:resnet18"),
        ({"encoder": "conv_pico", "compile": True}, "--compile has no effect with conv_pico"),
        of_timm({"encoder": "resnet18", "drop_path": 0.1}, "--drop-path has no effect with timm:resnet18"),
        of_timm({"encoder": "resnet18", "patch_embed": "dual_norm"}, "--patch-embed has no effect with timm:resnet18"),
        ({"encoder": "crate_nano", "patch_embed": "patch"}, "--patch-embed has no effect with crate_nano"),
        ({"teacher": "none", "momentum": 0.9}, "--momentum has no effect with --teacher none"),
    ],
)
def test_a_word_without_effect_is_said(words: dict[str, Any], text: str) -> None:
    assert any(text in line for line in without_effect(Options(**words), resolved(SMALL, **words)))


def test_shares_of_crops_are_checked() -> None:
    config = resolved()
    for scale in ((0.0, 1.0), (0.5, 0.4), (0.5, 1.1)):
        with pytest.raises(InputError, match="global_scale"):
            check_config(dataclasses.replace(config, views=dataclasses.replace(config.views, global_scale=scale)))


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(16, 1, 15), (64, 1, 16), (64, 8, 7), (8, 8, 1), (2, 1, 1)]
)
def test_workers_share_the_cores_of_a_machine_with_gpus(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert workers_for("cuda") == workers
    assert workers_for("cpu") == 0


def test_targets_of_prototypes_get_a_slow_teacher_in_short_runs_too() -> None:
    momenta = {method: resolved(SMALL, method=method, steps=400).optim.momentum for method in CHANGES}
    assert momenta == {"simdino": 0.9, "simdinov2": 0.9, "dino": 0.99, "dinov2": 0.99}
    assert resolved(SMALL, method="dino", steps=20_000).optim.momentum == pytest.approx(0.996)
    assert resolved(SMALL, method="dino", steps=400, momentum=0.9).optim.momentum == 0.9


def test_a_run_too_short_to_warm_up_gets_a_lower_peak() -> None:
    """The rise per step is the same in all runs under 150 steps: the peak of a long run over fifty steps."""
    whole = resolved(SMALL, steps=1000).optim.lr
    assert resolved(SMALL, steps=150).optim.lr == pytest.approx(whole)
    for steps in (15, 60, 120):
        optim = resolved(SMALL, steps=steps).optim
        assert optim.lr / (optim.warmup * steps) == pytest.approx(whole / 50)
    assert resolved(SMALL, steps=15, lr=0.01).optim.lr == 0.01


@pytest.mark.parametrize(
    ("encoder", "layers"), [("conv_pico", 0), ("conv_nano", 0), ("vit_nano", 1), ("hybrid_nano", 1)]
)
def test_an_encoder_that_ends_in_a_linear_layer_needs_no_projector_of_one(encoder: str, layers: int) -> None:
    config = resolved(SMALL, encoder=encoder)
    assert config.projector.layers == layers
    loss, width = make_loss(config), {"conv_pico": 128, "conv_nano": 256, "vit_nano": 192, "hybrid_nano": 256}[encoder]
    assert (loss.dim, loss.rank) == ((256, width + 1) if layers else (width, None))
    assert resolved(SMALL, encoder=encoder, method="dino").projector.layers == 3
    assert resolve("images", Options({"projector.layers": 2}, encoder=encoder), statistics=SMALL).projector.layers == 2


@pytest.mark.extra("timm")
def test_no_projector_in_front_of_a_width_that_is_not_known() -> None:
    with pytest.raises(
        InputError, match=r"projector.layers 0 needs an encoder.name whose width is known .* timm:resnet18"
    ):
        resolve("images", Options({"projector.layers": 0}, encoder="timm:resnet18"), statistics=SMALL)
