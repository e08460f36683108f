"""The monitors of a run's checkpoints, beside its k-NN."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from simdino.contracts import InputError
from simdino.evaluate import health
from simdino.evaluate.diagnostics.checkpoints import (
    FEWEST,
    History,
    compared,
    monitors,
    scores_of,
    spearman,
)
from simdino.models.weights import load_encoder, save_encoder
from simdino.options import Options
from simdino.plan import plan
from simdino.pretraining import pretrain
from simdino.runs.evaluations import FILE

FEW = {"images": 24, "view_images": 4, "views": 2}
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept its checkpoints of the steps 1 to 5, each scored."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    words = Options(
        steps=5, batch=8, encoder="vit_toy", patch_size=4, precision="float32", threads=1, evaluate_every=1,
        checkpoint_every=1, lr=0.05,
    )  # fmt: skip
    config = plan("digits", words, folder, log=lambda _: None).config
    pretrain(replace(config, run=replace(config.run, keep=5, knn_bank=100, knn_queries=50)), folder)
    return folder


def history_of(run: Path) -> History:
    found = health(run, checkpoints=True, **FEW)
    assert isinstance(found, History)
    return found


def test_every_checkpoint_is_measured_with_its_own_teacher(run: Path) -> None:
    history = history_of(run)
    assert list(history.healths) == [1, 2, 3, 4, 5]
    assert history.healths[5] == health(run, "digits", **FEW)
    assert len({h.spectrum.rank_me for h in history.healths.values()}) == 5
    assert history.knn == {step: score for step, score in scores_of(run).items() if step}
    assert history.rank_correlation is not None and "5 checkpoints" in history.note
    ranks = [h.spectrum.rank_me for h in history.healths.values()]
    expected = spearmanr(ranks, list(history.knn.values())).statistic
    assert history.rank_correlation["rank_me"] == pytest.approx(expected)
    row = next(row for row in map(json.loads, (run / FILE).read_text().splitlines()) if row["protocol"] == "health")
    assert row["settings"]["checkpoints"] is True
    assert row["results"] == json.loads(json.dumps(history.as_dict()))
    assert str(history).count("\n") > 10 and "k-NN" in str(history)


def test_fewer_scores_than_four_give_no_correlation_and_say_so(run: Path) -> None:
    history = history_of(run)
    few = compared(history.healths, {1: 20.0, 3: 30.0, 5: 25.0})
    assert few.rank_correlation is None and f"needs {FEWEST}" in few.note and few.note in str(few)
    enough = compared(history.healths, {1: 20.0, 2: 21.0, 3: 30.0, 5: 25.0})
    assert enough.rank_correlation is not None
    assert set(enough.rank_correlation) <= set(monitors(history.healths[1]))


def test_a_checkpoint_whose_spectrum_has_no_slope_is_shown_and_alpha_left_out(run: Path) -> None:
    healths = history_of(run).healths
    flat = replace(healths[2], spectrum=replace(healths[2].spectrum, alpha=None))
    history = compared({**healths, 2: flat}, {step: 20.0 + step for step in healths})
    assert history.rank_correlation is not None and "alpha" not in history.rank_correlation
    (line,) = [line for line in str(history).splitlines() if line.startswith("alpha ")]
    assert line.split().count("-") == 1


def test_spearman_is_scipys_and_leaves_out_what_does_not_vary() -> None:
    knn = [30.0, 31.0, 31.0, 40.0, 28.0]
    series = {"rises": [1.0, 2.0, 2.5, 9.0, 0.0], "tied": [3.0, 1.0, 1.0, 2.0, 5.0], "constant": [2.0] * 5}
    series |= {"missing": [1.0, float("nan"), 2.0, 3.0, 4.0]}
    found = spearman(series, knn)
    assert set(found) == {"rises", "tied"}
    for name, value in found.items():
        assert value == pytest.approx(spearmanr(series[name], knn).statistic)
    assert spearman(series, [1.0] * 5) == {}


def test_what_is_no_run_with_checkpoints_is_refused(run: Path, tmp_path: Path) -> None:
    save_encoder(load_encoder(run), tmp_path / "encoder.safetensors")
    with pytest.raises(InputError, match="no checkpoints"):
        health(tmp_path, "digits", checkpoints=True, **FEW)


def test_a_damaged_checkpoint_is_named(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    state = copy / "checkpoints" / "step-00000003" / "state.pt"
    state.write_bytes(state.read_bytes()[:-50])
    with pytest.raises(InputError, match="step-00000003 is damaged"):
        history_of(copy)
