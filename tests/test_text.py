"""Names with bytes that are not UTF-8, line breaks and escape sequences go everywhere that strings go."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

from simdino.cli import terminal
from simdino.contracts import InputError
from simdino.data.base import ArraySource
from simdino.evaluate.classification.classifier import check_place
from simdino.evaluate.classification.classify import Predictions, write_csv
from simdino.features.rows import regrouped, rows_of, schema_of, write_parquet
from simdino.plan import run_folder
from simdino.runs.folder import check_free, read_broken, write_broken
from simdino.show import console
from simdino.show.page import document, shown
from simdino.show.sheets import write
from simdino.text import as_it_was, encodable, escape, one_line, readable, readable_lines, to_json

HORRORS = {
    "ch\udce8vre": r"ch\xe8vre",
    "two\nlines\r": r"two\nlines\r",
    "\x1b[31mred": r"\x1b[31mred",
    "half \ud83d of a pair": r"half \ud83d of a pair",
    "next\x85line\u2028": r"next\u0085line\u2028",
    "日本 <b>🐐": "日本 <b>🐐",
}


@pytest.mark.parametrize("name", HORRORS)
def test_a_name_becomes_one_line_that_any_program_reads(name: str) -> None:
    assert readable(name) == HORRORS[name]
    assert readable(readable(name)) == readable(name)
    assert encodable(name).encode().decode() == encodable(name)
    assert readable_lines(f"a\n{name}").split("\n")[0] == "a"


def test_every_character_and_every_byte_comes_back() -> None:
    names = [*map(chr, range(0x3000)), *map(chr, range(0xD800, 0xE000)), os.fsdecode(bytes(range(1, 256)))]
    names += ["C:\\new\\x41", "\\\\u0085\x85", "\\"]
    lines = list(map(one_line, names))
    assert list(map(as_it_was, lines)) == names
    assert len(set(lines)) == len(set(names))
    assert not any(len(line.splitlines()) > 1 or "\t" in line for line in lines)
    "".join(lines).encode()


def test_json_has_no_lone_surrogates_at_any_depth() -> None:
    text = to_json({"p\udce9": [{"a": ("\ud800", 1, None)}, "line\nbreak"]})
    assert "\\ud" not in text.replace("\\\\", "")
    assert json.loads(text) == {r"p\xe9": [{"a": [r"\ud800", 1, None]}, "line\nbreak"]}


def test_html_is_encodable_and_keeps_lines() -> None:
    assert escape("<b>\udce9\n\x1b") == "&lt;b&gt;\\xe9\n\\x1b"
    document("\udce9", shown(["\udce9", {"a": "\ud800"}])).encode()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_narrow_encoding_ends_no_command(encoding: str) -> None:
    code = (
        "from simdino.cli.terminal import answer, fail, log, speak_any_encoding as speak\nspeak()\n"
        "log('日本 \\udce9\\x1b')\nanswer({}, ['日本 \\udce9', 'b'], as_json=False)\n"
        "answer({'日本': '\\udce9'}, [], as_json=True)\nfail('日本 \\udce9', code=2)"
    )
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=False)
    assert done.returncode == 2, done.stderr.decode(errors="replace")
    assert b"\x1b" not in done.stderr and b"Traceback" not in done.stderr
    lines = done.stdout.decode(encoding, errors="replace").splitlines()
    assert lines[0].endswith(r" \xe9") and lines[1] == "b"
    assert json.loads(lines[2]) == {"日本": r"\xe9"}


def test_importing_the_commands_leaves_the_streams_as_they_are() -> None:
    code = "import sys; b = sys.stdout.errors; import simdino.cli; assert sys.stdout.errors == b"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_bar_shows_names_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    text = StringIO()
    monkeypatch.setattr(console, "RichConsole", lambda **_: Console(file=text, force_terminal=True, width=120))
    assert list(console.watched([1, 2], "features of [red] [/b] \udce9", 2)) == [1, 2]
    assert r"features of [red] [/b] \xe9" in text.getvalue()


def test_tables_take_any_name_of_a_file_or_class(tmp_path: Path) -> None:
    names = list(HORRORS)
    found = Predictions(
        names=names, classes=tuple(names), broken={}, ranked=torch.arange(6)[:, None], probabilities=torch.ones(6, 1)
    )
    write_csv(found, tmp_path / "p.csv")
    rows = list(csv.reader(StringIO((tmp_path / "p.csv").read_text(encoding="utf-8"))))
    assert [row[:2] for row in rows[1:]] == [[name, name] for name in HORRORS.values()]
    assert "\n" not in str(found)
    source = ArraySource("x", np.zeros((6, 1, 1), dtype=np.uint8), names, np.arange(6), names)
    schema = schema_of((2,), "float32", column="vector", about={})
    out = tmp_path / "f\udce9.parquet"
    write_parquet(regrouped([rows_of(source, range(6), torch.ones(6, 2), schema)], 6), schema, out)
    with out.open("rb") as file:
        table = pq.read_table(file)
    assert table["path"].to_pylist() == table["label"].to_pylist() == list(HORRORS.values())


def test_pictures_take_any_name() -> None:
    for name in HORRORS:
        write(Image.new("RGB", (200, 20)), name, (100, 0), 200, (0, 0, 0))


def test_the_list_of_broken_images_is_utf_8(tmp_path: Path) -> None:
    write_broken(tmp_path, dict.fromkeys(HORRORS, "torn\x1b \udce9"))
    assert len((tmp_path / "broken.txt").read_text(encoding="utf-8").splitlines()) == len(HORRORS)
    assert read_broken(tmp_path).keys() == HORRORS.keys()


def test_a_run_gets_a_name_that_all_its_files_can_have(tmp_path: Path) -> None:
    assert run_folder(str(tmp_path / "donn\udce9es")) == Path("runs", r"donn\xe9es")
    with pytest.raises(InputError, match="UTF-8"):
        check_free(tmp_path / "donn\udce9es")
    with pytest.raises(InputError, match="UTF-8"):
        check_place(tmp_path / "c\udce9.safetensors")


def test_what_is_said_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.log("left out a\nb\udce9: torn")
    assert capsys.readouterr().err == "left out a\\nb\\xe9: torn\n"
