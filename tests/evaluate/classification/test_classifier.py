"""A classifier's file holds everything, and answers as the result it was saved from."""

from __future__ import annotations

import csv
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from coloured import COLOURS, PREPROCESS, both, colours, make
from PIL import Image
from safetensors.torch import save_file

from run_metadata import write_metadata
from simdino.cli import main
from simdino.contracts import InputError
from simdino.evaluate import classify, finetune, linear, load_classifier, logistic, save_classifier
from simdino.evaluate.classification.classify import write_csv
from simdino.evaluate.classification.training import score
from simdino.features.extract import extract
from simdino.feedback import no_bar
from simdino.models.weights import load_encoder, save_encoder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Red, green and blue photographs in folders, with a broken one for training and one held out."""
    for split, each, seed in (("train", 12, 0), ("val", 4, 1)):
        for i, (image, label) in enumerate(zip(colours(each, seed=seed).images, 2 * each * [0, 1, 2], strict=False)):
            folder = tmp_path / "photos" / split / list(COLOURS)[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.png")
        (tmp_path / "photos" / split / "red" / "torn.png").write_bytes(b"no picture")
    return tmp_path / "photos"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    save_encoder(make(), folder / "encoder.safetensors")
    return folder


@pytest.mark.parametrize("name", ["vit", pytest.param("timm:resnet10t", marks=pytest.mark.extra("timm"))])
@pytest.mark.parametrize("task", ["linear", "finetune"])
def test_a_saved_classifier_answers_as_before(name: str, task: str, tmp_path: Path) -> None:
    protocol = {"linear": linear, "finetune": partial(finetune, lr=0.02)}[task]
    given = protocol(make(name), both(), steps=25, batch=16, log=lambda _: None).classifier
    save_classifier(given, tmp_path / "new" / "c.safetensors")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["c.safetensors"]  # nothing left aside
    loaded = load_classifier(tmp_path / "new" / "c.safetensors")
    assert (loaded.classes, loaded.layers) == (given.classes, given.layers)
    assert loaded.encoder.preprocess == PREPROCESS
    source = colours(30, seed=4, spread=150)
    one, two = classify(given, source), classify(loaded, source)
    assert torch.equal(one.ranked, two.ranked) and torch.equal(one.probabilities, two.probabilities)
    assert len(set(one.ranked[:, 0].tolist())) > 1
    encoder = load_encoder(tmp_path / "new" / "c.safetensors")  # the encoder alone, for other protocols
    assert torch.equal(extract(encoder, source).vectors, extract(given.encoder, source).vectors)


def test_its_accuracy_is_the_one_reported() -> None:
    train, validation = both()
    source = colours(20, seed=4, spread=170)
    encoder = make()
    heads = {
        "linear": linear(encoder, (train, source), steps=30, batch=16),
        "logistic": logistic(encoder, (train, source), grid=4),
        "finetune": finetune(encoder, (train, source), steps=10, batch=16),
    }
    for name, result in heads.items():
        predicted = classify(result.classifier, source)
        right = predicted.ranked[:, 0].numpy() == source.labels
        assert 100 * right.mean() == pytest.approx(result.top1), name
    assert len(validation)


def test_probabilities_are_a_softmax_and_ranked() -> None:
    classifier = linear(make(), both(), steps=5, batch=16).classifier
    found = classify(classifier, colours(5, seed=1))
    assert found.ranked.shape == (15, 3)
    assert torch.allclose(found.probabilities.sum(1), torch.ones(15))
    assert torch.equal(found.probabilities.sort(1, descending=True).values, found.probabilities)
    (top1,), (top5,) = score(
        classifier.each, colours(5, seed=1), classifier.encoder, workers=0, progress=no_bar, broken={},
    )  # fmt: skip
    assert top1 == pytest.approx(100 * (found.ranked[:, 0].numpy() == np.arange(15) % 3).mean())
    assert top5 == 100


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0), *capsys.readouterr()
    return 0, *capsys.readouterr()


TASKS = {
    "linear": "--steps 40 --batch 12",
    "logistic": "--grid 3 --shots 1,2 --percent 50 --draws 2",
    "finetune": "--steps 30 --batch 12 --lr 0.1",
}


@pytest.mark.parametrize("task", TASKS)
def test_the_commands_score_keep_save_and_classify(
    task: str, run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_metadata(run, str(photos))
    out = tmp_path / "c.safetensors"
    code, text, said = call(capsys, "evaluate", task, run, *TASKS[task].split(), "--out", out, "--json")
    assert code == 0, said
    shown = json.loads(text)
    assert (shown["all"] if task == "logistic" else shown)["top1"] == 100
    assert said.count("left out") == 2 and "left out val/red/torn.png" in said
    (line,) = (run / "evaluations.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert (row["protocol"], row["data"], row["trained_on"]) == (task, "photos", True)
    assert row["results"] == shown

    code, text, said = call(capsys, "classify", out, photos / "val", "--out", tmp_path / "p.csv")
    assert (code, said.count("left out")) == (0, 1)
    assert text == f"12 images: 4 blue, 4 green, 4 red; written to {tmp_path / 'p.csv'}\n"
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert list(rows[0]) == [
        "path", "class", "probability", "class_2", "probability_2", "class_3", "probability_3",
    ]  # fmt: skip
    assert all(row["path"].split("/")[0] == row["class"] for row in rows)
    assert len(rows) == 12


def test_names_of_all_kinds_survive_in_the_table(tmp_path: Path) -> None:
    classifier = linear(make(), both(), steps=1, batch=16).classifier
    source = colours(1, seed=0)
    source.names = ["a,b.png", 'say "x".png', "caf\udce9.png"]
    write_csv(classify(classifier, source), tmp_path / "p.csv")
    assert [row["path"] for row in csv.DictReader((tmp_path / "p.csv").open())] == [
        "a,b.png", 'say "x".png', r"caf\xe9.png",
    ]  # fmt: skip


def damaged(path: Path, out: Path, **changes: torch.Tensor) -> Path:
    """A copy of a safetensors file with other tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file(tensors | {name.replace("_", "."): t for name, t in changes.items()}, out, file.metadata())
    return out


def test_mistakes_end_with_one_line(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good.safetensors"
    save_classifier(linear(make(), both(), steps=1, batch=16).classifier, good)
    (tmp_path / "words.safetensors").write_text("no tensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    damaged(good, tmp_path / "short.safetensors", head_bias=torch.zeros(2))
    flat = tmp_path / "flat"
    shutil.copytree(photos / "train" / "blue", flat)
    (tmp_path / "file").write_text("")
    mistakes = {
        f"classify {tmp_path}/nowhere {photos}": "no classifier at",
        f"classify {run}/encoder.safetensors {photos}": "is an encoder without a head: give a classifier",
        f"classify {tmp_path}/words.safetensors {photos}": "is not a readable safetensors file",
        f"classify {tmp_path}/foreign.safetensors {photos}": "is no file of ours: give a classifier",
        f"classify {tmp_path}/short.safetensors {photos}": "is damaged: (3, 32) and (2,) for 3 classes",
        f"classify {good} {tmp_path}/nothing": "there is no file or folder",
        f"classify {good} {photos} --out {tmp_path}/file/p.csv": "cannot be written",
        f"evaluate linear {run} --data {flat}": "linear needs labels of at least two classes, and flat has none",
        f"evaluate logistic {run} --data {flat}": "logistic needs labels",
        f"evaluate finetune {run} --data {flat}": "finetune needs labels",
        f"evaluate logistic {run} --data {photos} --shots 13": "--shots 13 must be between 1 and 12",
        f"evaluate logistic {run} --data {photos} --shots few": "'few' is not a valid integer",
        f"evaluate logistic {run} --data {photos} --shots 0": "--shots 0 must be 1 or more",
        f"evaluate logistic {run} --data {photos} --percent 150": "--percent 150.0 must be above 0",
        f"evaluate linear {run} --data {photos} --protocol dinov": "did you mean dinov2?",
        f"evaluate linear {run} --data {photos} --out {tmp_path}/c.pt": "must end in .safetensors",
        f"evaluate linear {run} --data {photos} --out {tmp_path}/file/c.safetensors": "cannot be written",
        f"evaluate linear {run} --data {photos} --epochs 1 --steps 1": "give one of --steps and --epochs",
    }
    for words, message in mistakes.items():
        code, text, said = call(capsys, *words.split())
        assert (code, text, said.count("\n")) == (2, "", 1), (words, said)
        assert message in said, (words, said)
    with pytest.raises(InputError, match="no readable image"):
        (tmp_path / "torn").mkdir()
        (tmp_path / "torn" / "a.png").write_bytes(b"no picture")
        classify(load_classifier(good), tmp_path / "torn")
