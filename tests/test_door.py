"""The Python door: images and modules of a program go in, features come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import simdino as sd
from simdino.data.photometric import normalise, to_unit_range
from simdino.data.sources import open_dataset
from simdino.features.extract import Prepared

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
TINY = {"patch_size": 4, "batch": 8, "steps": 2, "local_views": 2, "precision": "float32", "device": "cpu"}
RUN = {**TINY, "log": lambda _: None}


def picture(seed: int, size: tuple[int, int] = (17, 13), mode: str = "RGB") -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    return Image.fromarray(pixels)


class Pictures:
    """A data set of torch's kind: items are what `kind` makes of a picture, with labels where asked for."""

    def __init__(self, kind: str = "pillow", *, labels: bool = True, count: int = 40) -> None:
        self.kind, self.labels, self.count = kind, labels, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        image: Any = picture(i, (16, 16))
        if self.kind != "pillow":
            image = np.asarray(image)
        if self.kind == "tensor":
            image = torch.from_numpy(image.copy()).movedim(-1, 0)
        return (image, "odd" if i % 2 else "even") if self.labels else image


class Net(nn.Module):
    """A small network with features [N, 12] of images of any size."""

    def __init__(self, give: str = "features") -> None:
        super().__init__()
        self.stem, self.give = nn.Conv2d(3, 12, 4, stride=4), give

    def forward(self, images: Tensor) -> Any:
        maps = self.stem(images)
        features = maps.mean((2, 3))
        return {
            "features": features, "maps": maps, "dict": {"cls": features, "patches": maps.flatten(2).mT},
            "tuple": (features, maps.flatten(2).mT), "integers": features.long(), "flat": maps.flatten(1),
            "one": features[:1], "nothing": None,
        }[self.give]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("door") / "run"
    sd.pretrain("digits", folder, encoder="vit_toy", **RUN)
    return folder


def test_transform_and_embed_are_what_evaluation_does_with_the_file(run: Path, tmp_path: Path) -> None:
    encoder = sd.load_encoder(run)
    images = [picture(1), picture(2, (40, 9), "L"), picture(3, (9, 40), "RGBA")]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    paths = sorted(tmp_path.iterdir())
    features = sd.embed(encoder, tmp_path)
    about = encoder.preprocess
    for i, (image, path) in enumerate(zip(images, paths, strict=True)):
        expected = Prepared(open_dataset(tmp_path), about)[0][1][i]
        expected = normalise(to_unit_range(expected), mean=about.mean, std=about.std)
        assert torch.equal(encoder.transform(image), expected)
        assert torch.equal(encoder.transform(str(path)), expected)
    torch.testing.assert_close(encoder.embed(images), features.vectors)
    torch.testing.assert_close(encoder.embed(paths[1]), features.vectors[1:2])
    assert encoder.embed([]).shape == (0, encoder.embed_dim)
    with pytest.raises(sd.InputError, match=r"nothing.png cannot be read: No such file"):
        encoder.embed(tmp_path / "nothing.png")
    with pytest.raises(sd.InputError, match=r"the image is a float: give an image of Pillow"):
        encoder.embed(1.5)


@pytest.mark.parametrize("kind", ["pillow", "array", "tensor"])
def test_a_data_set_of_a_program_trains_and_is_resumed_with_it(kind: str, tmp_path: Path) -> None:
    data = Pictures(kind, labels=kind != "array")
    done = sd.pretrain(data, tmp_path / "run", encoder="vit_toy", **RUN)
    assert done.config.data.root == "python:Pictures"
    assert (done.summary()["knn"] is None) == (kind == "array")
    assert sd.load_encoder(tmp_path / "run").embed(picture(0)).shape == (1, 32)
    (tmp_path / "run" / "report.html").unlink()
    with pytest.raises(sd.InputError, match=r"python:Pictures is a data set of a program: give it again"):
        sd.resume(tmp_path / "run", log=lambda _: None)
    with pytest.raises(sd.InputError, match=r"has changed"):
        sd.resume(tmp_path / "run", Pictures(kind, count=41), log=lambda _: None)
    again = sd.resume(tmp_path / "run", data, log=lambda _: None)
    assert again.rows == done.rows


def test_every_kind_of_item_trains_to_the_same_bits(tmp_path: Path) -> None:
    for kind in ("pillow", "array", "tensor"):
        sd.pretrain(Pictures(kind), tmp_path / kind, encoder="vit_toy", **RUN)
    files = [(tmp_path / kind / "encoder.safetensors").read_bytes() for kind in ("pillow", "array", "tensor")]
    assert files[0] == files[1] == files[2]


def test_a_source_and_a_pair_of_data_sets_are_taken(tmp_path: Path) -> None:
    done = sd.pretrain(open_dataset("digits", "val"), tmp_path / "source", encoder="vit_toy", **RUN)
    assert done.config.data.root == "python:digits"
    done = sd.pretrain((Pictures(), Pictures(count=10)), tmp_path / "pair", encoder="vit_toy", **RUN)
    assert done.config.data.train_images == 40
    assert done.rows[-1]["queries"] == 10


@pytest.mark.parametrize("give", ["features", "maps", "dict", "tuple"])
def test_a_module_trains_from_its_own_weights_and_loads_again(give: str, tmp_path: Path) -> None:
    module = Net(give)
    before = module.stem.weight.detach().clone()
    done = sd.pretrain(Pictures(), tmp_path / "run", encoder=module, **RUN)
    assert torch.equal(module.stem.weight, before)
    assert not torch.equal(done.encoder.state_dict()["module.stem.weight"], before)
    loaded = sd.load_encoder(tmp_path / "run", module=Net(give))
    torch.testing.assert_close(loaded.embed(picture(1)), done.encoder.embed(picture(1)))
    (tmp_path / "run" / "report.html").unlink()
    assert sd.resume(tmp_path / "run", Pictures(), encoder=Net(give), log=lambda _: None).rows == done.rows


@pytest.mark.parametrize(
    ("give", "words"),
    [
        ("integers", r"python:Net returns torch.int64 \[2, 12\], expected features float \[2, 'D'\]"),
        ("one", r"python:Net returns torch.float32 \[1, 12\], expected"),
        ("nothing", "python:Net returns NoneType, expected"),
        ("flat", r"python:Net returns \[2, 12\] for images of \d+ px, .* must not depend on the size of crops"),
    ],
)
def test_a_module_that_does_not_fit_is_refused_in_one_line(give: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(sd.InputError, match=words) as caught:
        sd.pretrain(Pictures(), tmp_path / "run", encoder=Net(give), **RUN)
    assert "\n" not in str(caught.value)


def test_a_module_that_fails_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(sd.InputError, match=r"encoder python:Linear does not take images float32 \[2, 3, \d+, \d+\]"):
        sd.pretrain(Pictures(), tmp_path / "run", encoder=nn.Linear(7, 3), **RUN)


class Moving(Pictures):
    """Gives another picture each time."""

    calls = 0

    def __getitem__(self, i: int) -> Any:
        Moving.calls += 1
        return picture(Moving.calls)


@pytest.mark.parametrize(
    ("data", "settings", "words"),
    [
        (Moving(), {}, "gives its first image differently each time: leave random transforms out"),
        ([torch.zeros(3, 8, 8, dtype=torch.int64)], {}, r"list/0 is int64 \[8, 8, 3\]: give .*floating-point numbers"),
        (3, {}, "received int: give a path, a name, a Source or a torch Dataset"),
        ("digits", {"step": 3}, "unknown setting 'step'; did you mean steps?"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(data: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(sd.InputError, match=words) as caught:
        sd.pretrain(data, "runs/never", **settings, log=lambda _: None)
    assert "\n" not in str(caught.value)


def test_tensors_of_torchvision_and_deep_arrays_have_one_scale() -> None:
    from simdino.data.base import DatasetSource

    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    tensors = DatasetSource([torch.from_numpy(one / 255).float().permute(2, 0, 1) for one in pixels], "tensors")
    found = tensors.examine(2)
    assert found.values == (0, 1)
    torch.testing.assert_close(found.pixels, torch.from_numpy(pixels[2] / 255).float().permute(2, 0, 1))
    deep = DatasetSource([(one.astype(np.uint16) * (i + 1), i % 2) for i, one in enumerate(pixels)], "deep")
    assert deep.select([0]).examine(0).values == deep.examine(5).values == (0, 2047)
    assert deep.with_values((0, 511)).examine(1).values == (0, 511) and deep.examine(1).values == (0, 2047)


def test_the_version_is_the_same_wherever_it_is_read() -> None:
    root = Path(__file__).parents[1]
    assert f"version: {sd.__version__}\n" in (root / "CITATION.cff").read_text()
    assert f"({sd.__version__})" in (root / "CHANGELOG.md").read_text()
    assert 'dynamic = ["version"]' in (root / "pyproject.toml").read_text()
