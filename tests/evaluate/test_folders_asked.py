"""Which folders are splits and classes: the same for a run, for going on with it, and for what scores it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from simdino.cli import main

pytestmark = pytest.mark.slow

FEW = ("--encoder", "vit_toy", "--steps", "2", "--batch", "4", "--threads", "1")


@pytest.fixture
def by_year(tmp_path: Path, one_thread: None) -> Path:
    """year/class/image, so that the first folder is no class; and folders of other splits than names tell."""
    for y, year in enumerate(("2019", "2020", "2021")):
        for c, name in enumerate(("ant", "bee")):
            for i in range(6):
                path = tmp_path / "photos" / year / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), (40 * c + i, 30 * y, 20 * i)).save(path)
    return tmp_path / "photos"


def called(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[str, str]:
    main([str(word) for word in words])
    return capsys.readouterr()


def test_a_run_and_its_evaluations_read_the_data_alike(
    by_year: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    asked = ("--val", "2021", "--class-depth", "-1")
    said = called(capsys, "pretrain", by_year, "--out", run, *FEW, *asked)[1]
    assert "splits    2021/ is for validation, everything else for training" in said
    assert "wherever it lies: ant, bee" in said
    kept = json.loads((run / "config.json").read_text())["config"]["data"]
    assert (kept["val"], kept["class_depth"], kept["train_images"]) == ("2021", -1, 24)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (rows[0]["bank"], rows[0]["queries"]) == (24, 12)
    called(capsys, "evaluate", "knn", run, "--no-baselines", "--device", "cpu")
    called(capsys, "evaluate", "knn", run, "--no-baselines", "--device", "cpu", "--val", "2020")
    scores = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    found = [row["settings"] for row in scores if row["protocol"] == "knn"]
    assert [(row["val"], row["class_depth"]) for row in found] == [("2021", -1), ("2020", -1)]
    called(capsys, "pretrain", "--resume", run)


def test_embed_names_the_classes_asked_for(by_year: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "f.parquet"
    called(capsys, "pretrain", by_year, "--out", run, *FEW)
    for depth, labels in (("1", {"2019", "2020", "2021"}), ("-1", {"ant", "bee"}), ("2", {"2019/ant", "2019/bee"})):
        called(capsys, "embed", run, by_year, "--out", out, "--class-depth", depth, "--device", "cpu")
        assert labels <= set(pq.read_table(out)["label"].to_pylist())


def test_inspect_says_what_was_skipped_in_json_too(by_year: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (by_year / "a.cr2").write_bytes(b"x")
    (by_year / "b.png").symlink_to("gone.png")
    said = called(capsys, "inspect", by_year, "--train", "2019", "--val", "2020")[0]
    assert "12 training images, 12 held out, 2 classes" in said and "left out: 12 in 2021/" in said
    assert "1 .cr2" in said and "1 links lead nowhere" in said
    found = json.loads(called(capsys, "inspect", by_year, "--json")[0])["contents"]
    assert found["skipped"]["not_opened"] == {".cr2": 1} and found["skipped"]["dangling"] == ["b.png"]


def test_a_folder_that_is_not_there_is_told_in_a_line(by_year: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(by_year), "--val", "2022"])
    assert ended.value.code == 2
    assert "--val 2022: " in capsys.readouterr().err
