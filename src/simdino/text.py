r"""Strings from outside on their way out. Names of files, folders and classes may hold bytes that are no UTF-8 (Python
keeps them as lone surrogates, which nothing else can write), line breaks, and orders to a terminal.

What people or other programs read (terminal, --json, CSV, Parquet, HTML, pictures, a classifier's classes) goes through
`readable`, `readable_lines` or `encodable`. What we read again ourselves keeps names exactly: JSON in ASCII does in
config.json and evaluations.jsonl, `one_line` in broken.txt.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

_LONE = re.compile("[\ud800-\udfff]")
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}
_LONG = {escape: character for character, escape in _SHORT.items()} | {r"\\": "\\"}
_ESCAPE = re.compile(r"\\(?:[\\tnr]|x[0-9a-f]{2}|u[0-9a-f]{4})")
_BYTE = 0xDC00  # added to a byte that is no UTF-8 by Python's surrogateescape


def readable(text: str) -> str:
    r"""One line that can be shown and encoded: bytes that are no UTF-8 and control characters as \xNN, line breaks and
    tabs as \n, \r, \t, other control characters and lone surrogates as \uNNNN."""
    return _HIDDEN.sub(_escape, text)


def readable_lines(text: str) -> str:
    """`readable`, but the line breaks stay."""
    return "\n".join(map(readable, text.split("\n")))


def encodable(text: str) -> str:
    """What no encoding can write as `readable` has it; the rest stays."""
    return _LONE.sub(_escape, text)


def show(line: str) -> None:
    """Print a line."""
    print(readable(line))


def to_json(value: Any) -> str:
    """One line of JSON that any program can read: Python alone takes lone surrogates in it."""
    return json.dumps(_encodable_in(value))


def escape(text: str) -> str:
    """Readable lines as HTML."""
    return html.escape(readable_lines(text))


def one_line(name: str) -> str:
    """A readable line from which `as_it_was` tells the name: a backslash is doubled."""
    return readable(name.replace("\\", r"\\"))


def as_it_was(line: str) -> str:
    """The inverse of `one_line`."""
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
    """The same lists and dicts with encodable strings, keys too."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {_encodable_in(key): _encodable_in(inner) for key, inner in value.items()}
    return list(map(_encodable_in, value)) if isinstance(value, list | tuple) else value
