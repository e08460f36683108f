"""The layouts of DAVIS 2016 and 2017, and what is wrong with one, in a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simdino.contracts import InputError
from simdino.evaluate.video.sequences import open_davis

PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [200] * 3 * 253


def write_frame(root: Path, name: str, i: int, size: tuple[int, int] = (12, 8)) -> None:
    path = root / "JPEGImages" / "480p" / name / f"{i:05d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), 10 * i, np.uint8)).save(path)


def write_mask(root: Path, name: str, i: int, labels: np.ndarray | None = None) -> None:
    path = root / "Annotations" / "480p" / name / f"{i:05d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    if labels is None:
        labels = np.zeros((8, 12), np.uint8)
        labels[2:4, 2:5], labels[5:7, 6:9], labels[0, 0] = 1, 2, 255
    image = Image.fromarray(labels, mode="P")
    image.putpalette(PALETTE)
    image.save(path)


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """Two sequences of three frames, in 2017's list one of them."""
    for name in ("bear", "goat"):
        for i in range(3):
            write_frame(tmp_path, name, i)
            write_mask(tmp_path, name, i)
    for year, text in (("2017", "goat\n"), ("2016", "bear\n\ngoat\n")):
        (tmp_path / "ImageSets" / year).mkdir(parents=True)
        (tmp_path / "ImageSets" / year / "val.txt").write_text(text)
    return tmp_path


def test_2017_is_taken_where_both_are_there_and_either_can_be_asked_for(davis: Path) -> None:
    year, videos = open_davis(davis)
    assert (year, [v.name for v in videos]) == ("2017", ["goat"])
    year, videos = open_davis(davis, "2016")
    assert (year, [v.name for v in videos]) == ("2016", ["bear", "goat"])
    (davis / "ImageSets" / "2017" / "val.txt").unlink()
    assert open_davis(davis)[0] == "2016"


def test_a_line_of_two_paths_a_frame_names_the_sequence_once(davis: Path) -> None:
    lines = [
        f"/JPEGImages/480p/{name}/{i:05d}.jpg /Annotations/480p/{name}/{i:05d}.png"
        for name in ("goat", "bear")
        for i in range(3)
    ]
    (davis / "ImageSets" / "2016" / "val.txt").write_text("\n".join(lines))
    assert [v.name for v in open_davis(davis, "2016")[1]] == ["goat", "bear"]


def test_objects_are_told_apart_in_2017_and_one_foreground_in_2016(davis: Path) -> None:
    apart, whole = (open_davis(davis, year)[1][-1] for year in ("2017", "2016"))
    assert sorted(np.unique(apart.mask(0))) == [0, 1, 2]
    assert apart.mask(0)[0, 0] == 0  # void is background
    assert np.array_equal(whole.mask(0) == 1, (apart.mask(0) > 0) | (np.indices((8, 12)).sum(0) == 0))
    assert apart.palette() == PALETTE


def test_a_grey_mask_of_0_and_255_is_2016s_foreground(davis: Path) -> None:
    labels = np.zeros((8, 12), np.uint8)
    labels[3:, 4:] = 255
    Image.fromarray(labels).save(davis / "Annotations" / "480p" / "goat" / "00000.png")
    video = open_davis(davis, "2016")[1][1]
    assert np.array_equal(video.mask(0), labels // 255)
    assert video.palette() is None


def test_frames_are_read_one_at_a_time_in_order(davis: Path) -> None:
    video = open_davis(davis)[1][0]
    assert (len(video), video.annotated) == (3, True)
    for i in range(3):
        frame = video.frame(i)
        assert frame.shape == (3, 8, 12)
        assert abs(float(frame.float().mean()) - 10 * i) < 2
    assert video.frame(1, 1).shape == (1, 8, 12)


def test_full_resolution_is_taken_where_there_is_no_other(davis: Path) -> None:
    for part in ("JPEGImages", "Annotations"):
        (davis / part / "480p").rename(davis / part / "Full-Resolution")
    assert open_davis(davis)[1][0].frame(0).shape == (3, 8, 12)


def test_the_first_mask_alone_is_enough_to_follow_it(davis: Path) -> None:
    for i in (1, 2):
        (davis / "Annotations" / "480p" / "goat" / f"{i:05d}.png").unlink()
    assert not open_davis(davis)[1][0].annotated


def remove(davis: Path, name: str) -> None:
    (davis / name).unlink()


def rename(davis: Path, name: str, new: str) -> None:
    (davis / name).rename(davis / new)


def spoil(davis: Path, name: str) -> None:
    (davis / name).write_bytes(b"no image")


def in_colour(davis: Path) -> None:
    Image.new("RGB", (12, 8)).save(davis / "Annotations" / "480p" / "goat" / "00000.png")


FIRST = "Annotations/480p/goat/00000.png"
WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "no list": (lambda d: (remove(d, "ImageSets/2017/val.txt"), remove(d, "ImageSets/2016/val.txt"))[0], "is no DAVIS"),
    "an empty list": (lambda d: (d / "ImageSets/2017/val.txt").write_text("\n") and None, "names no sequence"),
    "an unknown resolution": (lambda d: rename(d, "JPEGImages/480p", "JPEGImages/720p"), "JPEGImages/ has 720p and A"),
    "no annotations": (lambda d: rename(d, "Annotations", "Masks"), "Annotations/ has nothing"),
    "no such sequence": (lambda d: rename(d, "JPEGImages/480p/goat", "JPEGImages/480p/ox"), "goat has no frames in"),
    "no first mask": (lambda d: remove(d, FIRST), "no mask of its first frame: '.*00000.png' is missing"),
    "a later mask missing": (lambda d: remove(d, FIRST.replace("0.png", "1.png")), "2 of its 3 frames, none of 00001"),
    "a mask of another size": (
        lambda d: write_mask(d, "goat", 0, np.ones((5, 7), np.uint8)), "has 12 x 8 pixels, but its mask 7 x 5"
    ),
    "a mask in colour": (in_colour, r"has colours \(mode RGB\)"),
    "a damaged mask": (lambda d: spoil(d, FIRST), "00000.png' cannot be read: not an image"),
    "a damaged first frame": (lambda d: spoil(d, "JPEGImages/480p/goat/00000.jpg"), "00000.jpg' cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_line(name: str, davis: Path) -> None:
    spoil_it, message = WRONG[name]
    spoil_it(davis)
    with pytest.raises(InputError, match=message) as caught:
        open_davis(davis)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_and_a_missing_year_are_named(davis: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        open_davis(davis / "nowhere")
    remove(davis, "ImageSets/2016/val.txt")
    with pytest.raises(InputError, match=r"it has no ImageSets/2016/val\.txt"):
        open_davis(davis, "2016")


def test_a_damaged_later_frame_or_mask_is_named_when_it_is_read(davis: Path) -> None:
    spoil(davis, "JPEGImages/480p/goat/00002.jpg")
    whole = (davis / FIRST).read_bytes()
    (davis / FIRST.replace("0.png", "1.png")).write_bytes(whole[: len(whole) // 2])
    video = open_davis(davis)[1][0]
    with pytest.raises(InputError, match=r"sequence goat: frame '.*00002\.jpg' cannot be read: not an image"):
        video.frame(2)
    with pytest.raises(InputError, match=r"'.*00001\.png' cannot be read"):
        video.mask(1)


def test_later_frames_of_another_shape_and_later_masks_with_colours_are_refused(davis: Path) -> None:
    frames = davis / "JPEGImages" / "480p" / "goat"
    write_frame(davis, "goat", 1, size=(8, 12))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by a quarter
    Image.new("RGB", (12, 8)).save(frames / "00002.jpg", exif=turned)
    Image.new("RGB", (12, 8)).save(davis / "Annotations" / "480p" / "goat" / "00001.png")
    (video,) = open_davis(davis)[1]
    assert video.frame(0).shape == (3, 8, 12)
    for i in (1, 2):
        with pytest.raises(InputError, match=rf"0000{i}.jpg' has 8 x 12 pixels upright, but the first mask 12 x 8"):
            video.frame(i)
    with pytest.raises(InputError, match=r"00001.png' has colours \(mode RGB\)"):
        video.mask(1)


def test_a_list_that_is_no_text_is_named(davis: Path) -> None:
    (davis / "ImageSets" / "2017" / "val.txt").write_bytes("goat".encode("utf-16"))
    with pytest.raises(InputError, match=r"val.txt cannot be read as text in UTF-8"):
        open_davis(davis)
