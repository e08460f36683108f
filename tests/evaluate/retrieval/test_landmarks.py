"""Revisited landmarks: easy, medium and hard by hand, and what is wrong with a data set, in a line."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mean_colour import MeanColour
from PIL import Image

from simdino.contracts import InputError
from simdino.evaluate.retrieval.landmarks import SCALES, landmark_vector, landmarks, open_landmarks, thumbnail

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = [f"house_{i}" for i in range(7)]
GND = [
    {"bbx": [0, 0, 8, 8], "easy": [1, 4], "hard": [2], "junk": [0, 6]},
    {"bbx": [0, 0, 8, 8], "easy": [], "hard": [3, 1], "junk": []},
    {"bbx": [0, 0, 8, 8], "easy": [], "hard": [], "junk": [2]},
]


def write(root: Path, truth: Any) -> Path:
    """Pictures from red to green, house_0 the reddest; all queries are red, so the list is 0, 1, 2, ..."""
    (root / "jpg").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        Image.new("RGB", (16, 12), (240 - 40 * i, 40 * i, 0)).save(root / "jpg" / f"{name}.jpg", quality=95)
    for i in range(3):
        Image.new("RGB", (12, 16), (250, 0, 0)).save(root / "jpg" / f"query_{i}.jpg", quality=95)
    (root / "gnd_rtown7.pkl").write_bytes(pickle.dumps(truth))
    return root


def told(**changes: Any) -> dict[str, Any]:
    return {"imlist": NAMES, "qimlist": [f"query_{i}" for i in range(3)], "gnd": GND} | changes


@pytest.fixture
def town(tmp_path: Path) -> Path:
    return write(tmp_path / "rtown7", told())


def test_easy_medium_and_hard_by_hand(town: Path) -> None:
    result = landmarks(MeanColour(), town)
    assert result.easy is not None and result.medium is not None and result.hard is not None
    # Query 0, easy: right 1, 4; junk 0, 6, 2: the list is 1, 3, 4, 5. Query 1 and 2 have no easy answer.
    assert result.easy.map == pytest.approx(100 * (1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert result.easy.precision == pytest.approx({1: 100, 5: 100 * 2 / 3, 10: 100 * 2 / 3})
    assert result.easy.queries == 1
    # Medium. Query 0: right 1, 4, 2; junk 0, 6: 1, 2, 3, 4, 5. Query 1: right 1, 3: 0, 1, 2, 3, 4, 5, 6.
    first = (1 + 1 + (2 / 3 + 3 / 4) / 2) / 3
    second = ((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2
    assert result.medium.map == pytest.approx(100 * (first + second) / 2)
    assert result.medium.precision == pytest.approx(
        {1: 50, 5: 100 * (3 / 4 + 2 / 4) / 2, 10: 100 * (3 / 4 + 2 / 4) / 2}
    )
    # Hard. Query 0: right 2; junk 0, 6, 1, 4: 2, 3, 5. Query 1 as in medium: it has no easy answers.
    assert result.hard.map == pytest.approx(100 * (1 + second) / 2)
    assert (result.medium.queries, result.hard.queries, result.queries, result.database) == (2, 2, 3, 7)
    assert "medium mAP" in str(result) and "2 queries), 7 pictures of rtown7" in str(result)
    assert result.as_dict()["hard"]["queries"] == 2


def test_a_broken_picture_of_the_database_is_named_and_never_found(town: Path) -> None:
    (town / "jpg" / "house_1.jpg").write_bytes(b"half")
    result = landmarks(MeanColour(), town)
    assert list(result.broken) == ["house_1.jpg"] and result.database == 6
    assert result.easy is not None and result.easy.map == pytest.approx(100 * ((0 + 1 / 2) / 2) / 2)  # of 3, 4, 5


def test_a_broken_query_is_named_and_left_out(town: Path) -> None:
    (town / "jpg" / "query_0.jpg").write_bytes(b"half")
    result = landmarks(MeanColour(), town)
    assert list(result.broken) == ["query_0.jpg"] and result.queries == 2
    assert result.easy is None and result.hard is not None and result.hard.queries == 1
    assert "easy" not in str(result)


def test_the_set_may_lie_one_folder_below(town: Path) -> None:
    assert landmarks(MeanColour(), town.parent) == landmarks(MeanColour(), town)
    write(town.parent / "rother7", told())
    with pytest.raises(InputError, match=r"several ground truths .*give the folder of one"):
        open_landmarks(town.parent)


def without(name: str) -> Callable[[Path], object]:
    return lambda root: (root / "jpg" / name).unlink()


def telling(**changes: Any) -> Callable[[Path], object]:
    return lambda root: (root / "gnd_rtown7.pkl").write_bytes(pickle.dumps(told(**changes)))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (without("house_3.jpg"), r"jpg' lacks 1 of the 10 pictures that gnd_rtown7.pkl names: house_3.jpg"),
        (without("query_2.jpg"), r"lacks 1 of the 10 .*: query_2.jpg"),
        (lambda root: (root / "gnd_rtown7.pkl").unlink(), r"has no gnd_\*.pkl; expected DIR/gnd_roxford5k.pkl"),
        (lambda root: (root / "gnd_rtown7.pkl").write_bytes(b""), "gnd_rtown7.pkl is refused: Ran out of input"),
        (telling(gnd=GND[:2]), "has 3 queries and the truth about 2"),
        (telling(gnd=[{"ok": [1]}] * 3), "is no revisited ground truth: expected imlist"),  # the original Oxford's
        (telling(gnd=[{"easy": ["a"], "hard": [], "junk": []}] * 3), "is no revisited ground truth"),
        (telling(gnd=[{"easy": [7], "hard": [], "junk": []}] * 3), "names answers beyond its 7 pictures"),
        (telling(gnd=[{"easy": [2**70], "hard": [], "junk": []}] * 3), "is no revisited ground truth"),
        (telling(imlist=["../../secret", *NAMES[1:]]), "names pictures outside its folder"),
    ],
)
def test_what_is_wrong_with_a_set_is_told_in_one_line(town: Path, harm: Callable[[Path], object], said: str) -> None:
    harm(town)
    with pytest.raises(InputError, match=said) as caught:
        landmarks(MeanColour(), town)
    assert "\n" not in str(caught.value)


def test_pictures_keep_their_proportions_and_are_never_enlarged() -> None:
    image = torch.zeros(3, 100, 150, dtype=torch.uint8)
    assert thumbnail(image, 30).shape == (3, 20, 30)
    assert thumbnail(image, 150) is image and thumbnail(image, 400) is image
    assert thumbnail(image[:, :1], 30).shape == (3, 1, 30)


def test_scales_are_cut_to_whole_patches_and_averaged() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 21, 30), dtype=np.uint8))
    encoder = MeanColour()
    vector = landmark_vector(encoder, image, size=40, scales=SCALES)
    assert encoder.sides == [(20, 28), (12, 20), (8, 12)]  # of 21 x 30, 14 x 21 and 10 x 15
    parts = []
    for height, width in ((21, 30), (14, 21), (10, 15)):
        one = torch.nn.functional.interpolate(image[None] / 255, (height, width), mode="bilinear")
        parts.append(one[..., : height // 4 * 4, : width // 4 * 4].mean((0, 2, 3)))
    torch.testing.assert_close(vector, torch.stack(parts).mean(0))
    assert not torch.equal(vector, landmark_vector(encoder, image, size=40, scales=[1.0]))


def test_database_and_queries_have_one_scale(town: Path) -> None:
    found = open_landmarks(town)
    assert found.database.scale is found.queries.scale
