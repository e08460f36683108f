"""Which picture a mask or box belongs to, and which way up it was drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

import simdino as sd
from simdino.data.annotated import read_picture, sides_of, tell_turned
from simdino.data.scale import Scale
from simdino.errors import InputError
from simdino.evaluate.discovery.objects import open_objects
from simdino.evaluate.segmentation.masks import look_through, open_segmentation
from simdino.evaluate.video.sequences import open_davis
from simdino.settings import Values

TOPS = {"a.png": 1023, "b.png": 511}
"""The largest values of a set of 10 bits, and of one that is dark."""
EIGHT = Scale(lambda name: b"", [], values=(0, 255))
XML = (
    "<annotation><size><width>{}</width><height>{}</height></size><object><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object></annotation>"
)


def picture(path: Path, *, exif: int = 1, size: tuple[int, int] = (32, 32)) -> None:
    """White in its stored left upper quarter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size)
    image.paste(255, (0, 0, size[0] // 2, size[1] // 2))
    statistics = image.getexif()
    statistics[0x0112] = exif
    image.save(path, exif=statistics)


def voc(root: Path, *, name: str = "a.png", size: tuple[int, int] = (32, 32), box: tuple[object, ...] = (1, 1, 16, 16)):
    picture(root / "JPEGImages" / name)
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "Annotations" / "a.xml").write_text(XML.format(*size, *box))
    return root


@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
@pytest.mark.parametrize("exif", range(1, 9))
def test_both_readings_of_every_way_a_camera_is_held(exif: int, ending: str, tmp_path: Path) -> None:
    picture(tmp_path / f"a.{ending}", exif=exif, size=(48, 32))
    data = (tmp_path / f"a.{ending}").read_bytes()
    stored = read_picture(data, "a", channels=1, exif="ignore", scale=EIGHT)
    assert stored.shape == (1, 32, 48) and sides_of(data, "a", exif="ignore") == (32, 48)
    assert stored[0, 3, 3] > 250 and stored.float().mean() < 70
    turned = read_picture(data, "a", channels=1, exif="turn", scale=EIGHT)
    assert turned.shape[1:] == sides_of(data, "a", exif="turn") == ((48, 32) if exif > 4 else (32, 48))


@pytest.mark.parametrize("exif", [3, 6])
def test_a_mask_of_a_turned_square_is_read_either_way_and_counted(exif: int, tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / "images" / f"{i}.png", exif=exif if i < 3 else 1)
        picture(tmp_path / "masks" / f"{i}.png")
    for reading, fits in (("turn", False), ("ignore", True)):
        objects = open_objects(tmp_path, exif=reading)
        image, truth = objects.read(0, 1)
        assert truth.masks is not None
        assert bool((image[0].numpy() == 255)[truth.masks[0]].all()) is fits
        assert objects.turned == 1
        both = open_segmentation(tmp_path, exif=reading)
        assert sum(look_through(pairs).turned for pairs in both) == 3


def test_frames_that_are_turned_are_counted(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "JPEGImages" / "480p" / "a" / f"{i}.jpg", exif=6 if i else 1, size=(32, 16))
        picture(tmp_path / "Annotations" / "480p" / "a" / f"{i}.png", size=(32, 16))
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "val.txt").write_text("a\n")
    (_, (video,)) = open_davis(tmp_path, exif="ignore")
    assert video.turned() == 2 and video.frame(1, 1).shape == (1, 16, 32)
    with pytest.raises(InputError, match="16 x 32 pixels upright"):
        open_davis(tmp_path)[1][0].frame(1, 1)
    picture(tmp_path / "JPEGImages" / "480p" / "a" / "1.png", size=(32, 16))
    with pytest.raises(InputError, match=r"both 1\.jpg and 1\.png"):
        open_davis(tmp_path)


def deep(path: Path, top: int) -> None:
    """A picture of 16 bits whose values end at `top`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.linspace(0, top, 32 * 32).astype(np.uint16).reshape(32, 32)).save(path)


def pictures_of_masks(root: Path, values: Values | None) -> list[Tensor]:
    for name, top in TOPS.items():
        deep(root / "images" / name, top)
        picture(root / "masks" / name)
    objects = open_objects(root, values=values)
    return [objects.read(i, 1)[0] for i in range(len(objects))]


def pictures_of_segmentation(root: Path, values: Values | None) -> list[Tensor]:
    for part, (name, top) in zip(("train", "val"), TOPS.items(), strict=True):
        deep(root / part / "images" / name, top)
        picture(root / part / "masks" / name)
    return [pairs.read(0, 1)[0] for pairs in open_segmentation(root, values=values)]


def pictures_of_voc(root: Path, values: Values | None) -> list[Tensor]:
    for name, top in TOPS.items():
        voc(root, name=name)
        deep(root / "JPEGImages" / name, top)
        (root / "Annotations" / f"{name[0]}.xml").write_text(XML.format(32, 32, 1, 1, 16, 16))
    objects = open_objects(root, values=values)
    return [objects.read(i, 1)[0] for i in range(len(objects))]


def pictures_of_videos(root: Path, values: Values | None) -> list[Tensor]:
    for name, top in TOPS.items():
        deep(root / "JPEGImages" / "480p" / name[0] / "0.png", top)
        picture(root / "Annotations" / "480p" / name[0] / "0.png")
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("a\nb\n")
    return [video.frame(0, 1) for video in open_davis(root, values=values)[1]]


@pytest.mark.parametrize("read", [pictures_of_masks, pictures_of_segmentation, pictures_of_voc, pictures_of_videos])
def test_deep_pictures_of_an_annotated_set_have_one_scale(
    read: Callable[[Path, Values | None], list[Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def largest(name: str, values: Values | None) -> list[float]:
        return [float(image.max()) for image in read(tmp_path / name, values)]

    assert largest("own", None) == pytest.approx([1, 511 / 1023])  # of 10 bits
    assert largest("encoder's", (0, 4095)) == pytest.approx([1023 / 4095, 511 / 4095])
    assert not capsys.readouterr().err
    assert largest("less", (0, 511)) == [1, 1]
    assert capsys.readouterr().err.count("outside of 0 to 511") == 1


def laden(path: Path) -> None:
    """The same picture with more metadata than Pillow reads."""
    text = PngInfo()
    text.add_text("Comment", "x" * 2_000_000, zip=True)
    with Image.open(path) as image:
        image.save(path, pnginfo=text)


def test_masks_are_read_whatever_metadata_they_have(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "masks" / "a.png")
    before = open_objects(tmp_path).read(0, 1)[1].masks
    laden(tmp_path / "masks" / "a.png")
    after = open_objects(tmp_path).read(0, 1)[1].masks
    assert before is not None and after is not None and np.array_equal(before, after)
    frames, masks = (tmp_path / part / "480p" / "a" / "0.png" for part in ("JPEGImages", "Annotations"))
    for path in (frames, masks):
        picture(path)
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "val.txt").write_text("a\n")
    labels = open_davis(tmp_path)[1][0].mask(0)
    laden(masks)
    assert np.array_equal(open_davis(tmp_path)[1][0].mask(0), labels)


def test_the_line_names_the_other_reading() -> None:
    said: list[str] = []
    tell_turned(0, of=9, exif="turn", log=said.append)
    assert said == []
    tell_turned(3, of=9, exif="turn", log=said.append)
    tell_turned(3, of=9, exif="ignore", log=said.append)
    assert "3 of 9 images are turned" in said[0] and "--exif ignore" in said[0] and "--exif turn" in said[1]


def test_an_option_without_effect_or_an_unknown_one_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(InputError, match="--exif ignore has no effect"):
        open_objects(tmp_path, exif="ignore")
    with pytest.raises(InputError, match="--exif 'left' must be turn or ignore"):
        sd.evaluate.discover("nowhere", tmp_path, exif="left")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["a.png", "a.jpeg", "a.JPG"])
def test_pictures_of_voc_have_any_ending(name: str, tmp_path: Path) -> None:
    objects = open_objects(voc(tmp_path, name=name))
    assert list(objects.names) == [name]
    boxes = objects.read(0, 1)[1].boxes
    assert boxes is not None and boxes.tolist() == [[0, 0, 16, 16]]


def test_boxes_of_voc_that_count_from_0_are_taken(tmp_path: Path) -> None:
    boxes = open_objects(voc(tmp_path, box=(0, 0, 16, 16))).read(0, 1)[1].boxes
    assert boxes is not None and boxes.tolist() == [[0, 0, 16, 16]]


@pytest.mark.parametrize("change", [
    {"box": ("nan", 1, 16, 16)}, {"box": (20, 1, 16, 16)}, {"box": (-5, 1, 16, 16)}, {"box": (1, 1, 40, 16)},
    {"box": ("", 1, 16, 16)}, {"size": (32, 48)},
])  # fmt: skip
def test_annotations_of_voc_that_cannot_be_are_told(change: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^a\.xml: "):
        open_objects(voc(tmp_path, **change)).read(0, 1)


def test_two_pictures_of_one_mask_or_annotation_are_refused(tmp_path: Path) -> None:
    voc(tmp_path / "voc")
    picture(tmp_path / "voc" / "JPEGImages" / "a.jpg")
    with pytest.raises(InputError, match=r"both a\.jpg and a\.png"):
        open_objects(tmp_path / "voc")
    for name in ("b/a.png", "b/a.jpg"):
        picture(tmp_path / "set" / "images" / name)
    picture(tmp_path / "set" / "masks" / "b/a.png")
    for opened in (open_objects, open_segmentation):
        with pytest.raises(InputError, match=r"both b/a\.jpg and b/a\.png"):
            opened(tmp_path / "set")


def test_a_mask_may_end_in_capitals(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.v2.png")
    picture(tmp_path / "masks" / "a.v2.PNG")
    truth = open_objects(tmp_path).read(0, 1)[1]
    assert truth.masks is not None and np.flatnonzero(truth.masks[0].any(0)).tolist() == list(range(16))
