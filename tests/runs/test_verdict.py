"""Verdicts on synthetic runs, and RankMe against its closed form."""

from __future__ import annotations

import re
from math import exp, log
from typing import Any

import numpy as np
import pytest
import torch

from simdino.config import LossConfig
from simdino.methods import METHODS
from simdino.methods.method import Method
from simdino.methods.simdino import COLLAPSED, EXPANDED, UNALIGNED
from simdino.options import every_setting
from simdino.runs.verdict import Verdict, feature_rank
from simdino.runs.verdict import judge as judge_by

GOOD = {"loss": -1.0, "expansion_fraction": 0.6, "alignment": 0.8, "effective_rank": 40.0, "gradient_ratio": 1.0}
COLLAPSE = GOOD | {"expansion_fraction": 0.01, "alignment": 0.99, "effective_rank": 1.2}
EXPANSION = GOOD | {"expansion_fraction": 0.97, "alignment": 0.1, "gradient_ratio": 9.0}


def judge(rows: list[dict[str, Any]], method: str = "simdino") -> Verdict:
    return judge_by(rows, METHODS[method])


def rows(row: dict[str, Any], count: int = 40, scores: tuple[float, ...] = ()) -> list[dict[str, Any]]:
    """Training lines, then an evaluation line for each score."""
    return [{"step": i} | row for i in range(count)] + [{"step": count, "knn": score} for score in scores]


@pytest.mark.parametrize(
    ("row", "status", "alarm"),
    [(GOOD, "healthy", False), (COLLAPSE, "collapse", True), (EXPANSION, "over-expansion", True)],
)
def test_each_kind_of_run_gets_its_verdict(row: dict[str, Any], status: str, alarm: bool) -> None:
    verdict = judge(rows(row))
    assert (verdict.status, verdict.alarm) == (status, alarm)
    assert "\n" not in verdict.sentence


@pytest.mark.parametrize("lines", [[], rows(COLLAPSE, 2), [{"knn": 5.0}] * 10])
def test_fewer_than_three_training_lines_are_too_early(lines: list[dict[str, Any]]) -> None:
    verdict = judge(lines)
    assert verdict.status == "too early" and not verdict.alarm


@pytest.mark.parametrize(
    ("row", "cause"), [(COLLAPSE, "the rate is too weak"), (EXPANSION, "views of one image are pushed apart")]
)
def test_an_alarm_names_a_cause_and_options_that_exist(row: dict[str, Any], cause: str) -> None:
    sentence = judge(rows(row)).sentence
    known = {one.name for one in every_setting().values()}
    named = re.findall(r"--[a-z][a-z-]*", sentence)
    assert cause in sentence
    assert named and set(named) <= known, set(named) - known


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"expansion_fraction": COLLAPSED - 1e-3}, "collapse"),
        ({"expansion_fraction": COLLAPSED + 1e-3}, "healthy"),
        ({"expansion_fraction": EXPANDED + 1e-3, "alignment": UNALIGNED - 1e-3}, "over-expansion"),
        ({"expansion_fraction": EXPANDED - 1e-3, "alignment": UNALIGNED - 1e-3}, "healthy"),
        ({"expansion_fraction": EXPANDED + 1e-3, "alignment": UNALIGNED + 1e-3}, "healthy"),
    ],
)
def test_verdicts_change_at_their_thresholds(change: dict[str, float], status: str) -> None:
    assert judge(rows(GOOD | change)).status == status


@pytest.mark.parametrize(("bad", "status"), [(9, "healthy"), (11, "collapse")])
def test_only_the_last_tenth_counts(bad: int, status: str) -> None:
    # Of 200 lines the last 20 count: their median is bad when more than half of them are.
    assert judge(rows(GOOD, 200 - bad) + rows(COLLAPSE, bad)).status == status


@pytest.mark.parametrize(("spread", "named"), [(0.0, True), (0.9 / 255, True), (1.1 / 255, False), (None, False)])
def test_a_collapse_of_equal_images_is_not_blamed_on_the_loss(spread: float | None, named: bool) -> None:
    lines = [{"step": 0, "image_spread": spread}, *rows(COLLAPSE)]
    sentence = judge(lines).sentence
    assert ("the images themselves are alike" in sentence) == named and ("--rho" in sentence) != named
    assert judge([lines[0], *rows(GOOD)]).status == "healthy"


def test_one_wild_line_does_not_raise_an_alarm() -> None:
    lines = rows(GOOD, 30)
    lines[-2] |= {"expansion_fraction": 0.0}
    assert judge(lines).status == "healthy"


def test_evaluation_lines_between_training_lines_do_not_matter() -> None:
    mixed = [line for row in rows(EXPANSION, 20) for line in (row, {"knn": None}, {"feature_rank": 3.0})]
    assert judge(mixed).status == "over-expansion"


def test_a_falling_knn_is_mentioned() -> None:
    assert "5.0 points" in judge(rows(EXPANSION, scores=(50.0, 70.0, 65.0))).sentence
    healthy = judge(rows(GOOD, scores=(50.0, 70.0, 65.0)))
    assert healthy.status == "healthy" and "5.0 points under its best" in healthy.sentence


@pytest.mark.parametrize("scores", [(), (70.0,), (50.0, 60.0, 70.0), (50.0, 70.0, 68.5)])
def test_a_knn_that_has_not_turned_is_not_mentioned(scores: tuple[float, ...]) -> None:
    for row in (GOOD, EXPANSION):
        assert "k-NN" not in judge(rows(row, scores=scores)).sentence


def test_the_sentence_says_the_numbers() -> None:
    sentence = judge(rows(GOOD)).sentence
    assert "0.60" in sentence and "0.80" in sentence and "40" in sentence


def rankme(values: np.ndarray) -> float:
    """The definition in Garrido et al. 2023, equation 1 with eps 1e-7."""
    p = [value / values.sum() + 1e-7 for value in values]
    return exp(-sum(share * log(share) for share in p))


def test_stacked_identities_have_the_rank_of_the_closed_form() -> None:
    rank = feature_rank(torch.eye(8).repeat(4, 1))
    share = 1 / 8 + 1e-7
    assert rank == pytest.approx(exp(-8 * share * log(share)), rel=1e-12)
    assert rank == pytest.approx(8.0000069, abs=1e-7)


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [5.0, 1.0, 0.2], [1.0, 1e-3, 0.0], [3.0, 2.0, 0.0]])
def test_the_rank_of_known_singular_values_equals_the_definition(values: list[float]) -> None:
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.normal(size=(n, 3)))[0] for n in (50, 3))
    vectors = torch.from_numpy(left @ np.diag(values) @ right.T)
    assert feature_rank(vectors) == pytest.approx(rankme(np.array(values) + 1e-300), rel=1e-6)


def test_equal_features_have_rank_one_and_scale_does_not_matter() -> None:
    assert feature_rank(torch.ones(100, 16)) == pytest.approx(1, abs=1e-3)
    vectors = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    assert feature_rank(1000 * vectors) == pytest.approx(feature_rank(vectors), rel=1e-6)
    assert 15 < feature_rank(vectors) <= 16.001


def test_the_rank_of_many_sorted_features_covers_all_of_them() -> None:
    """Sources are in the order of their folders: the first 4,096 may be one class."""
    vectors = torch.eye(4).repeat_interleave(4_000, dim=0)
    assert feature_rank(vectors) == pytest.approx(4, rel=0.01)


def test_a_run_that_ends_under_its_start_is_no_healthy_one() -> None:
    wrecked = judge([{"step": 0, "knn": 60.0}, *rows(GOOD, scores=(55.0, 50.0))])
    assert (wrecked.status, wrecked.alarm) == ("worse than at the start", True)
    assert "60.0 to 50.0 %" in wrecked.sentence and "--lr" in wrecked.sentence
    assert judge([{"step": 0, "knn": 60.0}, *rows(GOOD, scores=(55.0, 58.5))]).status == "healthy"
    few = judge([{"step": 0, "knn": 60.0, "queries": 50}, *rows(GOOD, scores=(55.0, 50.0))])
    assert few.status == "healthy", "five of fifty images are no more than chance"


PROTOTYPES = {"loss": 5.0, "expansion_fraction": 0.1, "alignment": 0.9, "effective_rank": 3.0, "target_entropy": 0.8}


@pytest.mark.parametrize(
    ("change", "status", "cause"),
    [
        ({"prototype_use": 0.95}, "healthy", ""),
        ({"prototype_use": 0.805}, "collapse", "say next to nothing"),
        ({"prototype_use": 0.95, "effective_rank": 1.2}, "collapse", "nearly the same feature"),
        ({"prototype_use": 0.02, "target_entropy": 0.015}, "collapse", "the same prototype"),
    ],
)
def test_a_run_with_prototypes_collapses_in_targets_or_in_features(
    change: dict[str, float], status: str, cause: str
) -> None:
    for method in ("dino", "dinov2"):
        verdict = judge(rows(PROTOTYPES | change), method)
        assert verdict.status == status and cause in verdict.sentence


@pytest.mark.parametrize(("rank", "status"), [(None, "healthy"), (20.0, "healthy"), (1.1, "collapse")])
def test_a_loss_without_health_terms_is_judged_by_the_features(rank: float | None, status: str) -> None:
    plain = Method(name="plain", about="Logs its loss.", settings=LossConfig, objective=METHODS["dino"].objective)
    lines = [{"step": 0, "feature_rank": 30.0}, *rows({"loss": 0.5}), {"step": 40, "feature_rank": rank}]
    verdict = judge_by(lines, plain)
    assert verdict.status == status and "loss 0.5" in verdict.sentence
