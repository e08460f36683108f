"""Weighted k-NN against scikit-learn's, and against its definition written out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from math import exp
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

import simdino as sd
from simdino.contracts import InputError
from simdino.evaluate.classification.neighbours import KnnResult, knn_each, vote
from simdino.features.extract import Features
from simdino.features.nearest import nearest


def knn(bank: Features, query: Features | None, *, k: int = 20, **settings: Any) -> KnnResult:
    return knn_each(bank, query, ks=[k], **settings)[0]


def features(vectors: np.ndarray, labels: np.ndarray | None, classes: int = 10) -> Features:
    return Features(
        vectors=torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32)),
        names=[str(i) for i in range(len(vectors))],
        labels=labels,
        classes=tuple(f"class {i}" for i in range(classes)),
        broken={},
    )


def digits() -> tuple[Features, Features]:
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels + np.random.default_rng(0).normal(0, 0.01, pixels.shape)  # so that no two cosines are equal
    return features(pixels[:1200], labels[:1200]), features(pixels[1200:], labels[1200:])


def noise() -> tuple[Features, Features]:
    random = np.random.default_rng(0)
    sets = [(random.normal(size=(n, 16)), random.integers(0, 10, n)) for n in (300, 200)]
    return features(*sets[0]), features(*sets[1])


DATA: dict[str, Callable[[], tuple[Features, Features]]] = {"digits": digits, "noise": noise}


def votes(bank: Features, queries: torch.Tensor, *, k: int, temperature: float) -> torch.Tensor:
    blocks = nearest(bank.vectors, queries, k=k)
    return vote(bank, blocks, queries=len(queries), ks=[k], temperature=temperature)[0]


def sklearn_knn(bank: Features, query: Features, k: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and class probabilities."""
    # A common factor of all votes changes nothing and keeps exp in range.
    model = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp(-distance / temperature))
    model.fit(bank.vectors.double().numpy(), bank.labels)
    queries = query.vectors.double().numpy()
    return model.predict(queries), model.predict_proba(queries)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("k", [1, 5, 20, 200])
@pytest.mark.parametrize("name", DATA)
def test_predictions_and_accuracy_equal_sklearns(name: str, k: int, temperature: float) -> None:
    bank, query = DATA[name]()
    predicted, _ = sklearn_knn(bank, query, k, temperature)
    scores = votes(bank, query.vectors, k=k, temperature=temperature)
    assert (scores.argmax(1).numpy() == predicted).all()
    result = knn(bank, query, k=k, temperature=temperature)
    assert result.top1 == pytest.approx(100 * (predicted == query.labels).mean())
    assert (result.k, result.bank, result.queries) == (k, len(bank), len(query))


@pytest.mark.parametrize("name", DATA)
def test_votes_are_proportional_to_sklearns_probabilities(name: str) -> None:
    bank, query = DATA[name]()
    scores = votes(bank, query.vectors, k=20, temperature=0.07)
    _, expected = sklearn_knn(bank, query, 20, 0.07)
    np.testing.assert_allclose((scores / scores.sum(1, keepdim=True)).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("k", [20, 200])
def test_top5_equals_sklearns_five_most_probable(k: int) -> None:
    bank, query = noise()
    _, probabilities = sklearn_knn(bank, query, k, 0.07)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    expected = 100 * (best == np.asarray(query.labels)[:, None]).any(1).mean()
    assert knn(bank, query, k=k).top5 == pytest.approx(expected)


def test_top5_counts_at_most_k_classes_as_in_dino() -> None:
    bank, query = noise()
    hits = 0
    for vector, label in zip(query.vectors, np.asarray(query.labels), strict=True):
        cosines = torch.nn.functional.cosine_similarity(bank.vectors, vector[None])
        hits += label == np.asarray(bank.labels)[int(cosines.argmax())]
    result = knn(bank, query, k=1)
    assert result.top1 == result.top5 == pytest.approx(100 * hits / len(query))


def test_classes_without_a_vote_follow_in_their_order() -> None:
    """As in DINO's script all classes are ranked: of those nobody voted for, the first count among the five."""
    bank = features(np.eye(8)[[6, 6, 3, 3, 6, 0]], np.array([6, 6, 3, 3, 6, 0]), classes=8)
    asked = np.tile(np.eye(8)[6] + 0.5 * np.eye(8)[3], (8, 1))
    query = features(asked, np.arange(8), classes=8)
    result = knn(bank, query, k=5)  # three votes for class 6, two for class 3; then 0, 1 and 2
    assert result.top1 == pytest.approx(100 / 8) and result.top5 == pytest.approx(100 * 5 / 8)
    for label, right in enumerate([True, True, True, True, False, False, True, False]):
        one = features(asked[:1], np.array([label]), classes=8)
        assert knn(bank, one, k=5).top5 == 100 * right, label


def test_with_five_classes_or_fewer_top5_is_all() -> None:
    bank, query = noise()
    few = [features(part.vectors.numpy(), np.asarray(part.labels) % 3, classes=3) for part in (bank, query)]
    assert knn(few[0], few[1], k=200).top5 == 100


def test_votes_equal_their_definition() -> None:
    bank, query = noise()
    scores = votes(bank, query.vectors[:10], k=7, temperature=0.2)
    for row, vector in zip(scores, query.vectors[:10].double(), strict=True):
        cosines = sorted(
            (float(vector @ other / vector.norm() / other.norm()), int(label))
            for other, label in zip(bank.vectors.double(), np.asarray(bank.labels), strict=True)
        )
        expected: dict[int, float] = defaultdict(float)
        for cosine, label in cosines[-7:]:
            expected[label] += exp(cosine / 0.2)
        share = {c: v / sum(expected.values()) for c, v in expected.items()}
        assert (row / row.sum()).tolist() == pytest.approx([share.get(c, 0.0) for c in range(10)], abs=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 0.003])
def test_sharp_votes_do_not_overflow(temperature: float) -> None:
    bank, query = digits()
    predicted, _ = sklearn_knn(bank, query, 20, temperature)
    scores = votes(bank, query.vectors, k=20, temperature=temperature)
    assert scores.isfinite().all()
    assert (scores.argmax(1).numpy() == predicted).mean() > 0.995  # float32 cosines over a temperature of 0.003


@pytest.mark.parametrize("rows", [1, 7, 200, 1024])
def test_the_size_of_the_blocks_does_not_matter(rows: int) -> None:
    bank, query = noise()
    blocks = list(nearest(bank.vectors, query.vectors, k=9, rows=rows))
    assert [start for start, _, _ in blocks] == list(range(0, 200, rows))
    all_cosines = torch.nn.functional.cosine_similarity(query.vectors[:, None], bank.vectors[None], dim=2)
    expected = all_cosines.topk(9, dim=1)
    torch.testing.assert_close(torch.cat([cosines for _, cosines, _ in blocks]), expected.values, atol=1e-5, rtol=0)
    assert torch.equal(torch.cat([index for _, _, index in blocks]), expected.indices)


def test_more_queries_than_a_block_are_all_scored() -> None:
    bank, query = noise()
    many = features(query.vectors.repeat(11, 1).numpy(), np.tile(np.asarray(query.labels), 11))
    assert knn(bank, many).top1 == pytest.approx(knn(bank, query).top1)


def test_lengths_of_vectors_do_not_matter() -> None:
    bank, query = noise()
    longer = features(7 * bank.vectors.numpy(), bank.labels)
    assert knn(longer, query) == knn(bank, query)


def test_the_bank_classifies_itself_without_error_at_k_1() -> None:
    bank, _ = noise()
    assert knn(bank, bank, k=1).top1 == 100


@pytest.mark.parametrize("k", [0, -1, 301])
def test_a_k_outside_the_bank_is_refused(k: int) -> None:
    bank, query = noise()
    with pytest.raises(InputError, match=f"--k {k} .*300"):
        knn(bank, query, k=k)


@pytest.mark.parametrize("temperature", [0.0, -0.07, float("nan")])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature: float) -> None:
    with pytest.raises(InputError, match=r"--temperature .* must be above 0"):
        sd.evaluate.knn("nowhere", "nothing", temperature=temperature)  # before anything is opened


@pytest.mark.parametrize("missing", ["bank", "query"])
def test_missing_labels_are_refused(missing: str) -> None:
    bank, query = noise()
    bare = features(bank.vectors.numpy(), None)
    with pytest.raises(InputError, match="labels"):
        knn(*((bare, query) if missing == "bank" else (bank, bare)))


def test_different_classes_are_refused_and_named() -> None:
    bank, query = noise()
    with pytest.raises(InputError, match="class 10"):
        knn(bank, features(query.vectors.numpy(), query.labels, classes=11))


def test_a_result_says_its_numbers_in_words_and_as_values() -> None:
    bank, query = noise()
    result = knn(bank, query)
    assert f"{result.top1:.2f} %" in str(result) and "20-NN" in str(result)
    assert result.as_dict() == {
        "top1": result.top1, "top5": result.top5, "k": 20, "bank": 300, "queries": 200,
    }  # fmt: skip


def test_several_k_at_once_are_each_what_they_are_alone() -> None:
    for make in DATA.values():
        bank, query = make()
        ks = [20, 1, 200, 5]
        assert knn_each(bank, query, ks=ks) == [knn(bank, query, k=k) for k in ks]


# Leave one out


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 5, 20])
def test_leaving_one_out_is_a_bank_without_the_image_itself(k: int) -> None:
    every = digits()[1]
    labels, right = np.asarray(every.labels), 0
    for i, vector in enumerate(every.vectors.double().numpy()):
        others = np.arange(len(every)) != i
        rest = features(every.vectors.numpy()[others], labels[others])
        predicted, _ = sklearn_knn(rest, features(vector[None], labels[i : i + 1]), k, 0.07)
        right += predicted[0] == labels[i]
        if i == 99:
            break
    first = features(every.vectors.numpy()[:100], labels[:100])
    result = knn(every, None, k=k)
    assert (result.bank, result.queries) == (len(every) - 1, len(every))
    blocks = nearest(every.vectors, None, k=k, rows=100)
    scores = vote(every, [next(blocks)], queries=100, ks=[k], temperature=0.07)[0]
    assert int((scores.argmax(1).numpy() == np.asarray(first.labels)).sum()) == right


def test_an_image_that_is_there_twice_is_left_out_once() -> None:
    bank, _ = noise()
    twice = features(bank.vectors.repeat(2, 1).numpy(), np.tile(np.asarray(bank.labels), 2))
    assert knn(twice, None, k=1).top1 == 100  # the copy is the nearest
    assert knn(bank, None, k=1).top1 < 50


def test_leaving_one_out_leaves_one_fewer_to_ask_for() -> None:
    bank, _ = noise()
    knn(bank, None, k=299)
    with pytest.raises(InputError, match="--k 300 must be between 1 and the size of the bank, 299"):
        knn(bank, None, k=300)


# A coarse product


@pytest.mark.parametrize("leave_out", [False, True])
def test_a_bfloat16_product_gives_the_same_cosines_and_neighbours(leave_out: bool) -> None:
    bank, query = digits()
    queries = None if leave_out else query.vectors
    exact, coarse = (
        list(nearest(bank.vectors, queries, k=20, rows=400, precision=precision))
        for precision in ("float32", "bfloat16")
    )
    for (start, cosines, index), (coarse_start, coarse_cosines, coarse_index) in zip(exact, coarse, strict=True):
        assert start == coarse_start
        torch.testing.assert_close(cosines, coarse_cosines, atol=1e-6, rtol=0)
        assert (index == coarse_index).double().mean() > 0.999  # cosines equal in float32 may swap


def test_without_the_second_look_bfloat16_would_change_the_order() -> None:
    bank, query = digits()
    bank16, query16 = (torch.nn.functional.normalize(f.vectors, dim=1).bfloat16() for f in (bank, query))
    plain = (query16 @ bank16.T).topk(20, dim=1).indices
    exact = torch.cat([index for _, _, index in nearest(bank.vectors, query.vectors, k=20)])
    assert (plain == exact).double().mean() < 0.9


def test_a_coarse_product_takes_a_bank_with_few_to_spare() -> None:
    bank, query = noise()
    assert knn(bank, query, k=299, precision="bfloat16").top1 == knn(bank, query, k=299).top1
    assert knn(bank, None, k=299, precision="bfloat16").top1 == knn(bank, None, k=299).top1
