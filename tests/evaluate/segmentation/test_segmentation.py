"""Layouts of images and masks, what a mask may be, and what is wrong with one, in a line."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simdino.contracts import InputError
from simdino.data.annotated import scale_of
from simdino.data.opening import BrokenImage
from simdino.data.sources import open_dataset
from simdino.data.splits import in_validation
from simdino.evaluate.segmentation.masks import Pairs, look_through, numbers, open_segmentation

LABELS = np.array([[0, 1, 2], [255, 3, 150]], np.uint8)
ADE = ("images/training", "annotations/training", "images/validation", "annotations/validation")


def write(folder: Path, name: str, labels: np.ndarray = LABELS, mode: str = "L") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels).convert(mode) if labels.dtype == np.uint8 else Image.fromarray(labels)
    if mode == "P":
        image = Image.fromarray(labels).convert("P")
        image.putpalette([9] * 768)
    image.save(folder / name)


def write_pair(root: Path, images: str, masks: str, name: str, labels: np.ndarray = LABELS) -> None:
    (root / images).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", labels.shape[::-1], (10, 20, 30)).save(root / images / f"{name}.jpg")
    write(root / masks, f"{name}.png", labels)


@pytest.mark.parametrize(
    "folders",
    [ADE, ("train/images", "train/masks", "val/images", "val/masks"),
     ("images/train", "masks/train", "images/val", "masks/val")],
    ids=lambda folders: folders[0],
)  # fmt: skip
def test_folders_of_both_splits(tmp_path: Path, folders: tuple[str, str, str, str]) -> None:
    for name in ("b", "a"):
        write_pair(tmp_path, *folders[:2], name)
    write_pair(tmp_path, *folders[2:], "c")
    train, val = open_segmentation(tmp_path)
    assert train.images == [f"{folders[0]}/a.jpg", f"{folders[0]}/b.jpg"]
    assert (val.images, val.masks) == ([f"{folders[2]}/c.jpg"], [f"{folders[3]}/c.png"])
    assert train.reduce_zero == val.reduce_zero == (folders == ADE)
    image, mask = train.read(0, 3)
    assert tuple(image.shape) == (3, 2, 3)
    expected = [[255, 0, 1], [255, 2, 149]] if folders == ADE else LABELS.tolist()
    assert mask.tolist() == expected
    assert mask.dtype == np.uint8
    assert train.number(1) == (2 if folders == ADE else 1)


def test_without_splits_a_tenth_is_validation_by_name_whatever_else_is_there(tmp_path: Path) -> None:
    names = [f"{'deep/' if i % 2 else ''}{i:03d}" for i in range(60)]
    (tmp_path / "images" / "deep").mkdir(parents=True)
    (tmp_path / "masks" / "deep").mkdir(parents=True)
    for name in names:
        write_pair(tmp_path, "images", "masks", name)
    train, val = open_segmentation(tmp_path)
    assert sorted([*train.images, *val.images]) == sorted(f"images/{name}.jpg" for name in names)
    assert val.images == sorted(f"images/{name}.jpg" for name in names if in_validation(f"{name}.jpg"))
    assert val.masks[0] == val.images[0].replace("images/", "masks/").replace(".jpg", ".png")
    assert 1 <= len(val) <= 15
    assert [name.removeprefix("images/") for name in val.images] == list(open_dataset(tmp_path / "images", "val").names)
    for name in train.images[::2]:
        (tmp_path / name).unlink()
    assert open_segmentation(tmp_path)[1].images == val.images


def one(root: Path, folder: str = "train") -> Pairs:
    return Pairs(
        root=root, folder="images", images=["images/a.jpg"], masks=["masks/a.png"], reduce_zero=False,
        scale=scale_of(root, [], None),
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_masks_of_one_number_a_pixel(tmp_path: Path, mode: str) -> None:
    labels = LABELS
    if mode == "1":
        labels = (LABELS > 1).astype(np.uint8)
    write_pair(tmp_path, "images", "masks", "a", labels)
    if mode == "1":
        Image.fromarray(labels * 255).convert("1").save(tmp_path / "masks" / "a.png")
    elif mode == "I;16":
        Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "masks" / "a.png")
    else:
        write(tmp_path / "masks", "a.png", labels, mode)
    with Image.open(tmp_path / "masks" / "a.png") as image:
        assert image.mode == mode
    mask = one(tmp_path).mask(0)
    assert mask.dtype == np.uint8
    assert mask.tolist() == labels.tolist()


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_masks_of_few_bits_hold_their_numbers(bits: int) -> None:
    truth = np.arange(16).reshape(4, 4) % (1 << bits)
    rows = [sum(int(n) << bits * (3 - i) for i, n in enumerate(row)) for row in truth]
    packed = b"".join(b"\0" + row.to_bytes(bits // 2, "big") for row in rows)  # no filter, then four pixels
    head = struct.pack(">IIBBBBB", 4, 4, bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(packed)), (b"IEND", b"")]
    sums = [(kind + data, struct.pack(">I", zlib.crc32(kind + data))) for kind, data in chunks]
    file = b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(body) - 4) + body + crc for body, crc in sums)
    np.testing.assert_array_equal(numbers(file, "m.png", of="i.png", sides=(4, 4)), truth)


def test_what_is_no_mask_of_its_image_is_told_in_a_line(tmp_path: Path) -> None:
    write_pair(tmp_path, "images", "masks", "a")
    pairs = one(tmp_path)
    cases = {
        "has colours (mode RGB); expected one number a pixel": np.zeros((2, 3, 3), np.uint8),
        "'masks/a.png' has 4 x 2 pixels, but its image 'images/a.jpg' 3 x 2": np.zeros((2, 4), np.uint8),
        "has the number 300; classes are numbers up to 254, and 255 is ignored": np.full((2, 3), 300, np.uint16),
    }
    for message, labels in cases.items():
        Image.fromarray(labels).save(tmp_path / "masks" / "a.png")
        with pytest.raises(InputError) as caught:
            look_through(pairs)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_image_is_compared_as_it_is_seen(tmp_path: Path) -> None:
    write_pair(tmp_path, "images", "masks", "a")
    turned = Image.new("RGB", (2, 3))
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "images" / "a.jpg", exif=turned.getexif())
    image, mask = one(tmp_path).read(0, 1)
    assert tuple(image.shape) == (1, *mask.shape) == (1, 2, 3)


def test_pairs_that_cannot_be_read_are_left_out_until_they_are_too_many(tmp_path: Path) -> None:
    for i in range(20):
        write_pair(tmp_path, "images", "masks", f"{i:02d}")
    (tmp_path / "images" / "03.jpg").write_bytes(b"no image")
    (tmp_path / "masks" / "05.png").unlink()
    names = [f"{i:02d}" for i in range(20)]
    pairs = Pairs(
        root=tmp_path, folder="images", images=[f"images/{n}.jpg" for n in names],
        masks=[f"masks/{n}.png" for n in names], reduce_zero=False, scale=scale_of(tmp_path, [], None),
    )  # fmt: skip
    looked = look_through(pairs)
    assert list(looked.broken) == ["images/03.jpg", "masks/05.png"]
    assert looked.broken["masks/05.png"] == "No such file or directory"
    assert len(looked.pairs) == 18
    assert looked.pairs.images[3] == "images/04.jpg"
    assert looked.classes == [0, 1, 2, 3, 150]
    assert looked.pixels.tolist() == [18 * (c == LABELS).sum() for c in range(255)]
    assert looked.short_side == 2
    whole = (tmp_path / "masks" / "07.png").read_bytes()
    (tmp_path / "masks" / "07.png").write_bytes(whole[:-30])
    with pytest.raises(BrokenImage):
        pairs.mask(7)
    with pytest.raises(InputError, match=r"3 of the 20 images in .* more than 10% \(first images/03.jpg: not an image"):
        look_through(pairs)


def test_unknown_layouts_are_told_in_a_line(tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            open_segmentation(tmp_path / "set")
        assert "\n" not in str(caught.value)

    refused("there is no folder")
    (tmp_path / "set").mkdir()
    refused("it has no folder; expected images/ and masks/")
    (tmp_path / "set" / "images").mkdir()
    refused("it has images/; expected images/ and masks/")
    (tmp_path / "set" / "masks").mkdir()
    refused("has no image file in it")
    Image.new("RGB", (3, 2)).save(tmp_path / "set" / "images" / "a.jpg")
    refused(r"has no mask of any of the 1 images in images/: expected a.png for a.jpg, but it has no image file")
    write(tmp_path / "set" / "masks", "a_mask.png")
    refused("its first file is a_mask.png")
    write(tmp_path / "set" / "masks", "a.png")
    refused("none of the 1 images in .* would be held out")
