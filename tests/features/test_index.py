"""Search, near duplicates and outliers against float64 written out, and what an index refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import simdino as sd
from simdino.features import duplicates, nearest
from simdino.features.extract import Features
from simdino.features.index import EmbeddingIndex
from simdino.features.nearest import full_precision

Floats = NDArray[np.float64]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that a few hundred vectors need many."""
    monkeypatch.setattr(nearest, "COLUMNS", 192)
    monkeypatch.setattr(duplicates, "COLUMNS", 96)
    monkeypatch.setattr(duplicates, "ROWS", 80)


def vectors(count: int, width: int = 24, *, seed: int = 0) -> Tensor:
    """Of several lengths, around a few directions."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(7, width))
    made = centres[random.integers(7, size=count)] + random.normal(size=(count, width))
    return torch.from_numpy((made * random.uniform(0.1, 10, (count, 1))).astype(np.float32))


def cosines(left: Tensor, right: Tensor) -> Floats:
    a, b = (one.double().numpy() for one in (left, right))
    return (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)


def ranked(scores: Floats, k: int) -> NDArray[np.int64]:
    """Columns in falling order of the score as float32; of equals the earlier first."""
    rounded = scores.astype(np.float32)
    return np.stack([np.lexsort((np.arange(len(row)), -row))[:k] for row in rounded])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("k", [1, 10, 500])
@pytest.mark.parametrize("count", [500, 1003])
def test_search_is_the_order_of_float64(count: int, k: int) -> None:
    bank, queries = vectors(count), vectors(90, seed=1)
    found, right = EmbeddingIndex(bank).search(queries, k=k), cosines(queries, bank)
    assert np.array_equal(found.indices.numpy(), ranked(right, k))
    picked = np.take_along_axis(right, found.indices.numpy(), 1)
    assert found.scores.dtype == torch.float32 and np.abs(found.scores.numpy() - picked).max() < 1e-7


@pytest.mark.usefixtures("small_blocks")
def test_vectors_closer_together_than_a_product_in_float32_can_tell_are_in_order() -> None:
    """Hundreds whose cosines differ by less than the rounding of a sum, but not of a number."""
    random = np.random.default_rng(0)
    direction = random.normal(size=400)
    bank = torch.from_numpy((direction + random.normal(size=(600, 400)) * 3e-4).astype(np.float32))
    queries = bank[:50] + torch.from_numpy(random.normal(size=(50, 400)).astype(np.float32))
    right = cosines(queries, bank)
    coarse = (torch.nn.functional.normalize(queries) @ torch.nn.functional.normalize(bank).T).numpy()
    assert not np.array_equal(ranked(coarse.astype(np.float64), 10), ranked(right, 10))
    found = EmbeddingIndex(bank).search(queries, k=10)
    assert np.array_equal(found.scores.numpy(), np.sort(right.astype(np.float32))[:, :-11:-1])
    assert (found.indices.numpy() == ranked(right, 10)).mean() > 0.99  # a last bit of float64 may round the other way


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("copies", [2, 30, 300])
def test_of_equal_vectors_the_earlier_is_first(copies: int) -> None:
    """More equals than there are spare candidates; a power of two leaves the direction as it is to the last bit."""
    bank = vectors(700)
    at = np.random.default_rng(0).permutation(700)[:copies]
    bank[at] = bank[at[0]] * torch.from_numpy(2.0 ** np.random.default_rng(1).integers(-3, 3, (copies, 1))).float()
    index = EmbeddingIndex(bank)
    found = index.search(bank[at[0]], k=min(copies, 20))
    assert found.indices[0].tolist() == sorted(at)[:20] and set(found.scores[0].tolist()) == {1.0}
    others = index.search(int(at[0]), k=1)
    assert others.indices[0].tolist() == [next(i for i in sorted(at) if i != at[0])]


def test_all_vectors_may_be_equal() -> None:
    index = EmbeddingIndex(torch.ones(300, 5))
    assert index.search(torch.ones(2, 5), k=4).indices.tolist() == [[0, 1, 2, 3]] * 2
    assert index.near_duplicates(1.0) == [list(range(300))]
    assert index.outliers(k=3, count=2).indices.tolist() == [0, 1]


@pytest.mark.usefixtures("small_blocks")
def test_opposite_and_orthogonal_vectors_have_cosines_of_minus_one_and_nought() -> None:
    index = EmbeddingIndex(torch.tensor([[0.0, -2.0], [0.0, 3.0], [-4.0, 0.0], [0.0, -1.0], [5.0, 0.0]]))
    found = index.search(torch.tensor([0.0, 1.0]), k=5)
    assert found.scores.tolist() == [[1, 0, 0, -1, -1]]
    assert found.indices.tolist() == [[1, 2, 4, 0, 3]]


def test_rows_are_asked_for_by_name_or_position_and_leave_themselves_out() -> None:
    bank = vectors(60)
    index = EmbeddingIndex(bank, names=[f"{i}.jpg" for i in range(60)], labels=np.arange(60) % 3)
    right = cosines(bank, bank)
    np.fill_diagonal(right, -np.inf)
    expected = ranked(right, 5)
    asked: list[Any] = [["3.jpg", "50.jpg"], [3, 50], torch.tensor([3, 50]), np.array([3, 50], dtype=np.int32)]
    for queries in asked:
        found = index.search(queries, k=5)
        assert np.array_equal(found.indices.numpy(), expected[[3, 50]])
    for query in ("3.jpg", 3, np.int64(3), torch.tensor(3)):
        found = index.search(query, k=5)
        assert found.names == [[f"{i}.jpg" for i in expected[3]]]
        assert found.labels == [[i % 3 for i in expected[3]]]
    assert np.array_equal(index.search(range(60), k=59).indices.sort().values[7].numpy(), np.delete(np.arange(60), 7))


def test_one_query_may_be_a_row_of_numbers() -> None:
    index = EmbeddingIndex(vectors(60))
    one = vectors(1, seed=3)[0]
    assert torch.equal(index.search(one).indices, index.search(one[None]).indices)
    assert torch.equal(index.search(one.tolist()).indices, index.search(one.double().numpy()).indices)


def union(pairs: NDArray[np.bool_]) -> list[list[int]]:
    """Groups by colouring: each vector gives its lowest number to all that it touches, until nothing changes."""
    colour = np.arange(len(pairs))
    while True:
        lowest = np.where(pairs, colour[None], len(pairs)).min(1)
        new = np.minimum(colour, lowest)
        if np.array_equal(new, colour):
            break
        colour = new
    groups = [np.flatnonzero(colour == one).tolist() for one in np.unique(colour)]
    return sorted((one for one in groups if len(one) > 1), key=lambda one: (-len(one), one[0]))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("held", [1, 2**20])
@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.75, 0.8])
def test_near_duplicates_are_the_components_of_float64(
    threshold: float, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "HELD", held)
    bank = vectors(500)
    right = cosines(bank, bank).astype(np.float32) >= np.float32(threshold)
    expected = union(right)
    assert len(expected) > (0 if threshold == 0.3 else 3)
    assert EmbeddingIndex(bank).near_duplicates(threshold) == expected


@pytest.mark.usefixtures("small_blocks")
def test_planted_duplicates_and_chains_are_found_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    bank = torch.from_numpy(random.normal(size=(400, 64)).astype(np.float32))
    for to, start in ((17, 3), (399, 3), (250, 100)):
        bank[to] = bank[start] + 0.02 * torch.from_numpy(random.normal(size=64).astype(np.float32))
    a, b = bank[7] / bank[7].norm(), bank[8] - bank[8] @ bank[7] / bank[7].norm() ** 2 * bank[7]
    for i, angle in enumerate((0.0, 0.3, 0.6, 0.9)):  # cos 0.3 is .955, cos 0.6 is .825
        bank[200 + i] = np.cos(angle) * a + np.sin(angle) * b / b.norm()
    bank[7] = bank[9] * 3
    expected = [[200, 201, 202, 203], [3, 17, 399], [7, 9], [100, 250]]
    assert EmbeddingIndex(bank).near_duplicates() == expected
    assert EmbeddingIndex(bank).near_duplicates(1.0) == [[7, 9]]


@pytest.mark.usefixtures("small_blocks")
def test_a_pair_on_the_threshold_is_decided_in_float64() -> None:
    """Cosines so near the threshold that a float32 product errs; their float32 values are those that search gives."""
    random = np.random.default_rng(0)
    bank = torch.from_numpy(random.normal(size=(80, 500)).astype(np.float32))
    bank[40:] = bank[:40] + 0.3 * bank[40:]
    scores = cosines(bank, bank).astype(np.float32)[np.arange(40), np.arange(40, 80)]
    index = EmbeddingIndex(bank)
    for i, score in enumerate(scores[:20]):
        up = float(np.nextafter(score, np.float32(2)))
        assert [i, i + 40] in index.near_duplicates(float(score))
        assert [i, i + 40] not in index.near_duplicates(up)


@pytest.mark.usefixtures("small_blocks")
def test_outliers_are_in_order_of_their_mean_distance() -> None:
    bank = vectors(300)
    bank[123] = torch.from_numpy(np.random.default_rng(5).normal(size=24).astype(np.float32))
    bank[123] -= 3 * bank[123] @ bank.mean(0) / bank.mean(0).norm() ** 2 * bank.mean(0)
    right = cosines(bank, bank)
    np.fill_diagonal(right, -np.inf)
    distances = 1 - np.sort(right)[:, -6:].mean(1)
    found = EmbeddingIndex(bank).outliers(k=6)
    assert np.array_equal(found.indices.numpy(), np.argsort(-distances, kind="stable"))
    assert np.allclose(found.distances.numpy(), np.sort(distances)[::-1], atol=1e-7)
    first = EmbeddingIndex(bank, names=[f"n{i}" for i in range(300)]).outliers(k=6, count=2)
    assert first.names == [f"n{i}" for i in found.indices[:2].tolist()] and first.distances.shape == (2,)


def test_a_planted_outlier_is_the_first() -> None:
    bank = vectors(300).abs()
    bank[222] = -bank[222]
    assert EmbeddingIndex(bank).outliers(count=1).indices.tolist() == [222]


def test_features_bring_their_names_and_the_names_of_their_classes() -> None:
    found = Features(
        vectors=vectors(3), names=["a.jpg", "b.jpg", "c.jpg"], labels=np.array([1, 0, 1]), classes=("cat", "dog"),
        broken={},
    )  # fmt: skip
    index = sd.EmbeddingIndex(found)
    assert index.names == ["a.jpg", "b.jpg", "c.jpg"] and index.labels == ["dog", "cat", "dog"]
    assert index.vectors.data_ptr() == found.vectors.data_ptr(), "float32 vectors are not copied"
    assert sd.EmbeddingIndex(found, labels=["x", "y", "z"]).labels == ["x", "y", "z"]
    assert "3 vectors of 24 numbers" in repr(index)


@pytest.mark.parametrize("given", [
    lambda v: v.numpy(), lambda v: v.double(), lambda v: v.tolist(), lambda v: v.t().contiguous().t(),
    lambda v: np.frombuffer(v.numpy().tobytes(), dtype=np.float32).reshape(v.shape), lambda v: v.requires_grad_(),
], ids=["numpy", "float64", "lists", "transposed", "read only", "with a gradient"])  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_vectors_come_in_any_form(given: Callable[[Tensor], Any]) -> None:
    bank, queries = vectors(50), vectors(4, seed=1)
    expected = EmbeddingIndex(bank).search(queries)
    found = EmbeddingIndex(given(bank.clone())).search(queries)
    assert torch.equal(found.indices, expected.indices) and torch.equal(found.scores, expected.scores)
    assert not found.scores.requires_grad


def test_lengths_may_be_anything_that_float32_can_hold() -> None:
    bank = vectors(50)
    scale = torch.logspace(-25, 25, 50)[:, None]
    right = EmbeddingIndex(bank).search(bank, k=5)
    found = EmbeddingIndex(bank * scale).search(bank * scale, k=5)
    assert torch.equal(found.indices, right.indices) and torch.allclose(found.scores, right.scores, atol=1e-6)


def three() -> EmbeddingIndex:
    return EmbeddingIndex(torch.eye(3))


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "flat": (lambda: EmbeddingIndex(torch.ones(3)), r"must be float32 \[N, D\] and not empty, received .*\[3\]"),
    "whole numbers": (lambda: EmbeddingIndex(torch.ones(3, 3).int()), "received int32 "),
    "empty": (lambda: EmbeddingIndex(torch.ones(0, 3)), r"not empty, received float32 \[0, 3\]"),
    "text": (lambda: EmbeddingIndex("features.parquet"), r"received str"),  # pyright: ignore[reportArgumentType]
    "names": (lambda: EmbeddingIndex(torch.ones(3, 3), names=["a"]), "names: there are 1 for 3 vectors"),
    "labels": (lambda: EmbeddingIndex(torch.ones(3, 3), labels=[1]), "labels: there are 1 for 3 vectors"),
    "zero": (
        lambda: EmbeddingIndex(torch.eye(4)[[0, 1, 2, 3]] * torch.tensor([1.0, 0, 1, 0])[:, None], names=list("abcd")),
        r"2 of 4 vectors are zero, the first is 1 \(b\)",
    ),
    "nan": (lambda: EmbeddingIndex([[1, 2], [1, torch.nan]]), r"1 of 2 vectors are not finite.* is 1 \(1\)"),
    "infinite": (lambda: EmbeddingIndex(torch.tensor([[1, torch.inf], [1, 2]])), r"not finite, the first is 0"),
    "query": (lambda: three().search(torch.tensor([0, torch.nan, 1])), r"not finite.*\(query 0\)"),
    "width": (lambda: three().search(torch.ones(4), 1), "queries have 4 numbers, the index has .* 3"),
    "flag": (lambda: three().search(True, 1), "queries must be float32"),
    "nothing": (lambda: three().search([], 1), "queries must be float32 .* not empty"),
    "mixed": (lambda: three().search(["1", 2], 1), "no vector named 2"),
    "unknown": (lambda: EmbeddingIndex(torch.eye(2), ["cat", "dog"]).search("cta", 1), "did you mean cat"),
    "several": (lambda: EmbeddingIndex(torch.eye(2), ["a", "a"]).search("a", 1), "several vectors .* named 'a'"),
    "beyond": (lambda: three().search(3, 1), "no vector 3: positions go from 0 to 2"),
    "below": (lambda: three().search([-1], 1), "no vector -1"),
    "k": (lambda: three().search(torch.ones(3), 4), "k 4 must be a whole number from 1 to 3"),
    "k of rows": (lambda: three().search(0, 3), "k 3 must be a whole number from 1 to 2"),
    "k 0": (lambda: three().search(0, 0), "k 0 must be"),
    "k 1.5": (lambda: three().search(0, 1.5), "k 1.5 must be"),  # pyright: ignore[reportArgumentType]
    "lone": (lambda: EmbeddingIndex(torch.ones(1, 3)).outliers(1), "k 1: the index has one vector"),
    "count": (lambda: three().outliers(1, count=4), "count 4 must be"),
    "threshold": (lambda: three().near_duplicates(95), "threshold 95 must be above 0, at most 1"),
    "threshold nan": (lambda: three().near_duplicates(torch.nan), "threshold nan must be"),
    "no labels": (lambda: three().search(0, 1).labels, "the index has no labels"),
    "clusters": (lambda: three().kmeans(4), "clusters 4 must be a whole number from 1 to 3"),
    "directions": (lambda: EmbeddingIndex(torch.ones(9, 3)).kmeans(2), "clusters 2 must be at most 1"),
    "seed": (lambda: three().kmeans(2, seed=-1), "seed -1 must be 0 or more"),
    "iterations": (lambda: three().kmeans(2, iterations=0), "iterations 0 must be 1 or more"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line(case: str) -> None:
    run, expected = BAD[case]
    with pytest.raises(sd.InputError, match=expected) as told:
        run()
    assert "\n" not in str(told.value)


def test_the_order_is_exact_where_a_program_allows_coarser_products() -> None:
    before = torch.get_float32_matmul_precision()
    seen: list[str] = []
    vectors = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision():
            seen.append(torch.get_float32_matmul_precision())
        found = EmbeddingIndex(vectors).search(list(range(60)), 7)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["highest"]
    rows = torch.nn.functional.normalize(vectors.double(), dim=1)
    assert torch.equal(found.indices, (rows @ rows.T).fill_diagonal_(-2).topk(7).indices)
