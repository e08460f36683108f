"""Pieces of an HTML page: sections, tables, numbers as people write them, and the style sheet."""

import base64
import json
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from simdino.runs.run import is_number
from simdino.text import escape

PALETTE = ("#2f5fd0", "#d9730d", "#0f8a5f", "#b5309b", "#c9352b", "#0b86a3", "#6d4bd1", "#6b7a12")  # of runs
ABSENT = '<span class="absent">–</span>'


def swatch(colour: str, name: str) -> str:
    """Return the name of a run after a small square in its colour."""
    return f'<i class="swatch" style="background:{colour}"></i>{escape(name)}'


def section(title: str, body: str) -> str:
    """Return a section under its heading, or nothing where there is nothing in it; body is HTML."""
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def figure(kind: str, title: str, picture: str, caption: str) -> str:
    """Return a picture, as HTML, between its title and its caption."""
    return f'<figure class="{kind}"><h3>{title}</h3>{picture}<figcaption>{caption}</figcaption></figure>'


def number(value: float, digits: int = 4) -> str:
    """Return a number as a person writes it: 12,500; 0.83; 5e-5."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}".replace("e-0", "e-").replace("-", "\N{MINUS SIGN}")


def shown(value: Any) -> str:
    """Return a configured value as text for HTML."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_number(value):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "none"
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def table(head: str, rows: Iterable[str], kind: str = "") -> str:
    """Return a table that scrolls where it is too wide; head and rows are HTML cells."""
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def document(title: str, body: str, *, kind: str = "report", style: str | None = None, script: str = "") -> str:
    """Return the whole page, which loads nothing from elsewhere and runs no script but the given one.

    kind: what the page is, in its title. style: its style sheet, STYLE unless given. script: JavaScript, run after the
    body."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    element = ""
    if script:
        known = base64.b64encode(sha256(script.encode()).digest()).decode("ascii")
        policy, element = f"{policy}; script-src 'sha256-{known}'", f"<script>{script}</script>"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)} – simdino {kind}</title><style>{STYLE if style is None else style}</style></head>"
        f"<body><main>{body}</main>{element}</body></html>\n"
    )


STYLE = """
:root { --ink: #1c2130; --muted: #5b6070; --line: #e3e6ed; --soft: #f6f7fa; color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); -webkit-print-color-adjust: exact; print-color-adjust: exact;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 44px 22px 64px; }
h1 { font-size: 32px; line-height: 1.15; letter-spacing: -.02em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 20px; letter-spacing: -.01em; margin: 44px 0 12px; }
h3 { font-size: 14.5px; margin: 0 0 6px; }
header p { color: var(--muted); margin: 4px 0 20px; }
.verdict { margin: 0 0 10px; padding: 12px 16px; border-left: 4px solid; border-radius: 6px; }
.healthy { color: #0b5c3d; background: #e9f6ef; border-color: #18955f; }
.collapse { color: #8d1f1f; background: #fdecec; border-color: #d64545; }
.worse-than-at-the-start { color: #8d1f1f; background: #fdecec; border-color: #d64545; }
.over-expansion { color: #6f4a00; background: #fdf4dc; border-color: #e0a100; }
.too-early { color: #33405e; background: #edf1f8; border-color: #8394b8; }
.pill { padding: 1px 9px; border-radius: 99px; font-size: 13px; white-space: nowrap; }
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin-top: 18px; }
.card { border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; break-inside: avoid; }
.card.knn { grid-column: span 2; background: var(--soft); }
.card > * { display: block; color: var(--muted); font-size: 13px; }
.card strong { color: var(--ink); font-size: 24px; font-weight: 600; font-variant-numeric: tabular-nums; }
.sheet { margin-bottom: 28px; }
.sheet img { display: block; max-width: 100%; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; font-size: 13.5px; width: 100%; }
th, td { text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
th { font-weight: 500; color: var(--muted); }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td small, th small { display: block; color: var(--muted); font-weight: 400; font-size: 12px; }
.caption { color: var(--muted); font-size: 13px; }
.scroll { overflow-x: auto; }
.scroll th:first-child { min-width: 130px; }
.differs td { background: #fffbe8; padding-left: 10px; }
.groups { columns: 3; column-gap: 28px; }
.groups table { break-inside: avoid; margin-bottom: 20px; table-layout: fixed; }
caption { text-align: left; font-weight: 600; padding-bottom: 3px; }
details { margin-top: 24px; }
summary { cursor: pointer; font-weight: 500; margin: 14px 0 8px; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; }
.absent { color: #9aa0b0; }
.charts { display: grid; grid-template-columns: 1fr 1fr; gap: 28px 24px; }
.charts .wide { grid-column: 1 / -1; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { color: var(--muted); font-size: 13px; margin-top: 4px; }
svg { display: block; width: 100%; height: auto; fill: #5b6070; }
svg text { font-size: 11.5px; font-variant-numeric: tabular-nums; }
svg .over { paint-order: stroke; stroke: #fff; stroke-width: 3px; stroke-linejoin: round; }
.legend span { margin-right: 20px; white-space: nowrap; }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 7px; }
@media screen and (max-width: 760px) { .cards { display: block; } .card { margin-bottom: 12px; }
  .groups { columns: 1; } .charts { grid-template-columns: 1fr; } .charts .wide { overflow-x: auto; }
  .wide svg { min-width: 680px; } }
@media print { main { padding: 0; } h2 { break-after: avoid; } }
"""
