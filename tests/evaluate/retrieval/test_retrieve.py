"""Retrieval by classes against scikit-learn, and the neighbours of a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mean_colour import MeanColour
from PIL import Image
from sklearn.metrics import average_precision_score

from simdino.contracts import InputError
from simdino.data.sources import open_dataset
from simdino.evaluate import neighbours_of
from simdino.evaluate.retrieval import ranking
from simdino.evaluate.retrieval.classes import rank_classes, read_picture
from simdino.features.extract import Features, embed

pytestmark = pytest.mark.usefixtures("one_thread")


def features(count: int, seed: int, *, classes: int = 3, labels: list[int] | None = None) -> Features:
    random = np.random.default_rng(seed)
    given = random.integers(0, classes, count) if labels is None else np.array(labels)
    means = np.random.default_rng(9).standard_normal((classes, 6))
    vectors = torch.from_numpy(means[given] + random.standard_normal((len(given), 6))).float()
    names = [f"{i}.png" for i in range(len(given))]
    return Features(vectors=vectors, names=names, labels=given, classes=tuple("abcdef"[:classes]), broken={})


def expected(bank: Features, query: Features, *, own: bool, ks: tuple[int, ...]) -> list[float]:
    """[mAP, precision at each k] in percent, from scikit-learn and a sort of each query's cosines."""
    cosines = torch.nn.functional.cosine_similarity(query.vectors[:, None].double(), bank.vectors.double(), dim=2)
    assert bank.labels is not None and query.labels is not None
    rows = []
    for i, row in enumerate(cosines.numpy()):
        others = np.arange(len(bank)) != i if own else np.full(len(bank), True)
        relevant, scores = (bank.labels == query.labels[i])[others], row[others]
        if relevant.any():
            best = relevant[np.argsort(-scores)]
            rows.append([average_precision_score(relevant, scores), *(best[:k].mean() for k in ks)])
    return (100 * np.mean(rows, axis=0)).tolist()


@pytest.mark.parametrize("cells", [2**24, 100])
@pytest.mark.parametrize("own", [False, True])
def test_the_scores_are_scikit_learns(own: bool, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "CELLS", cells)  # the second: two or three queries at a time
    bank, query, ks = features(40, 0), features(25, 1), (1, 3, 7)
    result = rank_classes(bank, None if own else query, ks=ks)
    average, *at = expected(bank, bank if own else query, own=own, ks=ks)
    assert result.map == pytest.approx(average)
    assert result.precision == pytest.approx(dict(zip(ks, at, strict=True)))
    assert (result.bank, result.queries, result.skipped) == ((39, 40, 0) if own else (40, 25, 0))


def test_by_hand() -> None:
    """One query at 0 degrees; the bank at 10, 20, 30, 40 degrees is a, b, a, b."""
    angles = torch.tensor([0.0, 10, 20, 30, 40]).deg2rad()
    at = torch.stack([angles.cos(), angles.sin()], dim=1)
    bank = Features(vectors=at[1:], names=list("wxyz"), labels=np.array([0, 1, 0, 1]), classes=("a", "b"), broken={})
    query = Features(vectors=at[:1], names=["q"], labels=np.array([1]), classes=("a", "b"), broken={})
    result = rank_classes(bank, query, ks=(1, 2, 4))
    assert result.map == pytest.approx(100 * (1 / 2 + 2 / 4) / 2)
    assert result.precision == {1: 0, 2: 50, 4: 50}
    assert json.loads(json.dumps(result.as_dict()))["precision"] == {"1": 0, "2": 50, "4": 50}
    assert str(result) == "mAP 50.00 %  P@1 0.00 %  P@2 50.00 %  P@4 50.00 %, 1 queries in a bank of 4"


def test_queries_whose_class_the_bank_lacks_are_skipped_and_counted() -> None:
    bank, query = features(6, 0, labels=[0, 0, 0, 1, 1, 1]), features(5, 1, labels=[0, 2, 1, 2, 0])
    result = rank_classes(bank, query, ks=[1])
    assert (result.queries, result.skipped) == (3, 2)
    assert "(2 more skipped: nothing of their class in it)" in str(result)
    kept = [i for i, label in enumerate([0, 2, 1, 2, 0]) if label != 2]
    alone = Features(
        vectors=query.vectors[kept], names=list("abc"), labels=np.array([0, 1, 0]), classes=query.classes, broken={}
    )
    assert rank_classes(bank, alone, ks=[1]).map == result.map
    single = rank_classes(features(4, 0, labels=[0, 0, 1, 2]), ks=[1])  # nothing else of 1 and of 2
    assert (single.queries, single.skipped, single.bank) == (2, 2, 3)


def without_labels(given: Features) -> Features:
    return Features(vectors=given.vectors, names=given.names, labels=None, classes=(), broken={})


def test_what_cannot_be_scored_is_refused_in_one_line() -> None:
    bank, query = features(12, 0), features(5, 1)
    cases = [
        (lambda: rank_classes(without_labels(bank)), "needs labels"),
        (lambda: rank_classes(bank, without_labels(query)), "needs labels"),
        (lambda: rank_classes(features(12, 0, classes=1)), "at least two classes"),
        (lambda: rank_classes(bank, features(5, 1, classes=2)), "different classes.*: c"),
        (lambda: rank_classes(bank, query, ks=[13]), "--k 13 must be between 1 and the size of the bank, 12 images"),
        (lambda: rank_classes(bank, ks=[12]), "size of the bank, 11 images"),
        (lambda: rank_classes(bank, ks=[0]), "--k 0"),
        (lambda: rank_classes(features(3, 0, labels=[0, 1, 2]), ks=[1]), "two of a class"),
    ]
    for call, said in cases:
        with pytest.raises(InputError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Flat colours from red to green."""
    for i in range(6):
        Image.new("RGB", (20, 12), (250 - 50 * i, 50 * i, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_the_neighbours_of_a_picture(pictures: Path) -> None:
    encoder = MeanColour()
    bank = embed(encoder, pictures)
    found = neighbours_of(encoder, pictures / "4.png", bank, k=3)
    assert [one.name for one in found] == ["4.png", "5.png", "3.png"]
    assert found[0].cosine == pytest.approx(1)
    assert found[2].cosine == pytest.approx((50 * 100 + 200 * 150) / (50**2 + 200**2) ** 0.5 / (100**2 + 150**2) ** 0.5)
    red = torch.zeros(3, 9, 30, dtype=torch.uint8)
    red[0] = 255
    assert [one.name for one in neighbours_of(encoder, red, bank, k=6)] == [f"{i}.png" for i in range(6)]


def test_a_photo_of_the_bank_is_its_own_nearest_at_cosine_1(tmp_path: Path) -> None:
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.jpg")
    encoder = MeanColour()
    bank = embed(encoder, tmp_path)
    assert torch.equal(read_picture(tmp_path / "2.jpg", encoder), open_dataset(tmp_path).read(2))
    nearest = neighbours_of(encoder, tmp_path / "2.jpg", bank, k=1)[0]
    assert nearest.name == "2.jpg" and nearest.cosine == pytest.approx(1, abs=1e-6)


def test_no_neighbours_are_told_of_what_cannot_be_compared(pictures: Path, tmp_path: Path) -> None:
    encoder = MeanColour()
    bank = embed(encoder, pictures)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    wide = Features(vectors=torch.ones(6, 5), names=bank.names, labels=None, classes=(), broken={})
    cases = [
        (tmp_path / "none.png", bank, 1, "none.png' cannot be read: No such file"),
        (tmp_path / "broken.png", bank, 1, "broken.png' cannot be read: not an image"),
        (pictures / "0.png", bank, 7, "--k 7 must be between 1 and the size of the bank, 6 images"),
        (pictures / "0.png", bank, 0, "--k 0"),
        (pictures / "0.png", wide, 1, "vectors of 5 numbers, encoder vit_nano makes 3"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), bank, 1, r"picture is \[3, H, W\] for this encoder"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), bank, 1, "received torch.int64"),
    ]
    for picture, among, k, said in cases:
        with pytest.raises(InputError, match=said) as caught:
            neighbours_of(encoder, picture, among, k=k)
        assert "\n" not in str(caught.value)
