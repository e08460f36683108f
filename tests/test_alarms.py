"""Both alarms ring on runs that really fail, and neither on one that does not."""

from pathlib import Path

import pytest

import simdino as sd
from simdino.data.sources import open_dataset
from simdino.data.survey import DatasetStatistics, measure_dataset
from simdino.runs.verdict import Verdict

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def statistics() -> DatasetStatistics:
    return measure_dataset(open_dataset("digits", "train"))


def verdict(folder: Path, statistics: DatasetStatistics, **words: object) -> Verdict:
    from simdino.options import Options

    options = Options(batch=64, lr=1e-3, threads=1, **words)
    config = sd.recipes.resolve("digits", options, statistics=statistics)
    return sd.pretrain(config, folder, log=lambda _: None).verdict


def test_without_a_rate_the_features_collapse_and_the_alarm_says_so(
    tmp_path: Path, statistics: DatasetStatistics
) -> None:
    said = verdict(tmp_path / "run", statistics, gamma=0.0, steps=40)
    assert said.status == "collapse"
    assert "--rho" in said.sentence


def test_a_rate_far_too_strong_over_expands_and_the_alarm_says_so(
    tmp_path: Path, statistics: DatasetStatistics
) -> None:
    said = verdict(tmp_path / "run", statistics, gamma=1.0, steps=150)
    assert said.status == "over-expansion"
    assert "Lower --rho" in said.sentence


def test_the_default_weight_does_neither(tmp_path: Path, statistics: DatasetStatistics) -> None:
    said = verdict(tmp_path / "run", statistics, steps=150)
    assert said.status == "healthy", said.sentence
