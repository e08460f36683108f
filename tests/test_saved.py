"""A run folder that was cut, edited by hand or written by something else: one line names the field and the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from run_metadata import some_config, write_metadata
from simdino.cli import main
from simdino.config import Config
from simdino.contracts import InputError, Preprocess
from simdino.evaluate.classification.classifier import Classifier, load_classifier, save_classifier
from simdino.features.readout import Layers
from simdino.models.catalogue import make_encoder
from simdino.models.weights import load_encoder, save_encoder
from simdino.runs.evaluations import keep_result, metadata_of
from simdino.saved import is_run, read_metadata, read_rows

NO_JSON = {
    "empty": "", "cut": '{"config": {"data": {"ro', "null": "null", "a list": "[]", "a number": "3", "a text": '"x"',
    "an object without anything": "{}", "no config": '{"data": {"name": "x"}}',
    "config null": '{"config": null, "data": {}}',
    "config a list": '{"config": [], "data": {}}', "bytes": "\x00\xff", "endless": "[" * 100_000, "nan": "NaN",
}  # fmt: skip

EDITS: dict[str, tuple[Any, str]] = {
    "views.flip": (9, "views.flip 9 must be 0 or more, at most 1"),
    "views.hue": (0.7, "views.hue 0.7 must be 0 or more, at most 0.5"),
    "views.blur_sigma": ([2.0, 1.0], "views.blur_sigma must rise, not go from 2.0 to 1.0"),
    "views.global_scale": ([0.5], "views.global_scale (0.5,) must be 2 numbers"),
    "views.local_views": (-1, "views.local_views -1 must be 0 or more"),
    "loss.shard_size": (0, "loss.shard_size 0 must be 1 or more"),
    "loss.gamma": ("balancd", "loss.gamma 'balancd' must be a number or balanced or theorem or released"),
    "optim.weight_decay": ("0.04", "optim.weight_decay '0.04' must be a number"),
    "optim.lr": (1e30, "optim.lr 1e+30 must be above 0, at most 10"),
    "run.method": ("dino", "loss has an unknown 'eps'"),
    "run.steps": (True, "run.steps True must be a whole number"),
    "run.seed": (2**64, "run.seed 18446744073709551616 must be 0 or more, below 9223372036854775808"),
    "encoder.patch_size": (0, "encoder.patch_size 0 must be 1 or more"),
    "encoder.name": (["vit"], "encoder.name ('vit',) must be a text"),
    "data.mean": ([], "data.mean and data.std must be one number for each of 1 channels"),
    "data.root": (None, "data.root null must be a text"),
    "speed.workers": (-1, "speed.workers -1 must be 0 or more"),
    "speed.device": (0, "speed.device 0 must be a text"),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with config.json, metrics.jsonl and an encoder."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_metadata(folder, "digits", train_images=1437)
    (folder / "metrics.jsonl").write_text('{"step": 0, "feature_rank": 2.5}\n')
    config = some_config()
    preprocess = Preprocess(resize=8, crop=8, channels=1, mean=(0.5,), std=(0.5,))
    save_encoder(make_encoder(config.encoder, preprocess), folder / "encoder.safetensors")
    return folder


def edit(run: Path, place: str, value: Any) -> None:
    content = json.loads((run / "config.json").read_text())
    group, name = place.split(".")
    content["config"][group][name] = value
    (run / "config.json").write_text(json.dumps(content))


def refused(read: Callable[..., object], *given: object) -> str:
    with pytest.raises(InputError) as caught:
        read(*given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_facts_come_back_as_they_were(run: Path) -> None:
    metadata = read_metadata(run)
    assert metadata.config == some_config()
    assert metadata.data == {"name": "digits", "train_images": 1437}
    assert metadata.command == "simdino pretrain"


@pytest.mark.parametrize("kind", NO_JSON)
def test_a_config_json_that_is_none_is_one_line(kind: str, run: Path) -> None:
    (run / "config.json").write_bytes(NO_JSON[kind].encode("latin-1"))
    assert refused(read_metadata, run).startswith(f"{run}/config.json: ")
    assert refused(metadata_of, run).startswith(f"{run}/config.json: ")


@pytest.mark.parametrize("place", EDITS)
def test_an_edited_value_is_named_with_what_it_may_be(place: str, run: Path) -> None:
    value, said = EDITS[place]
    edit(run, place, value)
    message = refused(read_metadata, run)
    assert message.startswith(f"{run}/config.json: ") and said in message
    assert message.endswith("put back what the run was made with, or start a new run")


def every_place(config: Config) -> list[str]:
    return [f"{group}.{name}" for group, fields in config.as_dict().items() for name in fields]


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, [], {}, "", "odd", -1e300, [[1]], {"a": 1}])
def test_whatever_stands_in_a_field_it_is_read_or_refused_in_one_line(value: Any, run: Path) -> None:
    content = (run / "config.json").read_text()
    for place in every_place(some_config()):
        (run / "config.json").write_text(content)
        edit(run, place, value)
        try:
            read_metadata(run)
        except InputError as error:
            assert "\n" not in str(error) and place.split(".")[1] in str(error)


@pytest.mark.parametrize("value", [None, [], "x", 3])
@pytest.mark.parametrize("name", ["data", "command", "machine", "simdino"])
def test_the_other_facts_are_checked_too(name: str, value: Any, run: Path) -> None:
    content = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(content | {name: value}))
    fine = value == "x" if name != "data" else False
    if fine or (value is None and name != "data"):
        read_metadata(run)
    else:
        assert f"{name} " in refused(read_metadata, run)


COMMANDS = {
    "resume": "pretrain --resume {run}",
    "evaluate knn": "evaluate knn {run}",
    "evaluate health": "evaluate health {run} --images 4 --view-images 2 --views 2",
    "checkpoints": "evaluate health {run} --checkpoints",
    "show": "show neighbours {run} digits --count 1 --out {out}",
    "report": "report {run}",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("content", ["", "null", "[]", '{"config": {"run": 3}, "data": {"name": "x"}}'])
def test_every_command_that_needs_a_config_json_refuses_one_that_is_none(
    command: str, content: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.json").write_text(content)
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(SystemExit) as ended:
        main([word.format(run=run, out=tmp_path / "out") for word in COMMANDS[command].split()])
    said = capsys.readouterr()
    assert (ended.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert f"{run}/config.json: " in said.err


def test_scores_are_said_even_where_config_json_is_damaged(run: Path) -> None:
    (run / "config.json").write_text("null")
    said: list[str] = []
    words: dict[str, Any] = {"protocol": "knn", "where": None, "name": "x", "settings": {}, "results": {}, "brief": ""}
    keep_result(run, counted={}, log=said.append, **words)
    assert len(said) == 1 and said[0].startswith(f"the scores are not kept: {run}/config.json: it is null")


def test_a_folder_of_transformers_or_of_nothing_is_no_run(run: Path, tmp_path: Path) -> None:
    assert is_run(run)
    (run / "config.json").write_text('{"model_type": "dinov2"}')
    assert metadata_of(run) is None
    assert metadata_of(tmp_path) is None
    assert "is not a run: it has no config.json" in refused(read_metadata, tmp_path)
    assert "is not a run: give its folder" in refused(read_metadata, run / "metrics.jsonl")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"step": -1}', "step -1 must be 0 or more"),
        ('{"step": "1"}', "step '1' must be a whole number"),
        ('{"loss": 0.5}', "step null must be a whole number"),
        ('{"step": 1, "knn": "high"}', "'knn' is 'high' where a number belongs"),
        ('{"step": 1, "knn": [1]}', "'knn' is [1] where a number belongs"),
        (f'{{"step": 1, "loss": {10**400}}}', "where a number belongs"),
        ("[]", "is not a JSON object"),
        ('{"step": 1, "lo', "is not a JSON object"),
    ],
)
def test_a_damaged_line_of_metrics_is_named_but_the_last_may_be_cut(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 0, "knn": null}}\n{line}\n')
    assert read_rows(path) == [{"step": 0, "knn": None}]
    path.write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    message = refused(read_rows, path)
    assert message.startswith(f"line 2 of {path}") and said in message


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_folder_in_place_of_a_file_is_one_line(name: str, run: Path) -> None:
    (run / name).unlink()
    (run / name).mkdir()
    read = read_metadata if name == "config.json" else read_rows
    assert str(run) in refused(read, run if name == "config.json" else run / name)


def with_metadata(path: Path, **edits: Any) -> Path:
    """The file with other JSON in its metadata."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        about = file.metadata()
    for key, value in edits.items():
        about[key] = value if isinstance(value, str) else json.dumps(json.loads(about[key]) | value)
    save_file(tensors, path, metadata=about)
    return path


PICTURE = {"resize": 8, "crop": 8, "channels": 1, "mean": [0.5], "std": [0.5]}


@pytest.mark.parametrize(
    ("edited", "said"),
    [
        ("", "Expecting value"),
        ("null", "no configuration with encoder and preprocess"),
        ("[" * 100_000, "recursion"),
        ({"encoder": None}, "encoder is null where an object"),
        ({"encoder": {"name": "vit_nano", "patch_size": "4"}}, "encoder.patch_size '4' must be a whole number"),
        ({"encoder": {"name": "vit_nano", "drop_path": 2}}, "encoder.drop_path 2 must be 0 or more, below 1"),
        ({"encoder": {"name": 3}}, "encoder.name 3 must be a text"),
        ({"encoder": {"wings": 2}}, "encoder has an unknown 'wings'"),
        ({"preprocess": {"resize": 8}}, "preprocess has no crop, channels, mean, std"),
        ({"preprocess": PICTURE | {"mean": [0.5, 0.5]}}, "one number for each of 1 channels"),
        ({"preprocess": PICTURE | {"std": [0.0]}}, "preprocess.std (0.0,) must be above 0"),
        ({"preprocess": PICTURE | {"crop": "8"}}, "preprocess.crop '8' must be a whole number"),
        ({"preprocess": PICTURE | {"mean": 0.5}}, "preprocess.mean 0.5 must be numbers"),
    ],
)
def test_metadata_of_an_encoder_that_are_edited_are_one_line(edited: Any, said: str, run: Path) -> None:
    path = with_metadata(run / "encoder.safetensors", simdino_encoder=edited)
    message = refused(load_encoder, path)
    assert str(path) in message and said in message


@pytest.mark.parametrize(
    ("edited", "said"),
    [
        ("null", "head is null where an object"),
        ({"classes": "ab"}, "head.classes 'ab' must be texts"),
        ({"classes": [1, 2]}, "head.classes (1, 2) must be texts"),
        ({"blocks": 0}, "head.blocks 0 must be 1 or more"),
        ({"blocks": 99}, "it reads 99 blocks of"),
        ({"avgpool": "no"}, "head.avgpool 'no' must be true or false"),
        ({"surplus": 1}, "head has an unknown 'surplus'"),
    ],
)
def test_metadata_of_a_classifier_that_are_edited_are_one_line(edited: Any, said: str, run: Path) -> None:
    encoder = load_encoder(run)
    width = encoder.embed_dim
    path = run / "classifier.safetensors"
    given = Classifier(
        encoder=encoder, layers=Layers(), classes=("a", "b"), weight=torch.zeros(2, width), bias=torch.zeros(2)
    )
    save_classifier(given, path)
    message = refused(load_classifier, with_metadata(path, simdino_classifier=edited))
    assert str(path) in message and said in message
