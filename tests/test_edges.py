"""Numbers at the edge and options that change nothing: every command answers each in one line."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from math import isinf
from pathlib import Path

import click
import pytest

from simdino import device
from simdino.assembly import check_memory, step_bytes
from simdino.cli import cli, main
from simdino.cli.options import KeywordOption, SettingOption
from simdino.config import Config, EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.data.survey import DatasetStatistics
from simdino.device import present_device
from simdino.features.extract import check_size
from simdino.models.catalogue import make_encoder
from simdino.options import Options
from simdino.plan import without_effect
from simdino.recipes import resolve
from simdino.settings import Range

PHOTOS = DatasetStatistics(
    images=100_000, read=1000, channels=3, short_side=375, long_side=500, smallest=75, mean=(0.5,) * 3, std=(0.2,) * 3,
    labels=0, class_counts={}, broken={},
)  # fmt: skip


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The line that a command ends with."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    said = capsys.readouterr()
    assert (ended.value.code, said.out, said.err.count("\n")) == (2, "", 1), said.err
    return said.err


def options(command: click.Command = cli, *words: str) -> Iterator[tuple[list[str], click.Option]]:
    """Every option of every command, with the words before it."""
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield list(words), parameter
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            below = command.get_command(click.Context(command), name)
            assert below is not None
            yield from options(below, *words, name)


EVERY = [(words, option) for words, option in options() if words]
DECLARED = [(words, one) for words, one in EVERY if isinstance(one, KeywordOption) and one.keyword.bare in (int, float)]


def ids(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else value.opts[0] if isinstance(value, click.Option) else ""


@pytest.mark.parametrize(("words", "option"), EVERY, ids=ids)
def test_no_number_goes_without_a_range(words: list[str], option: click.Option) -> None:
    bare = option.type in (click.INT, click.FLOAT) or isinstance(option.type, click.IntRange | click.FloatRange)
    if isinstance(option, KeywordOption):
        assert option.keyword.bare not in (int, float) or option.keyword.option.range
    else:
        assert not bare or (isinstance(option, SettingOption) and option.setting.first.metadata["range"])


def beyond(allowed: Range, kind: type) -> list[str]:
    """Numbers out of a range."""
    bounds = [allowed.above, allowed.at_least - 1, allowed.below, allowed.at_most + 1]
    found = [f"{bound:.0f}" for bound in bounds if not isinf(bound)] + ["1" + 30 * "0"]
    return found if kind is int else [*found, "nan", "inf", "-inf", "1e300"]


@pytest.mark.parametrize(("words", "option"), DECLARED, ids=ids)
def test_a_declared_number_out_of_its_range_is_one_line(
    words: list[str], option: KeywordOption, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {
        "pretrain": ["digits"], "plan": ["digits"],
        "evaluate": ["encoder", "--data", "digits"], "show": ["encoder", "digits", "--out", "x"],
        "export": ["encoder", "--to", "torch", "--out", "x"],
    }  # fmt: skip
    allowed = option.keyword.option.range
    assert allowed is not None
    for value in beyond(allowed, option.keyword.bare):
        said = refused(capsys, *words, *places.get(words[0], ["encoder", "digits"]), option.opts[0], value)
        assert option.opts[0] in said and str(allowed) in said


@pytest.mark.parametrize(
    "words",
    [
        "evaluate knn encoder --k 5 --k 5", "evaluate retrieve encoder --k 1 --k 5 --k 1",
        "evaluate logistic encoder --shots 1,1", "evaluate logistic encoder --percent 1,10,1.0",
    ],
)  # fmt: skip
def test_the_same_number_twice_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is given twice" in refused(capsys, *words.split())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["pretrain", "digits", "--encoder", ""], "--encoder"),
        (["pretrain", "digits", "--out="], "--out="),
        (["pretrain", ""], "pretrain"),
        (["evaluate", "knn", ""], "knn"),
        (["embed", "x", "y", "--out", ""], "--out"),
        (["show", "neighbours", "x", "y", "--bank", ""], "--bank"),
    ],
)
def test_an_empty_word_is_refused(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"what follows {named} is empty" in refused(capsys, *words)


@pytest.mark.parametrize("name", ["cpu:7", "cpu:1", "mps:3", "cuda:99", "cpu:-1", "", "meta"])
def test_a_device_that_is_not_here_is_one_line(name: str) -> None:
    with pytest.raises(InputError, match=f"--device .*{name}"):
        present_device(name)


def test_the_first_device_has_one_name() -> None:
    assert present_device("cpu:0") == present_device("cpu") == "cpu"


WITHOUT_EFFECT = {
    "--patch-embed has no effect with crate_nano": {"encoder": "crate_nano", "patch_embed": "dual_norm"},
    "--micro-batch has no effect: the batch of 8": {"batch": 8, "micro_batch": 9},
    "--patch-rate has no effect with timm:resnet18": {"encoder": "resnet18", "method": "simdinov2", "patch_rate": 0.5},
    "--evaluate-every has no effect: the run ends after 5": {"steps": 5, "evaluate_every": 50},
    "--checkpoint-every has no effect": {"steps": 50, "evaluate_every": 20, "checkpoint_every": 50},
    "--method dinov2 trains without masks here": {"encoder": "resnet18", "method": "dinov2"},
}


@pytest.mark.parametrize("said", WITHOUT_EFFECT)
def test_a_word_that_changes_nothing_is_said(said: str) -> None:
    if "timm" in said or "masks" in said:
        pytest.importorskip("timm")
    options = Options(**WITHOUT_EFFECT[said])
    assert [line for line in without_effect(options, resolve("digits", options)) if said in line]


def test_a_micro_batch_no_smaller_than_the_part_of_a_process_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(batch=64, micro_batch=32)
    config = resolve("digits", options)
    assert not without_effect(options, config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert any("--micro-batch has no effect: the batch of 32" in line for line in without_effect(options, config))


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [{"image_size": 60_000}, {"image_size": 4096, "local_views": 1000}, {"method": "dino", "prototypes": 2**26}],
)
def test_a_step_that_no_memory_holds_is_refused_before_anything_is_made(
    words: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "memory_of", lambda _: 64e9)
    config = resolve("digits", Options(device="cpu", batch=1024, **words))
    with pytest.raises(InputError) as caught:
        import_module("simdino.pretraining").pretrain(config, tmp_path / "run")
    assert "GB" in str(caught.value) and "\n" not in str(caught.value)
    for name, value in words.items():
        if name != "method":
            assert f"--{name.replace('_', '-')} {value}" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["simdino_vits16", "dinov2_vitl16", "simdinov2_vitb16_released"])
def test_published_recipes_fit_the_gpus_they_are_for(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setattr(device, "memory_of", lambda _: 80e9)
    config = resolve(
        "photos", Options(recipe=recipe, batch=1024, device="cpu", precision="bfloat16"), statistics=PHOTOS
    )
    check_memory(config)


def test_containers_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = device.memory_of("cpu")
    for text, expected in (("max\n", whole), ("1000000\n", 1e6), (f"{2**63 - 4096}\n", whole)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(device, "LIMITS", (str(tmp_path / "memory.max"), str(tmp_path / "absent")))
        assert device.memory_of("cpu") == expected


def measured(config: Config) -> float:
    """Bytes that one step really keeps: the views, the weights and their companions, and what autograd saves."""
    import torch

    from simdino.assembly import build
    from simdino.train.parallel import Processes

    parts = build(config, Processes())
    views, _ = next(parts.loader.steps(0, 1))
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        both = [
            parts.state.student.encoder(one.flatten(0, 1))
            for one in (views.global_views, views.local_views)
            if one is not None
        ]
        assert both
    pixels = sum(one.numel() for one in (views.global_views, views.local_views) if one is not None)
    weights = sum(p.numel() for p in parts.state.student.parameters())
    return 5 * pixels + 20 * weights + sum(kept.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        {"encoder": "vit_pico", "patch_size": 2}, {"encoder": "crate_nano", "patch_size": 2}, {"encoder": "conv_pico"},
        {"encoder": "vit_pico", "patch_size": 2, "method": "dinov2", "local_views": 2},
    ],
)  # fmt: skip
def test_the_estimate_is_below_what_a_step_holds(words: dict) -> None:
    config = resolve("digits", Options(batch=16, device="cpu", precision="float32", **words))
    needed, held = sum(step_bytes(config).values()), measured(config)
    assert held / 20 < needed <= held


def test_a_size_that_no_memory_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess = Preprocess(resize=8, crop=8, channels=1, mean=(0.5,), std=(0.5,))
    encoder = make_encoder(EncoderConfig(name="vit_pico", image_size=8, patch_size=2, drop_path=0.0), preprocess)
    monkeypatch.setattr(device, "memory_of", lambda _: 16e9)
    for size in (None, 8, 128):
        check_size(encoder, size, images=2, pairs=True)
    for size, pairs, images in ((65_536, False, 1), (1024, True, 1), (2048, False, 64)):
        with pytest.raises(InputError, match=rf"^--size {size}: needs .* GB of memory or more"):
            check_size(encoder, size, pairs=pairs, images=images)
