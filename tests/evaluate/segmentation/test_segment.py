"""Segmentation from a folder to its scores: an encoder that knows the answer, one that cannot, and mistakes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from planted import COLOURS, PATCH, Planted, enlarged

from run_metadata import write_metadata
from simdino.cli import main
from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.evaluate import segment
from simdino.evaluate.segmentation.crops import usual_size
from simdino.evaluate.segmentation.segment import SegmentResult
from simdino.evaluate.segmentation.sliding import Confusion, palette
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder
from simdino.models.weights import save_encoder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
ADE = ("images/training", "annotations/training", "images/validation", "annotations/validation")
GRID = 8


def regions(random: np.random.Generator) -> np.ndarray:
    """A background and rectangles of the three colours, on the grid of patches."""
    found = np.zeros((GRID, GRID), np.int64)
    for colour in random.permutation([1, 2, 3]):
        top, left = random.integers(0, GRID - 3, 2)
        found[top : top + random.integers(2, 5), left : left + random.integers(2, 5)] = colour
    return found


def write(folder: Path, name: str, pixels: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder / f"{name}.png"


def make_set(root: Path, *, ade: bool = True, unrelated: bool = False) -> Path:
    """ADE20K's layout, whose masks are the region + 1 and 0 along an edge; or plain ones, 255 along an edge."""
    random = np.random.default_rng(0)
    folders = ADE if ade else ("train/images", "train/masks", "val/images", "val/masks")
    for images, masks, count in ((*folders[:2], 24), (*folders[2:], 8)):
        for i in range(count):
            shown = enlarged(regions(random))
            labels = (enlarged(regions(random)) if unrelated else shown).astype(np.uint8) + ade
            labels[:2] = 0 if ade else 255
            write(root / images, f"{i:02d}", COLOURS[shown])
            write(root / masks, f"{i:02d}", labels.astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def ade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("sets") / "ADEChallengeData2016")


def test_an_encoder_that_knows_the_regions_finds_them(ade: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def progress(items: Iterable, what: str, total: int) -> Iterable:
        seen.append((what, total))
        return items

    result = segment(Planted(noise=0.05), ade, out=tmp_path / "found", batch=8, progress=progress)
    assert result.miou > 95 and result.macc > 95 and result.aacc > 95
    assert list(result.iou) == [1, 2, 3, 4]  # the masks' own numbers
    assert (result.steps, result.batch, result.size, result.stride) == (300, 8, 32, 21)
    assert (result.train_images, result.validation_images, result.broken) == (24, 8, {})
    assert seen == [
        ("masks of images/training", 24), ("masks of images/validation", 8), ("training on ADEChallengeData2016", 300),
        ("scores on ADEChallengeData2016", 8),
    ]  # fmt: skip
    check_masks(ade, tmp_path / "found", result)


def check_masks(ade: Path, found: Path, result: SegmentResult) -> None:
    """The scores are those of the masks that were written."""
    counted = Confusion(5)
    written = sorted(found.iterdir())
    assert [path.name for path in written] == [f"{i:02d}.png" for i in range(8)]
    for path in written:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("P", (32, 32))
            assert image.getpalette() == palette().flatten().tolist()
            predicted = np.array(image)
        truth = np.array(Image.open(ade / ADE[3] / path.name))
        counted.add(np.where(truth == 0, 255, truth).astype(np.uint8), predicted)
    assert result.miou == pytest.approx(np.nanmean(counted.iou()))
    assert list(result.iou.values()) == pytest.approx(counted.iou()[1:])
    assert result.macc == pytest.approx(np.nanmean(counted.accuracies()))
    assert result.aacc == pytest.approx(counted.accuracy())


def toy(size: int = 32) -> Encoder:
    torch.manual_seed(0)
    preprocess = Preprocess(resize=size, crop=size, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3)
    return make_encoder(EncoderConfig(name="vit_toy", image_size=size, patch_size=PATCH), preprocess)


def test_labels_that_have_nothing_to_do_with_the_picture_are_found_by_chance(tmp_path: Path) -> None:
    data = make_set(tmp_path, ade=False, unrelated=True)
    result = segment(toy(), data, batch=8, steps=60)
    counts = Confusion(4)
    for path in sorted((data / "val" / "masks").iterdir()):
        truth = np.array(Image.open(path))
        counts.add(truth, np.zeros_like(truth))
    most = float(np.nanmean(counts.iou()))  # of always the most frequent class
    assert list(result.iou) == [0, 1, 2, 3]
    assert abs(result.miou - most) < 8 and result.miou < 30


def test_the_same_seed_gives_the_same_and_layers_are_read(ade: Path) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(name="vit", image_size=32, patch_size=PATCH, embed_dim=16, depth=3, num_heads=2)
    encoder = make_encoder(config, Planted().preprocess)
    one, other, deep = (
        segment(encoder, ade, steps=3, batch=4, layers=layers, workers=workers, size=16, precision="float32")
        for layers, workers in ((1, 0), (1, 1), (2, 0))
    )
    assert one == other
    assert (deep.layers, one.layers, one.size, one.stride) == (2, 1, 16, 10)
    assert deep.loss != one.loss
    assert segment(encoder, ade, steps=3, batch=4, size=16, seed=1, precision="float32").loss != one.loss


@pytest.mark.parametrize(
    ("of_encoder", "short", "patch", "size"),
    [
        (224, 512, 16, 512),
        (518, 600, 14, 512),
        (224, 500, 14, 490),
        (128, 512, 8, 288),
        (32, 32, 4, 32),
        (224, 9, 16, 16),
    ],
)
def test_the_usual_size_follows_encoder_and_images(of_encoder: int, short: int, patch: int, size: int) -> None:
    assert usual_size(of_encoder, short, patch) == size


def test_voc_colours() -> None:
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    assert {i: tuple(map(int, palette()[i])) for i in known} == known
    assert tuple(palette()[255]) == (224, 224, 192)


def test_scores_are_kept_and_the_broken_named(ade: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    save_encoder(toy(), run / "encoder.safetensors")
    write_metadata(run, "elsewhere")
    data = make_set(tmp_path / "plain", ade=False)
    (data / "train" / "images" / "07.png").write_bytes(b"no image")
    torn = data / "train" / "images" / "08.png"
    torn.write_bytes(torn.read_bytes()[:-40])  # its header is whole: found when it is trained on
    said: list[str] = []
    result = segment.run(str(run), str(data), steps=3, batch=16, size=16, device="cpu", log=said.append)
    assert sorted(result.broken) == ["train/images/07.png", "train/images/08.png"]
    assert said[0] == "left out train/images/07.png: not an image in any format that Pillow can open"
    (row,) = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert (row["protocol"], row["data"], row["trained_on"]) == ("segment", "plain", False)
    assert row["settings"] == {"layers": 1, "steps": 3, "batch": 16, "size": 16, "seed": 0, "exif": "turn"}
    assert row["results"] == json.loads(json.dumps(result.as_dict()))
    for name in ("09", "10"):
        path = data / "train" / "images" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="more than 10%"):
        segment(toy(), data, steps=9, batch=16, size=16)


def test_the_command_tells_each_class_and_the_mean(ade: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weights = tmp_path / "encoder.safetensors"
    save_encoder(toy(), weights)
    words = ["evaluate", "segment", str(weights), "--data", str(ade), "--steps", "2", "--batch", "2", "--device", "cpu"]
    main([*words, "--out", str(tmp_path / "found"), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["steps"], told["size"], list(told["iou"])) == (2, 32, ["1", "2", "3", "4"])
    assert len(list((tmp_path / "found").iterdir())) == 8
    main(words)
    *classes, last = capsys.readouterr().out.splitlines()
    assert last == (
        f"mIoU {told['miou']:.1f} %  mAcc {told['macc']:.1f} %  aAcc {told['aacc']:.1f} %, 4 classes, "
        f"8 validation images; 2 steps of 2 crops of 32 px of 24 images"
    )
    assert classes == [f"class {i}: IoU {value:.1f} %" for i, value in told["iou"].items()]


def test_mistakes_are_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weights, data = tmp_path / "encoder.safetensors", tmp_path / "set"
    save_encoder(toy(), weights)

    def refused(message: str, *words: str) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", "segment", str(weights), "--data", str(data), "--device", "cpu", "--steps", "1", *words])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.count("\n") == 1 and message in said, said

    refused("there is no folder")
    data.mkdir()
    refused("is no set of images and masks: it has no folder; expected images/ and masks/")
    make_set(data, ade=False)
    refused("--out", "--out", str(data / "val" / "masks"))
    (tmp_path / "file").write_text("")
    refused("cannot be written", "--out", str(tmp_path / "file"), "--size", "8")
    refused("has no 9 last blocks", "--layers", "9")
    mask = data / "val" / "masks" / "03.png"
    cases = {
        "has colours (mode RGB)": np.zeros((32, 32, 3), np.uint8),
        "has 30 x 32 pixels, but its image 'val/images/03.png' 32 x 32": np.zeros((32, 30), np.uint8),
        "has the number 256; classes are numbers up to 254": np.full((32, 32), 256, np.uint16),
    }
    for message, pixels in cases.items():
        Image.fromarray(pixels).save(mask)
        refused(message)
    for path in (data / "val" / "masks").iterdir():
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(path)
    refused("is ignored, so there is nothing to score")
    for path in (data / "train" / "masks").iterdir():
        Image.fromarray(np.full((32, 32), 3, np.uint8)).save(path)
    refused("have only the number 3, and 255 is ignored; number them 0, 1, 2")
    for path in (data / "train" / "masks").iterdir():
        path.unlink()
    refused("has no mask of any of the 24 images in train/images/")


@pytest.mark.extra("timm")
def test_encoders_without_patches_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    convolutions = make_encoder(EncoderConfig(name="timm:resnet18", image_size=32), Planted().preprocess)
    with pytest.raises(InputError, match="has no patches"):
        segment(convolutions, tmp_path / "nothing")
    with pytest.raises(InputError, match="--steps 0 must be 1 or more"):
        segment(Planted(), tmp_path / "nothing", steps=0)
