"""Strings from outside on their way out. Names of files, folders and classes may hold bytes that are not UTF-8 (Python
keeps them as lone surrogates, which nothing else can write), line breaks, and escape sequences that a terminal obeys.

What people or other programs read (terminal, --json, CSV, Parquet, HTML, images, a classifier's classes) goes through
`readable`, `readable_lines` or `encodable`. Files that we read again keep names exactly: config.json and
evaluations.jsonl as ASCII JSON, broken.txt through `one_line`."""

import html
import json
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

_LONE = re.compile("[\ud800-\udfff]")
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}
_LONG = {escape: character for character, escape in _SHORT.items()} | {r"\\": "\\"}
_ESCAPE = re.compile(r"\\(?:[\\tnr]|x[0-9a-f]{2}|u[0-9a-f]{4})")
_BYTE = 0xDC00  # Python's surrogateescape adds it to a byte that is not UTF-8


def readable(text: str) -> str:
    r"""Return one line that can be shown and encoded. Bytes that are not UTF-8 and control characters become \xNN; line
    breaks and tabs become \n, \r and \t; other hidden characters and lone surrogates become \uNNNN."""
    return _HIDDEN.sub(_escape, text)


def readable_lines(text: str) -> str:
    """Return `readable` of each line; the line breaks stay."""
    return "\n".join(map(readable, text.split("\n")))


def encodable(text: str) -> str:
    """Return the text with lone surrogates, which no encoding can write, escaped as in `readable`; the rest stays."""
    return _LONE.sub(_escape, text)


def show(line: str) -> None:
    """Print a line, escaped by `readable`."""
    print(readable(line))


def to_json(value: Any) -> str:
    """Return one line of JSON without lone surrogates, which only Python accepts in JSON."""
    return json.dumps(_encodable_in(value))


def nearest(word: str, known: Iterable[str | None]) -> str:
    """A suggestion for a mistyped word, or nothing."""
    close = get_close_matches(word, [one for one in known if one], n=1)
    return f"; did you mean {close[0]}?" if close else ""


def escape(text: str) -> str:
    """Return the text as HTML, after `readable_lines`."""
    return html.escape(readable_lines(text))


def one_line(name: str) -> str:
    """Return a readable line that `as_it_was` turns back into the name: backslashes are doubled."""
    return readable(name.replace("\\", r"\\"))


def as_it_was(line: str) -> str:
    """Return the name that `one_line` was given."""
    return _ESCAPE.sub(_character, line)


def _escape(match: re.Match[str]) -> str:
    character, code = match[0], ord(match[0])
    if character in _SHORT:
        return _SHORT[character]
    if _BYTE + 0x80 <= code <= _BYTE + 0xFF:
        return f"\\x{code - _BYTE:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"


def _character(match: re.Match[str]) -> str:
    if match[0] in _LONG:
        return _LONG[match[0]]
    code = int(match[0][2:], 16)
    return chr(code + _BYTE if match[0][1] == "x" and code >= 0x80 else code)


def _encodable_in(value: Any) -> Any:
    """Return the same lists and dicts with encodable strings and keys."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {_encodable_in(key): _encodable_in(inner) for key, inner in value.items()}
    return list(map(_encodable_in, value)) if isinstance(value, list | tuple) else value


def as_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of cells under each other; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def duration(seconds: float) -> str:
    """Return seconds as people write them: 80 s, 12 min, 3 h 05 min."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def with_prefix(number: float, unit: str) -> str:
    """Return a number as people write large ones: 1.52 TFLOP."""
    prefixes = ["", "k", "M", "G", "T", "P", "E", "Z"]
    while abs(number) >= 999.5 and len(prefixes) > 1:
        number, prefixes = number / 1000, prefixes[1:]
    return f"{number:.3g} {prefixes[0]}{unit}"
