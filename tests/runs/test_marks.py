"""Marks that a run must reach: what they say, when they end a run, and which can never."""

from __future__ import annotations

from typing import Any

import pytest

from simdino.config import RunConfig
from simdino.contracts import InputError
from simdino.marks import Mark, out_of_reach, read_mark, read_marks
from simdino.methods import METHODS
from simdino.options import Options, setting_of
from simdino.runs.given import conclude, early_stop, mark_stop

SIMDINO = METHODS["simdino"]


def rows(*scores: float, every: int = 10) -> list[dict[str, Any]]:
    """Evaluations at steps 0, 10, 20, ... with a training line before each but the first."""
    found: list[dict[str, Any]] = []
    for i, score in enumerate(scores):
        found += [{"step": every * i - 1, "loss": -1.0}] if i else []
        found.append({"step": every * i, "feature_rank": score / 2, "knn": score})
    return found


def run(*marks: str, **words: Any) -> RunConfig:
    given: dict[str, Any] = {"steps": 100, "batch": 8, "stop_below": marks or None, **words}
    return RunConfig(**given)


def test_a_mark_is_a_metric_a_value_and_a_step() -> None:
    assert read_mark("knn 40 at 2000") == Mark(metric="knn", value=40, step=2000)
    assert read_mark("  feature_rank 12.5  at 7 ") == Mark(metric="feature_rank", value=12.5, step=7)
    assert str(read_mark("knn 40.0 at 2000")) == "knn 40 at 2000"
    assert read_marks(None) == read_marks(["never"]) == []
    assert [mark.step for mark in read_marks(["knn 40 at 2", "knn 50 at 4"])] == [2, 4]


@pytest.mark.parametrize("text", ["knn", "knn 40", "knn at 20", "knn 40 at", "knn -4 at 2", "knn 40 at 2.5", "40 at 2"])
def test_another_text_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match=r"must be METRIC VALUE at STEP, such as 'knn 40 at 2000'"):
        read_mark(text)


def test_an_unknown_metric_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"an evaluation measures knn or feature_rank; did you mean feature_rank\?"):
        read_mark("features_rank 3 at 2")


@pytest.mark.parametrize(
    ("marks", "scores", "why"),
    [
        (("knn 40 at 20",), (30, 35), None),
        (("knn 40 at 20",), (30, 35, 39.9), "k-NN was 39.9 % after step 20, below the mark of 40 % at 20"),
        (("knn 40 at 11",), (30, 35, 39.9), "k-NN was 39.9 % after step 20, below the mark of 40 % at 11"),
        (("knn 40 at 20",), (30, 35, 40), None),
        (("knn 40 at 20",), (30, 35, 41, 10, 10), None),
        (("knn 40 at 10", "knn 50 at 30"), (30, 41, 42, 49), "k-NN was 49.0 % after step 30, below the mark of 50 %"),
        (("feature_rank 20 at 20",), (30, 35, 38), "the rank of the features was 19.0 after step 20, below"),
        (("never",), (30, 0, 0), None),
        ((), (30, 0, 0), None),
    ],
)  # fmt: skip
def test_the_first_evaluation_from_the_step_on_decides(
    marks: tuple[str, ...], scores: tuple[float, ...], why: str | None
) -> None:
    found = mark_stop(rows(*scores), run(*marks))
    assert found is None if why is None else found is not None and found.startswith(why)
    assert mark_stop(rows(*scores), run(*marks, steps=10 * len(scores) - 10)) is None, "a run at its end is not stopped"


def test_a_run_without_that_score_goes_on() -> None:
    unlabelled = [{name: value for name, value in row.items() if name != "knn"} for row in rows(30, 30, 30)]
    assert mark_stop(unlabelled, run("knn 40 at 10")) is None
    assert mark_stop([], run("knn 40 at 0")) is None


def test_the_verdict_says_so() -> None:
    verdict = conclude(rows(30, 35, 39), run("knn 40 at 20"), SIMDINO)
    assert (verdict.status, verdict.alarm) == ("stopped below a mark", True)
    assert verdict.sentence.startswith("Stopped below a mark: k-NN was 39.0 % after step 20")
    stop = early_stop(rows(30, 35, 39), run("knn 40 at 20"), SIMDINO)
    assert stop is not None and stop.all_the_same("runs/a").endswith("--resume runs/a --stop-below never")
    given = conclude(rows(30, 35, 39), run("knn 40 at 20", init="weights.pth"), SIMDINO)
    assert "Training paid: k-NN is 9.0 points above the 30.0 %" in given.sentence


def test_the_guard_comes_first() -> None:
    stop = early_stop(rows(60, 35, 35), run("knn 40 at 20", init="weights.pth", guard=2), SIMDINO)
    assert stop is not None and stop.status == "stopped by the guard" and stop.option == "--guard 0"


@pytest.mark.parametrize(
    ("mark", "steps", "every", "labelled", "why"),
    [
        ("knn 40 at 20", 100, 10, True, None),
        ("knn 40 at 0", 100, 10, True, None),
        ("knn 40 at 90", 100, 10, True, None),
        ("knn 40 at 91", 100, 10, True, "the first evaluation from that step on is the last, after 100 steps"),
        ("knn 40 at 200", 100, 10, True, "the first evaluation from that step on is the last, after 100 steps"),
        ("knn 40 at 20", 100, 1000, True, "the run is evaluated every 1000 steps"),
        ("knn 40 at 20", 100, 10, False, "there are no labels, so no k-NN; give feature_rank"),
        ("feature_rank 40 at 20", 100, 10, False, None),
        ("never", 100, 1000, False, None),
    ],
)
def test_marks_that_no_evaluation_can_decide_are_told(
    mark: str, steps: int, every: int, labelled: bool, why: str | None
) -> None:
    found = out_of_reach((mark,), steps=steps, every=every, labelled=labelled)
    assert found is None if why is None else found is not None and why in found and mark in found


def test_several_marks_are_separated_by_commas() -> None:
    several = ("knn 40 at 2000", "knn 50 at 4000")
    assert setting_of("stop-below").read("knn 40 at 2000, knn 50 at 4000") == several
    assert Options(stop_below=list(several)).values["run.stop_below"] == several
