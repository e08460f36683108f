"""What rows of a run from given weights tell: before training, when its guard stops it, and what training paid."""

from __future__ import annotations

import re
from math import sqrt
from typing import Any

import pytest

from simdino.config import RunConfig
from simdino.methods import METHODS
from simdino.options import every_setting
from simdino.runs.given import advice, conclude, guard_stop

GOOD = {"loss": -1.0, "expansion_fraction": 0.6, "alignment": 0.8, "effective_rank": 40.0, "gradient_ratio": 1.0}
COLLAPSE = GOOD | {"expansion_fraction": 0.01, "alignment": 0.99, "effective_rank": 1.2}
SIMDINO = METHODS["simdino"]
QUERIES = 400
ERROR = 100 * sqrt(0.6 * 0.4 / QUERIES)  # of 60 %: 2.45 points


def run(**words: Any) -> RunConfig:
    return RunConfig(**{"init": "weights.pth", "steps": 100, "batch": 8, "guard": 3, "evaluate_every": 10, **words})


def rows(*scores: float | None, row: dict[str, Any] = GOOD) -> list[dict[str, Any]]:
    """Evaluations at steps 0, 10, 20, ... with ten training lines before each but the first."""
    found: list[dict[str, Any]] = []
    for i, score in enumerate(scores):
        found += [{"step": 10 * i - 9 + j} | row for j in range(10) if i]
        known = {} if score is None else {"knn": score, "queries": QUERIES}
        found.append({"step": 10 * i, "feature_rank": 20.0} | known)
    return found


BELOW, WITHIN = 60 - ERROR - 0.01, 60 - ERROR + 0.01


@pytest.mark.parametrize(
    ("scores", "stops"),
    [
        ((60.0, BELOW, BELOW, BELOW), True),
        ((60.0, BELOW, BELOW), False),
        ((60.0, BELOW, BELOW, WITHIN), False),
        ((60.0, BELOW, WITHIN, BELOW, BELOW), False),
        ((60.0, 70.0, BELOW, BELOW, BELOW), True),
        ((60.0, BELOW, BELOW, BELOW, 61.0), False),
        ((60.0,), False),
    ],
)
def test_a_guard_stops_after_evaluations_in_a_row_more_than_a_standard_error_below(
    scores: tuple[float, ...], stops: bool
) -> None:
    why = guard_stop(rows(*scores), run(), SIMDINO)
    assert (why is not None) == stops
    assert guard_stop(rows(*scores), run(guard=0), SIMDINO) is None
    assert guard_stop(rows(*scores), run(init=None), SIMDINO) is None
    assert guard_stop(rows(*scores), run(guard=4), SIMDINO) is None
    assert guard_stop(rows(*scores), run(steps=10 * len(scores) - 10), SIMDINO) is None, (
        "a run at its end is not stopped"
    )
    if why is not None:
        assert "(2.4) below the 60.0 % of the given weights in 3 evaluations in a row" in why
        verdict = conclude(rows(*scores), run(), SIMDINO)
        assert (verdict.status, verdict.alarm) == ("stopped by the guard", True)
        assert verdict.sentence.startswith("Stopped by the guard: k-NN has been") and why in verdict.sentence


def test_without_labels_only_health_is_guarded() -> None:
    ill = rows(None, None, None, None, row=COLLAPSE)
    assert guard_stop(ill, run(), SIMDINO) == "the features have shown collapse in 3 evaluations in a row"
    assert guard_stop(rows(None, None, None, None), run(), SIMDINO) is None
    cured = [*rows(None, None, None, row=COLLAPSE), *rows(None, None, None, None)[-11:]]
    assert guard_stop(cured, run(), SIMDINO) is None
    assert "k-NN" not in conclude(ill, run(), SIMDINO).sentence


@pytest.mark.parametrize(
    ("scores", "said", "keep"),
    [
        (
            (60.0, 62.0, 66.0),
            "Training paid: k-NN is 6.0 points above the 60.0 % of the weights that were given.",
            False,
        ),
        ((60.0, 66.0, 65.0), "The best, 66.0 % after step 10, is encoder-best.safetensors.", False),
        ((60.0, 61.0, 63.0), "no difference that can be measured: k-NN is 3.0 points above", False),
        ((60.0, 58.0, 59.5), "within the standard error of 3.5. Keep the weights that were given", True),
        ((60.0, 59.0, 50.0), "Training did not pay: k-NN is 10.0 points below the 60.0 %", True),
        ((60.0, 60.0, 60.0), "Keep the weights that were given; encoder-best.safetensors holds them.", True),
    ],
)
def test_the_verdict_names_what_training_paid(scores: tuple[float, ...], said: str, keep: bool) -> None:
    verdict = conclude(rows(*scores), run(), SIMDINO, own_after=-1)
    assert said in verdict.sentence and "\n" not in verdict.sentence
    assert ("Keep the weights" in verdict.sentence) == keep
    assert conclude(rows(*scores), run(init=None), SIMDINO).sentence.count("given") == 0


def test_the_best_of_a_branch_is_its_own() -> None:
    """The encoder of a better step of its trunk is not in its folder."""
    found = rows(60.0, 80.0, 62.0, 63.0, 64.0)
    assert "after step 10" in conclude(found, run(), SIMDINO, own_after=-1).sentence
    branch = conclude(found, run(), SIMDINO, own_after=20)
    assert "encoder-best" not in branch.sentence and "4.0 points above the 60.0 %" in branch.sentence
    fallen = conclude(rows(60.0, 80.0, 50.0, 40.0), run(), SIMDINO, own_after=20).sentence
    assert "Keep the weights that were given." in fallen and "encoder-best" not in fallen


def start(knn: float | None, **other: float) -> dict[str, Any]:
    known = {} if knn is None else {"knn": knn, "knn_random": 30.0, "knn_pixels": 40.0, "queries": QUERIES} | other
    return {"step": 0, "feature_rank": 84.0, "feature_rank_random": 12.0} | known


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (start(41.0), "They are no better than raw pixels here"),
        (start(41.0, knn_random=50.0), "They are no better than random weights of the same encoder here"),
        (start(60.0), "They are 20.0 points above raw pixels; whether training adds to that, it must show."),
        (start(99.2), "They leave 0.8 points to gain"),
        (start(98.0), "They leave 2.0 points to gain"),  # two standard errors of 0.7 points, and more
        (start(97.0), "They are 57.0 points above raw pixels"),
    ],
)
def test_before_training_a_sentence_says_what_is_known(row: dict[str, Any], said: str) -> None:
    if row["knn"] == 98.0:
        row["queries"] = 100
    lines = advice(row, run())
    assert [line.split()[0] for line in lines] == ["given", "given", "guard"]
    assert said in lines[1]
    assert f"k-NN {row['knn']:.1f} % with the weights in weights.pth; {row['knn_random']:.1f} % with random" in lines[0]
    assert f"The score to beat is {row['knn']:.1f} %" in lines[2] and "3 evaluations in a row" in lines[2]
    assert "stops" not in advice(row, run(guard=0))[2]
    assert "stops" not in advice(row, run(guard=4, steps=40, evaluate_every=10))[2], "which has three before its end"
    assert "stops" in advice(row, run(guard=3, steps=40, evaluate_every=10))[2]


def test_without_labels_it_is_said_that_nothing_scores_them() -> None:
    lines = advice(start(None), run())
    assert "effective rank 84 with the weights in weights.pth, 12 with random weights" in lines[0]
    assert "no labels" in lines[1] and "collapses or over-expands in 3 evaluations in a row" in lines[2]
    assert "stops" not in advice(start(None), run(guard=0))[2]


def test_what_a_stopped_run_is_told_to_lower_exists() -> None:
    sentence = conclude(rows(60.0, 1.0, 1.0, 1.0), run(), SIMDINO).sentence
    named = set(re.findall(r"--[a-z][a-z-]*", sentence))
    assert named and named <= {one.name for one in every_setting().values()}
