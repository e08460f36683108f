"""Copy detection by hand, its vectors from their formulas, and what is wrong with a folder, in a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mean_colour import MeanColour
from PIL import Image

from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.evaluate.retrieval.copies import (
    copies,
    copy_vector,
    generalised_mean,
    originals_of,
    pictures_in,
    whitening_of,
)
from simdino.models.catalogue import make_encoder

pytestmark = pytest.mark.usefixtures("one_thread")
SHADES = {"red": (250, 0, 0), "rust": (230, 60, 0), "lime": (120, 220, 0), "blue": (0, 0, 250)}


def paint(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 15), colour).save(path)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Copies of red and lime that are nearest to their originals, one of rust that is nearest to red."""
    root = tmp_path / "own"
    for name, colour in SHADES.items():
        paint(root / "originals" / f"{name}.png", colour)
    paint(root / "copies" / "red-dark.png", (100, 0, 0))
    paint(root / "copies" / "lime-dark.png", (60, 110, 0))
    paint(root / "copies" / "rust-red.png", (240, 10, 0))
    return root


def test_by_hand(own: Path) -> None:
    result = copies(MeanColour(), own, size=16)
    assert result.map == pytest.approx(100 * (1 + 1 + (0 + 1 / 2) / 2) / 3)  # rust-red finds red, then rust
    assert result.recall1 == pytest.approx(200 / 3)
    assert (result.copies, result.originals, result.distractors, result.whitening, result.skipped) == (3, 4, 0, 0, 0)
    assert str(result).startswith("mAP 75.00 %  recall@1 66.67 %, 3 copies of 4 originals among 0 distractors")


def test_distractors_push_originals_down_and_only_twenty_ranks_count(own: Path) -> None:
    for i in range(3):
        paint(own / "distractors" / "deep" / f"red-{i}.png", (240, 12 + i, 0))  # nearer to rust-red than rust
    result = copies(MeanColour(), own, size=16)
    assert result.map == pytest.approx(100 * (1 + 1 + (0 + 1 / 5) / 2) / 3)  # rust is fifth
    for i in range(3, 18):
        paint(own / "distractors" / f"red-{i}.png", (240, 12 + i, 0))
    assert copies(MeanColour(), own, size=16).map == pytest.approx(100 * (1 + 1 + (0 + 1 / 20) / 2) / 3)
    paint(own / "distractors" / "one-more.png", (240, 11, 0))
    last = copies(MeanColour(), own, size=16)  # rust is the 21st
    assert last.map == pytest.approx(200 / 3) and last.distractors == 19


def test_copydays_tells_originals_by_four_letters(own: Path) -> None:
    root = own.parent / "copydays"
    for name, colour in (("200000", SHADES["red"]), ("200100", SHADES["lime"])):
        paint(root / "original" / f"{name}.png", colour)
    paint(root / "strong" / "200003.png", (90, 0, 0))
    paint(root / "strong" / "200104.png", (80, 150, 10))
    paint(root / "strong" / "200105.png", (90, 10, 0))
    result = copies(MeanColour(), root, size=16)
    assert result.map == pytest.approx(100 * (1 + 1 + 1 / 4) / 3) and result.copies == 3


def test_the_longest_original_name_that_a_copy_begins_with_is_its_original() -> None:
    found = originals_of(["12-blur.jpg", "123.png", "9.jpg", "deep/1x.jpg"], ["1.jpg", "12.jpg"], letters=None)
    assert [one.tolist() for one in found] == [[1], [1], [], [0]]
    by_four = originals_of(["200103.jpg", "2002.jpg", "20.jpg"], ["200100.jpg", "200200.jpg", "200199.jpg"], letters=4)
    assert [one.tolist() for one in by_four] == [[0, 2], [1], []]


def test_copies_that_tell_no_original_are_skipped_and_counted(own: Path) -> None:
    before = copies(MeanColour(), own, size=16)
    paint(own / "copies" / "unknown.png", (1, 2, 3))
    after = copies(MeanColour(), own, size=16)
    assert (after.map, after.copies, after.skipped) == (before.map, 3, 1)
    assert "3 copies (1 more skipped: their names tell no original)" in str(after)


def test_a_broken_original_is_named_and_never_found(own: Path) -> None:
    (own / "originals" / "lime.png").write_bytes(b"half")
    result = copies(MeanColour(), own, size=16)
    assert list(result.broken) == ["originals/lime.png"]
    assert result.map == pytest.approx(100 * (1 + 0 + 1 / 4) / 3)


def test_the_vector_is_the_class_token_and_the_generalised_mean_of_the_patches() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 8, 8), dtype=np.uint8))
    vector = copy_vector(MeanColour(), image, size=11)  # 11 is brought down to 8, two patches each way
    pixels = image.double() / 255
    patches = [pixels[:, y : y + 4, x : x + 4].mean((1, 2)) for y in (0, 4) for x in (0, 4)]
    gem = (sum(patch**4 for patch in patches) / 4) ** 0.25
    torch.testing.assert_close(vector.double(), torch.cat([pixels.mean((1, 2)), gem]), atol=1e-6, rtol=0)
    assert generalised_mean(torch.tensor([[-3.0, 2], [-1, 0]])).tolist() == pytest.approx([1e-6, (16 / 2) ** 0.25])


def test_whitened_vectors_are_uncorrelated_of_variance_1_about_the_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    mixed = torch.randn(500, 4, generator=draw) @ torch.randn(4, 4, generator=draw) + torch.tensor([5.0, 0, 0, -3])
    white = whitening_of(mixed)(mixed).double()
    torch.testing.assert_close(white.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(white.T @ white / 500, torch.eye(4, dtype=torch.float64), atol=1e-5, rtol=0)
    flat = mixed * torch.tensor([1.0, 1, 1, 0])  # a direction without variance stays finite
    assert whitening_of(flat)(flat).isfinite().all()


def test_whitening_makes_rare_differences_count(tmp_path: Path) -> None:
    """The copy has nearly b's green and exactly a's blue; other pictures vary by 60 in green and by 3 in blue."""
    paint(tmp_path / "originals" / "a.png", (200, 100, 20))
    paint(tmp_path / "originals" / "b.png", (200, 160, 26))
    paint(tmp_path / "copies" / "a-greener.png", (200, 150, 20))
    assert copies(MeanColour(), tmp_path, size=16).recall1 == 0
    for i in range(4):
        paint(tmp_path / "whitening" / f"{i}.png", (200, 70 + 120 * (i // 2), 20 + 6 * (i % 2)))
    result = copies(MeanColour(), tmp_path, size=16)
    assert (result.recall1, result.whitening) == (100, 4) and str(result).endswith("whitened by 4 pictures")
    for i in range(1, 4):
        (tmp_path / "whitening" / f"{i}.png").unlink()
    with pytest.raises(InputError, match="whitening is learned from many pictures"):
        copies(MeanColour(), tmp_path, size=16)


@pytest.mark.extra("timm")
def test_what_is_wrong_with_a_folder_is_told_in_one_line(own: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "originals").mkdir(parents=True)
    (tmp_path / "empty" / "copies").mkdir()
    paint(tmp_path / "strangers" / "originals" / "a.png", (1, 1, 1))
    paint(tmp_path / "strangers" / "copies" / "b.png", (1, 1, 1))
    preprocess = Preprocess(resize=8, crop=8, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3)
    convolutions = make_encoder(EncoderConfig(name="timm:resnet18", image_size=32), preprocess)
    for encoder, root, said in (
        (MeanColour(), tmp_path, "has no originals and copies; expected DIR/originals"),
        (MeanColour(), tmp_path / "empty", "originals' has no pictures; expected"),
        (MeanColour(), tmp_path / "strangers", r"no copy has the name of an original \(b.png"),
        (convolutions, own, "timm:resnet18 has no patches"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            copies(encoder, root)
        assert "\n" not in str(caught.value)


def test_deep_originals_and_their_darker_copies_have_one_scale(tmp_path: Path) -> None:
    for name, top in (("originals", 4095), ("copies", 1023)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "1.npy", np.linspace(0, top, 64).astype(np.uint16).reshape(8, 8))
    sources = pictures_in(tmp_path, ("originals", "copies", "distractors"))
    assert [float(sources[name].read(0).max()) for name in ("originals", "copies")] == pytest.approx([1, 1023 / 4095])
    assert not len(sources["distractors"])
