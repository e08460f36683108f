"""Photographs are evaluated decoded whole, as Pillow and torchvision prepare them, unless asked otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor
from torchvision import transforms as tv
from torchvision.transforms import InterpolationMode

from simdino.cli import cli
from simdino.config import EncoderConfig, ViewsConfig
from simdino.contracts import Preprocess
from simdino.data.loader import Batches
from simdino.data.sources import FileSource, open_dataset
from simdino.data.survey import ENOUGH
from simdino.data.views import resize
from simdino.evaluate.classification.training import Length, batches
from simdino.evaluate.monitor import Monitor
from simdino.features.extract import centre, embed, prepared
from simdino.models.catalogue import make_encoder
from simdino.models.weights import save_encoder

PREPROCESS = Preprocess(resize=36, crop=32, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
SHAPES = [(1024, 1283), (1366, 1024), (301, 403), (1090, 3001)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, (height, width) in enumerate(SHAPES):
        coarse = np.random.default_rng(number).integers(0, 255, (height // 150, width // 150, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        picture.save(folder / "ab"[number % 2] / f"{number}.jpg", quality=90)
    return folder


def by_torchvision(path: Path) -> Tensor:
    steps = [tv.Resize(PREPROCESS.resize, InterpolationMode.BICUBIC), tv.CenterCrop(PREPROCESS.crop), tv.PILToTensor()]
    with Image.open(path) as picture:
        shown: Tensor = tv.Compose(steps)(picture)  # pyright: ignore[reportAssignmentType]
    return shown


def differences(folder: Path, *, reduced: bool) -> Tensor:
    """Of each image from what the official evaluations give an encoder, in levels of 255."""
    source = open_dataset(folder)
    _, images, _ = next(prepared(source, PREPROCESS, reduced=reduced))
    wanted = torch.stack([by_torchvision(folder / name) for name in source.names])
    return (images.int() - wanted.int()).abs().float()


def test_showns_are_pillows_within_a_level(photos: Path) -> None:
    assert differences(photos, reduced=False).max() <= 1


def test_reduced_ones_are_near_them(photos: Path) -> None:
    each, exact = (differences(photos, reduced=flag).mean((1, 2, 3)) for flag in (True, False))
    assert each.max() < 2.5 and (each > 2 * exact).all(), (each, exact)


def test_a_reduced_picture_is_brought_to_the_size_of_the_whole_one() -> None:
    """Half of 1919 x 1001 is 960 x 501, whose long side at a short one of 36 px would be 68 px in place of 69."""
    half = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 501, 960), dtype=np.uint8))
    assert (36 * 1919 // 1001, 36 * 960 // 501) == (69, 68)
    wanted = resize(half, (36, 69))[:, 2:34, 18:50]
    assert torch.equal(centre(half, PREPROCESS, sides=(1001, 1919)), wanted)
    assert not torch.equal(centre(half, PREPROCESS), wanted)


class Watched:
    """Notes how large the images were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: set[int | None] = set()
        read = FileSource.read

        def noted(source: FileSource, i: int, channels: int | None = None, *, at_least: int | None = None) -> Tensor:
            self.asked.add(at_least)
            return read(source, i, channels, at_least=at_least)

        monkeypatch.setattr(FileSource, "read", noted)


def test_heads_train_on_whole_photographs_and_encoders_on_reduced_ones(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, length = open_dataset(photos), Length(batch=4, steps=1, steps_per_epoch=1)
    watched = Watched(monkeypatch)
    encoder = make_encoder(EncoderConfig(name="vit_nano", image_size=32, patch_size=8), PREPROCESS)
    next(batches(source, encoder, length, seed=0, workers=0, broken={}))
    assert watched.asked == {None}
    watched.asked.clear()
    monitor = Monitor(source, source, bank=4, queries=4, labels=False, precision="float32", workers=0)
    monitor(encoder)
    assert watched.asked == {72, ENOUGH}  # what it scores, and how far the images themselves differ
    watched.asked.clear()
    _ = Batches(source, ViewsConfig(local_views=0, global_size=32), batch=2, channels=3, seed=0)[0]
    assert watched.asked == {59}  # 32 px of the smallest crop's side, √(0.4 · 3/4) of the picture's


@pytest.mark.parametrize("words", [["embed", "ENCODER", "DATA"], ["evaluate", "knn", "ENCODER", "--leave-one-out"]])
def test_the_commands_decode_whole_unless_asked(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    weights = tmp_path / "e.safetensors"
    save_encoder(make_encoder(EncoderConfig(name="vit_nano", image_size=32, patch_size=8), PREPROCESS), weights)
    given = [{"ENCODER": str(weights), "DATA": str(photos)}.get(word, word) for word in words]
    given += ["--data", str(photos), "--k", "1", "--no-baselines"] if "knn" in words else []
    watched = Watched(monkeypatch)
    for reduced, expected in ([], {None}), (["--reduced"], {72}):
        result = CliRunner().invoke(cli, [*given, *reduced], catch_exceptions=False)
        assert result.exit_code == 0 and watched.asked == expected, result.output
        watched.asked.clear()


def test_embed_tells_reduced_features_from_whole_ones(photos: Path) -> None:
    torch.manual_seed(0)
    encoder = make_encoder(EncoderConfig(name="vit_nano", image_size=32, patch_size=8), PREPROCESS).eval()
    whole, reduced = (embed(encoder, photos, reduced=flag).vectors for flag in (False, True))
    assert whole.shape == reduced.shape and not torch.equal(whole, reduced)
