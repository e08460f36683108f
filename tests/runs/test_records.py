"""evaluations.jsonl: the latest result for each protocol, data set and settings, and nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simdino.runs.evaluations import FILE, fingerprint, keep


def row(score: float, **changes: object) -> dict[str, object]:
    return {"protocol": "knn", "data": "a", "root": "/a", "settings": {"k": 20}, "results": score, **changes}


def lines(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / FILE).read_text().splitlines()]


def test_a_repeated_evaluation_replaces_its_line_and_no_other(tmp_path: Path) -> None:
    others = [
        row(1.0, protocol="white-box"), row(2.0, data="b"), row(3.0, root="/b/a"), row(4.0, settings={"k": 5})
    ]  # fmt: skip
    for one in (row(0.0), *others, row(9.0)):
        keep(tmp_path, one)
    assert lines(tmp_path) == [{**one, "encoder": None} for one in (*others, row(9.0))]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_lines_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('a note\n[1]\n{"protocol": "linear"}\n\n')
    keep(tmp_path, row(1.0))
    assert (tmp_path / FILE).read_text().splitlines()[:3] == ["a note", "[1]", '{"protocol": "linear"}']


def test_a_line_names_the_weights_it_is_of(tmp_path: Path) -> None:
    weights = tmp_path / "encoder.safetensors"
    weights.write_bytes(b"one")
    keep(tmp_path, row(1.0))
    before = fingerprint(tmp_path)
    assert lines(tmp_path)[0]["encoder"] == before is not None
    weights.write_bytes(b"two")
    assert fingerprint(tmp_path) != before


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(tmp_path, row(1.0))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        keep(tmp_path, row(2.0))
    assert [one["results"] for one in lines(tmp_path)] == [1.0]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
