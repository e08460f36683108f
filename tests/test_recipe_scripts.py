"""The scripts in recipes/, on a few tiny images."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from run_metadata import write_metadata

RECIPES = Path(__file__).parents[1] / "recipes"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def run_script(name: str, *words: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, words)])
        runpy.run_path(str(RECIPES / name), run_name="__main__")


def write_images(root: Path, *, channels: int) -> Path:
    random = np.random.default_rng(channels)
    for split, count in (("train", 15), ("val", 3)):
        for kind, level in (("dark", 60), ("light", 190)):
            (root / split / kind).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(level - 50, level + 50, (8, 8, channels), dtype=np.uint8)
                Image.fromarray(pixels.squeeze()).save(root / split / kind / f"{i}.png")
    return root


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    return write_images(tmp_path / "grey", channels=1), write_images(tmp_path / "colour", channels=3)


def test_transfer_trains_on_each_scores_on_both_and_goes_on_where_it_stands(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    run_script("transfer.py", *sets, "--steps", 2, "--out", out)
    printed = capsys.readouterr().out
    assert "trained on grey" in printed
    assert "scored on colour" in printed
    for name in ("grey", "colour"):
        rows = [json.loads(line) for line in (out / name / "evaluations.jsonl").read_text().splitlines()]
        assert {row["data"]: row["trained_on"] for row in rows} == {"grey": name == "grey", "colour": name == "colour"}
        assert all(row["results"].keys() == {"encoder", "random initialisation", "raw pixels"} for row in rows)
        assert "not trained on these images" in (out / name / "report.html").read_text()
    assert "<h2>Scores</h2>" in (out / "comparison.html").read_text()
    run_script("transfer.py", *sets, "--steps", 2, "--out", out)
    again = capsys.readouterr().out
    assert again.count("is finished: all 2 steps are done") == 2
    assert again[again.index("k-NN accuracy, %") :] == printed[printed.index("k-NN accuracy, %") :]


def test_transfer_refuses_one_set_and_runs_on_other_data(sets: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="two different"):
        run_script("transfer.py", sets[0], f"{sets[0]}/", "--out", tmp_path / "runs")
    folder = tmp_path / "runs" / "grey"
    folder.mkdir(parents=True)
    write_metadata(folder, "elsewhere")
    with pytest.raises(SystemExit, match="was trained on other data"):
        run_script("transfer.py", *sets, "--steps", 2, "--out", tmp_path / "runs")
