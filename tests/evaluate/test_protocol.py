"""A protocol is one function: its command, its options, its checks and its line in a run's folder are made from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch

import simdino as sd
from run_metadata import write_metadata
from simdino.cli import main
from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.data.base import Source
from simdino.data.sources import open_dataset
from simdino.evaluate import PROTOCOLS, Protocol
from simdino.evaluate.layouts import IMAGES
from simdino.evaluate.protocol import as_protocol
from simdino.feedback import Log, to_stderr
from simdino.keywords import AT_LEAST_1, Option, keywords
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder
from simdino.models.weights import save_encoder
from simdino.result import Result


@dataclass(frozen=True, kw_only=True)
class Brightness(Result):
    """The mean of a few images."""

    mean: float
    images: int
    broken: dict[str, str]

    def __str__(self) -> str:
        return f"{self.mean:.3f} in {self.images} images"


@as_protocol(IMAGES, example="brightness runs/photos --data photos/")
def brightness(
    encoder: Encoder, data: Source, *,
    count: Annotated[int, Option("Images looked at.", AT_LEAST_1)] = 3,
    sides: Annotated[tuple[int, ...], Option("Sides in pixels.", AT_LEAST_1)] = (),
    unit: Annotated[Literal["levels", "share"], Option("Of the mean.")] = "levels",
    out: Annotated[Path | None, Option("A file.", result=False)] = None,
    scale: float = 1.0, log: Log = to_stderr,
) -> Brightness:  # fmt: skip
    """How bright images are.

    What follows is for Python."""
    log(f"on {encoder.device}, sides {sides}, out {out!r}")
    values = [float(data.read(i, encoder.in_chans).double().mean()) for i in range(count)]
    mean = scale * sum(values) / count / (255 if unit == "share" else 1)
    return Brightness(mean=mean, images=count, broken={"torn.png": "half"})


@pytest.fixture(autouse=True)
def toy() -> Iterator[Protocol]:
    """The toy among the protocols."""
    PROTOCOLS["brightness"] = brightness
    yield brightness
    del PROTOCOLS["brightness"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(0)
    preprocess = Preprocess(resize=8, crop=8, channels=1, mean=(0.5,), std=(0.3,))
    save_encoder(
        make_encoder(EncoderConfig(name="vit_toy", image_size=8, patch_size=4), preprocess),
        folder / "encoder.safetensors",
    )
    write_metadata(folder, "digits")
    return folder


def called(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        main(["evaluate", *map(str, words)])
    except SystemExit as end:
        return int(end.code or 0), *capsys.readouterr()
    return 0, *capsys.readouterr()


def test_help_is_made_from_the_signature(capsys: pytest.CaptureFixture[str]) -> None:
    assert "brightness  How bright images are." in called(capsys, "--help")[1]
    code, out, _ = called(capsys, "brightness", "--help")
    told = " ".join(out.split())
    assert code == 0 and "What follows" not in told and "--scale" not in told and "--train" not in told
    for part in (
        "--count INTEGER Images looked at. [default: 3]", "--unit [levels|share] Of the mean. [default: levels]",
        "--data TEXT Images; no labels are read. [default: what the run was trained on]", "--device TEXT",
        "--positions", "--json", "Example: simdino evaluate brightness runs/photos --data photos/",
    ):  # fmt: skip
        assert part in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--cuont 3", "Did you mean one of: '--count'"), ("--count 0", "--count 0 must be 1 or more"),
        ("--count few", "'few' is not a valid integer"), ("--unit levls", "did you mean levels?"),
        ("--sides 8,16,8", "--sides 8 is given twice"), ("--sides 8 --sides 0", "must be 1 or more"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(words: str, message: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = called(capsys, "brightness", run, *words.split())
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err, err


def test_the_command_prints_json_names_the_broken_and_keeps_the_result(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--count", 2, "--sides", "8,16", "--sides", 4, "--out", "x.txt", "--device", "cpu")
    code, out, err = called(capsys, "brightness", run, *words, "--json")
    assert code == 0, err
    assert err.splitlines() == ["on cpu, sides (8, 16, 4), out PosixPath('x.txt')", "left out torn.png: half"]
    (row,) = map(json.loads, (run / "evaluations.jsonl").read_text().splitlines())
    assert json.loads(out) == row["results"]
    assert (row["protocol"], row["data"], row["trained_on"]) == ("brightness", "digits", True)
    assert row["settings"] == {"count": 2, "sides": [8, 16, 4], "unit": "levels"}


def test_names_and_objects_give_the_same(run: Path) -> None:
    said: list[str] = []
    named = brightness(run, "digits", count=4, unit="share", log=said.append)
    encoder, images = sd.load_encoder(run), open_dataset("digits")
    assert brightness(encoder, images, count=4, unit="share", log=said.append) == named
    assert brightness(run, count=4, unit="share", scale=2.0, log=said.append).mean == pytest.approx(2 * named.mean)
    assert str(named) == named.lines()[0] and named.as_dict()["images"] == 4
    assert len(kept(run)) == 1  # the object has no run, and what Python alone says is no setting


def kept(run: Path) -> list[str]:
    return (run / "evaluations.jsonl").read_text().splitlines()


def test_python_is_told_of_its_mistakes_in_one_line(run: Path) -> None:
    for settings, message in (
        ({"cuont": 1}, "brightness has no setting 'cuont'; did you mean count?"),
        ({"count": 0}, "--count 0 must be 1 or more"), ({"unit": "parsec"}, "--unit 'parsec' must be levels or share"),
        ({"count": 1.5}, "--count 1.5 must be a whole number"), ({"sides": [8, 8]}, "--sides 8 is given twice"),
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            brightness(run, "digits", **settings)  # pyright: ignore
        assert str(caught.value).startswith(message)
    with pytest.raises(InputError, match="brightness needs data"):
        brightness(sd.load_encoder(run))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_declares_all_of_its_options(name: str) -> None:
    protocol = PROTOCOLS[name]
    assert protocol.name == name and getattr(sd.evaluate, name) is protocol
    assert protocol.text.endswith(".") and protocol.example.split()[0] == name
    for keyword in keywords(protocol.function).values():
        assert keyword.option.text.endswith((".", ")")), keyword.name
        assert keyword.default is None or keyword.problem(keyword.default) is None, keyword.name


def test_paths_of_a_result_are_text(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Written(Result):
        out: Path
        more: tuple[Path, ...]

    found = Written(out=tmp_path / "a.json", more=(tmp_path,)).as_dict()
    assert found == {"out": str(tmp_path / "a.json"), "more": [str(tmp_path)]}
