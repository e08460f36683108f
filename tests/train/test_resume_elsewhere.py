"""A run goes on where its images are now, bit by bit, and only with those that it began with."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import simdino as sd
from simdino import recipes
from simdino.cli import main
from simdino.config import Config
from simdino.options import Options
from simdino.saved import read_metadata

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
WORDS = {
    "encoder": "vit_toy", "patch_size": 4, "batch": 8, "steps": 4, "checkpoint_every": 2, "evaluate_every": 4,
    "precision": "float32",
}  # fmt: skip


def quiet(_: str) -> None:
    pass


def photos(root: Path, seed: int = 0) -> Path:
    """Two classes of 16 images for training and 4 held out: of the same names for every seed, of other sizes."""
    for split, count in (("train", 16), ("val", 4)):
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                draws = np.random.default_rng((seed, len(split), len(label[0] + split), i, label == "cat"))
                Image.fromarray(draws.integers(0, 255 >> seed, (16, 16, 3), np.uint8)).resize((20, 20)).save(
                    folder / f"{i}.png"
                )
    return root


def plan(root: Path) -> Config:
    return recipes.resolve(str(root), Options(**WORDS))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images, and a run on them that was never stopped."""
    top = tmp_path_factory.mktemp("whole")
    root = photos(top / "photos")
    sd.pretrain(plan(root), top / "run", log=quiet)
    return root, top / "run"


@pytest.fixture
def stopped(whole: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the run as it was after step 2; its images are no longer where they were."""
    run = tmp_path / "run"
    shutil.copytree(whole[1], run)
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    (run / "report.html").unlink()
    content = json.loads((run / "config.json").read_text())
    content["config"]["data"]["root"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(content))
    return run


def packed(root: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(root.rglob("*.png")):
            file.write(path, f"photos/{path.relative_to(root)}")
    return archive


@pytest.mark.parametrize("where", ["another folder", "another time stamp", "a zip"])
def test_a_run_goes_on_elsewhere_bit_by_bit(
    whole: tuple[Path, Path], stopped: Path, tmp_path: Path, where: str
) -> None:
    root, reference = whole
    moved = tmp_path / "photos.zip" if where == "a zip" else tmp_path / "elsewhere"
    if where == "a zip":
        packed(root, moved)
    else:
        shutil.copytree(root, moved)
    if where == "another time stamp":
        os.utime(moved / "train" / "cat" / "0.png", (1, 1))
    run = sd.resume(stopped, str(moved), log=quiet)
    assert not run.interrupted
    for name in ("encoder.safetensors", "encoder-best.safetensors", "metrics.jsonl"):
        assert (stopped / name).read_bytes() == (reference / name).read_bytes(), name
    assert read_metadata(stopped).config.data.root == str(moved)
    again = sd.resume(stopped, log=quiet)
    assert again.rows == run.rows


def change(root: Path, how: str) -> None:
    image = root / ("val" if "validation" in how else "train") / "cat" / "0.png"
    if how == "a name":
        image.rename(image.with_name("other.png"))
    else:
        image.write_bytes(image.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("a name", "training images"),
        ("a size", "training images"),
        ("the size of a validation image", "validation images"),
    ],
)
def test_one_other_image_of_the_same_number_is_noticed(
    whole: tuple[Path, Path], stopped: Path, tmp_path: Path, how: str, words: str
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(whole[0], moved)
    change(moved, how)
    before = (stopped / "config.json").read_bytes()
    with pytest.raises(sd.InputError, match=f"elsewhere has changed: its {words} have other names or sizes") as caught:
        sd.resume(stopped, str(moved), log=quiet)
    assert "\n" not in str(caught.value) and f"DATA --resume {stopped}" in str(caught.value)
    assert (stopped / "config.json").read_bytes() == before


def test_entirely_other_images_at_the_old_place_are_noticed(stopped: Path, tmp_path: Path) -> None:
    photos(tmp_path / "gone", seed=1)
    with pytest.raises(sd.InputError, match="has changed"):
        sd.resume(stopped, log=quiet)


def test_a_changed_number_of_images_is_noticed(whole: tuple[Path, Path], stopped: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(whole[0], moved)
    (moved / "train" / "cat" / "0.png").unlink()
    with pytest.raises(sd.InputError, match="has changed: 31 training images, 32 when"):
        sd.resume(stopped, str(moved), log=quiet)


def test_the_command_takes_data_beside_resume(
    whole: tuple[Path, Path], stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as missing:
        main(["pretrain", "--resume", str(stopped)])
    assert missing.value.code == 2 and "there is no file or folder" in capsys.readouterr().err
    main(["pretrain", str(whole[0]), "--resume", str(stopped)])
    assert "resuming" in capsys.readouterr().err


def test_arrays_are_known_by_their_names_and_sizes() -> None:
    from simdino.data.base import ArraySource

    images = np.zeros((3, 4, 4), np.uint8)
    one = ArraySource("a", images, ["x", "y", "z"])
    assert one.fingerprint() == ArraySource("b", images + 1, ["x", "y", "z"]).fingerprint()
    others = [
        ArraySource("a", images, ["x", "y", "w"]),
        ArraySource("a", images[:2], ["x", "y"]),
        ArraySource("a", np.zeros((3, 4, 5), np.uint8), ["x", "y", "z"]),
        one.select([1, 0, 2]),
    ]
    assert len({source.fingerprint() for source in (one, *others)}) == 5


def test_a_named_pipe_is_never_read(tmp_path: Path) -> None:
    """Opening one waits for a writer, for ever: in a folder, and where an image was when the folder was listed."""
    from simdino.data.opening import BrokenImage
    from simdino.data.sources import open_dataset

    root = photos(tmp_path / "photos")
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    source = open_dataset(root, "train")
    assert len(source) == 32
    victim = root / source.names[0]
    victim.unlink()
    os.mkfifo(victim)
    with pytest.raises(BrokenImage, match="no regular file"):
        source.read(0)
    (tmp_path / "list.txt").write_text("\n".join(str(root / name) for name in source.names))
    with pytest.raises(BrokenImage, match="no regular file"):
        open_dataset(tmp_path / "list.txt").read(0)
