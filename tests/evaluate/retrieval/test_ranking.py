"""Average precision and precision at k: cases by hand, and the rules written out as loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from simdino.evaluate.retrieval import ranking
from simdino.evaluate.retrieval.ranking import average_precision, orders, precision_at, ranks_of, trapezoid_precision


def test_junk_leaves_the_list_before_ranks_are_counted() -> None:
    order = np.array([7, 3, 9, 1, 4, 0])
    assert ranks_of(order, np.array([9, 4])).tolist() == [2, 4]
    assert ranks_of(order, np.array([9, 4]), np.array([7, 1, 0])).tolist() == [1, 2]  # 3, 9, 4
    assert ranks_of(order, np.array([8])).tolist() == []


@pytest.mark.parametrize(
    ("ranks", "right", "trapezoid", "steps"),
    [
        ([0], 1, 1, 1),
        ([1], 1, (0 + 1 / 2) / 2, 1 / 2),
        ([0, 2], 2, (1 + (1 / 2 + 2 / 3) / 2) / 2, (1 + 2 / 3) / 2),
        ([1, 2], 3, ((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 3, (1 / 2 + 2 / 3) / 3),  # the third is never found
        ([], 2, 0, 0),
    ],
)
def test_precisions_by_hand(ranks: list[int], right: int, trapezoid: float, steps: float) -> None:
    assert trapezoid_precision(np.array(ranks, np.int64), right) == pytest.approx(trapezoid)
    assert average_precision(np.array(ranks, np.int64), right) == pytest.approx(steps)


def test_precision_at_k_ends_at_the_last_right_answer() -> None:
    assert precision_at(np.array([0, 1, 2]), 10) == 1
    assert precision_at(np.array([0, 3]), 10) == 2 / 4
    assert precision_at(np.array([0, 3, 20]), 10) == 2 / 10
    assert precision_at(np.array([4]), 1) == 0
    assert precision_at(np.array([], np.int64), 5) == 0


def revisited(order: list[int], right: set[int], junk: set[int]) -> float:
    """The trapezoid rule as it is written down: a junk answer moves what follows it up by one."""
    area, found, passed_over = 0.0, 0, 0
    for rank, one in enumerate(order):
        if one in junk:
            passed_over += 1
        elif one in right:
            r = rank - passed_over
            area += ((found / r if r else 1.0) + (found + 1) / (r + 1)) / 2 / len(right)
            found += 1
    return area


@pytest.mark.parametrize("seed", range(20))
def test_random_lists_score_as_loops_do(seed: int) -> None:
    random = np.random.default_rng(seed)
    order, kinds = random.permutation(40), random.integers(0, 4, 40)
    right, junk = np.flatnonzero(kinds == 1), np.flatnonzero(kinds == 2)
    found = trapezoid_precision(ranks_of(order, right, junk), len(right))
    assert found == pytest.approx(revisited(order.tolist(), set(right), set(junk)))
    relevant = np.isin(order, right)
    score = average_precision_score(relevant, np.arange(40, 0, -1))
    assert average_precision(np.flatnonzero(relevant), len(right)) == pytest.approx(score)


def vectors(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


def test_blocks_of_queries_give_what_one_product_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    database, queries = vectors(30, 0), vectors(17, 1)
    whole = torch.nn.functional.cosine_similarity(queries[:, None], database, dim=2).argsort(1, descending=True)
    assert np.array_equal(np.stack(list(orders(database, queries))), whole)
    shapes: list[tuple[int, ...]] = []
    normalize = torch.nn.functional.normalize

    def noted(given: torch.Tensor, dim: int) -> torch.Tensor:
        shapes.append(tuple(given.shape))
        return normalize(given, dim=dim)

    monkeypatch.setattr(ranking, "CELLS", 4 * 30)
    monkeypatch.setattr(ranking.F, "normalize", noted)
    assert np.array_equal(np.stack(list(orders(database, queries))), whole)
    assert shapes == [(30, 5), *[(4, 5)] * 4, (1, 5)]  # four queries' cosines at a time


@pytest.mark.parametrize("cells", [2**24, 3 * 20])
def test_a_query_of_the_database_is_not_in_its_own_list(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "CELLS", cells)
    database = vectors(20, 2)
    for i, order in enumerate(orders(database, database, leave_out_own=True)):
        assert sorted(order) == [j for j in range(20) if j != i]


def test_of_equals_the_earlier_comes_first_and_lengths_do_not_count() -> None:
    database = torch.tensor([[0.0, 1], [2, 0], [1, 0], [-1, 0], [3, 0]])
    assert next(orders(database, torch.tensor([[1.0, 0]]))).tolist() == [1, 2, 4, 0, 3]
