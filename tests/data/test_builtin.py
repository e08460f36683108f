"""Built-in sets, with and without the internet, and arrays in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simdino.contracts import InputError
from simdino.data import builtin
from simdino.data.base import ArraySource
from simdino.data.builtin import fashion_mnist_available
from simdino.data.sources import FileSource, open_dataset


def pixels(height: int = 6, width: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, seed: int = 0, channels: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(channels=channels, seed=seed)).save(path)
    return path


def message(run: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        run()
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and len(text) > 20
    return text


def test_digits() -> None:
    train, val, everything = (open_dataset("digits", split) for split in ("train", "val", "all"))
    assert (len(train), len(val), len(everything)) == (1437, 360, 1797)
    assert {name.split("/")[2] for name in train.names}.isdisjoint(name.split("/")[2] for name in val.names)
    assert train.classes == tuple("0123456789")
    image = everything.read(0)
    assert image.shape == (1, 8, 8) and image.dtype == torch.uint8 and everything.names[0] == "digits/train/0"
    assert image[0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert torch.equal(train.read(0, 3), image.expand(3, 8, 8))


def test_scattered_digits_are_the_digits_drawn_four_times() -> None:
    train, val, everything = (open_dataset("scattered-digits", split) for split in ("train", "val", "all"))
    assert (len(train), len(val), len(everything)) == (4 * 1437, 4 * 360, 4 * 1797)
    plain = open_dataset("digits", "val")
    assert plain.labels is not None and val.labels is not None
    assert np.array_equal(val.labels, np.repeat(plain.labels, 4)) and val.classes == plain.classes
    assert [int(name.split("/")[2]) // 4 for name in val.names] == [
        int(name.split("/")[2]) for name in plain.names for _ in range(4)
    ]
    assert val.read(0).shape == (1, 40, 40) and val.read(0).dtype == torch.uint8
    assert len({val.read(i).numpy().tobytes() for i in range(8)}) == 8
    builtin._scattered_digits.cache_clear()
    assert torch.equal(open_dataset("scattered-digits", "val").read(5), val.read(5))


@pytest.mark.parametrize("seed", range(5))
def test_a_scattered_digit_lies_whole_on_its_canvas(seed: int) -> None:
    block = np.zeros((8, 8), np.uint8)
    block[1:7, 1:7] = 255
    drawn = builtin.scattered(block, np.random.default_rng(seed)).astype(float)
    ink = drawn > drawn.min() + 90
    assert drawn.shape == (40, 40)
    assert (0.5 * 12) ** 2 < ink.sum() < 22**2  # three quarters of the side of a digit of 12 to 22 pixels
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    assert np.ptp(rows) < 26 and np.ptp(columns) < 26


def test_scattered_digits_lie_everywhere_in_all_sizes() -> None:
    block, rng = np.full((8, 8), 255, np.uint8), np.random.default_rng(0)
    sizes, places = [], []
    for _ in range(200):
        drawn = builtin.scattered(block, rng).astype(float)
        ink = drawn > (drawn.max() + drawn.min()) / 2
        sizes.append(ink.sum() ** 0.5)
        places.append(np.argwhere(ink).mean(0))
    assert min(sizes) < 14 and max(sizes) > 20
    low, high = np.min(places, axis=0), np.max(places, axis=0)
    assert (low < 10).all() and (high > 30).all()


@pytest.mark.extra("fashion-mnist")
def test_fashion_mnist() -> None:
    val = open_dataset("fashion-mnist", "val")
    assert len(val) == 10_000 and val.read(0).shape == (1, 28, 28) and val.names[3] == "fashion-mnist/val/3"
    assert val.labels is not None and np.bincount(val.labels).tolist() == [1000] * 10 and len(val.classes) == 10
    assert builtin.demo_data()[0] == "fashion-mnist"


def test_without_a_copy_or_the_internet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SIMDINO_DATASETS", str(tmp_path / "nothing"))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    for name in ("FashionMNIST", "CIFAR10", "Imagenette"):
        monkeypatch.setattr(datasets, name, type(name, (), {"mirrors": ["http://localhost/"], "__init__": offline}))
    assert not fashion_mnist_available()
    name, why = builtin.demo_data()
    assert name == "scattered-digits" and len(why.splitlines()) == 1
    for name in ("fashion-mnist", "cifar10", "imagenette"):
        text = message(lambda name=name: open_dataset(name))
        assert name in text and "no route" in text and "internet" in text


def test_imagenette_has_readable_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for i in range(10):
        for part in ("train", "val"):
            write(tmp_path / ".cache/simdino/imagenette2-160" / part / f"n{i:08}" / f"{part}.png")
    with pytest.raises(InputError, match=r"incomplete, 0 of 13394 images"):  # the files here are .png
        open_dataset("imagenette", "val")
    monkeypatch.setattr(builtin, "IMAGENETTE_IMAGES", 0)
    source = open_dataset("imagenette", "val")
    assert source.name == "imagenette" and source.classes[0] == "tench" and len(source) == 10


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "digits" / "1.png")
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_dataset("digits"), FileSource)


def test_array_source() -> None:
    images = np.stack([pixels(seed=i) for i in range(5)])
    source = ArraySource("mine", images, [str(i) for i in range(5)], np.arange(5))
    part = source.select([4, 2])
    assert torch.equal(part.read(1), torch.from_numpy(images[2]).permute(2, 0, 1))
    assert part.read(0, 1).shape == (1, 6, 8) and list(part.names) == ["4", "2"] and part.name == "mine"
    source.read(0).zero_()
    assert images[0].any()
    assert ArraySource("grey", images[..., :1], list("abcde")).read(0).shape == (1, 6, 8)
    with pytest.raises(ValueError, match="uint8"):
        ArraySource("wrong", images.astype(np.float32), list("abcde"))
