"""One self-contained HTML page about one run, or several side by side. Reads run folders and nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from simdino.contracts import InputError
from simdino.evaluate.health import Verdict, judge
from simdino.show import charts

MOST_BROKEN = 300  # broken files listed on the page; the rest is in the run folder
ABSENT = '<span class="absent">–</span>'
PICTURES = (
    ("views", "Views", "What the encoder is shown: each image, its global views and its local views."),
    ("neighbours", "Nearest neighbours", "Held-out images and the training images nearest to them, nearest first."),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder says, and the verdict on it."""

    name: str
    folder: Path
    facts: dict[str, Any]  # config.json
    settings: dict[str, Any]  # its configuration, the data found and the origin, flat: {"loss.eps": 0.5}
    rows: list[dict[str, Any]]  # metrics.jsonl
    speed: list[dict[str, Any]]
    broken: list[tuple[str, str]]  # file, reason
    verdict: Verdict
    colour: str


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one self-contained HTML page about the runs and return its path.

    Args:
        runs: run folders.
        out: the page, or a folder for it. Default: `RUN/report.html`, or `comparison.html` beside the first of several.
    """
    folders = list(dict.fromkeys(Path(run) for run in runs))
    if not folders:
        raise InputError("report: no run folder was given")
    found = [_read(folder, charts.PALETTE[i % len(charts.PALETTE)]) for i, folder in enumerate(folders)]
    if len({run.name for run in found}) < len(found):
        found = [replace(run, name="/".join(run.folder.resolve().parts[-2:])) for run in found]
    page = "report.html" if len(found) == 1 else "comparison.html"
    if out is None:
        out = (folders[0] if len(found) == 1 else folders[0].resolve().parent) / page
    elif Path(out).is_dir():
        out = Path(out) / page
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(_page(found), encoding="utf-8")
    except OSError as error:
        raise InputError(f"report: cannot write {out}: {error.strerror}") from None
    return out


def _read(folder: Path, colour: str) -> Run:
    if not folder.is_dir():
        raise InputError(f"report: {folder} is not a folder; give a run folder, as `simdino pretrain` writes it")
    for name in ("config.json", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise InputError(f"report: {folder} has no {name}; give a run folder, as `simdino pretrain` writes it")
    try:
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"report: {folder / 'config.json'} is not JSON: {error}") from None
    if not isinstance(facts, dict):
        raise InputError(f"report: {folder / 'config.json'} holds no JSON object")
    rows = _json_lines(folder / "metrics.jsonl")
    if not rows:
        raise InputError(f"report: {folder / 'metrics.jsonl'} is empty; the run has measured nothing yet")
    config, data = facts.get("config"), facts.get("data")
    origin = {key: facts[key] for key in ("simdino", "source_revision", "machine") if key in facts}
    speed, broken = folder / "speed.jsonl", folder / "broken.txt"
    lines = broken.read_text(encoding="utf-8", errors="replace").split("\n") if broken.is_file() else []
    return Run(
        name=folder.resolve().name,
        folder=folder,
        facts=facts,
        settings=_flat(config if isinstance(config, dict) else {})
        | _flat({"dataset": data if isinstance(data, dict) else {"name": data}, "origin": origin}),
        rows=rows,
        speed=_json_lines(speed) if speed.is_file() else [],
        broken=[(name, reason) for name, _, reason in (line.partition("\t") for line in lines if line.strip())],
        verdict=judge(rows),
        colour=colour,
    )


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file. The last line may be cut off: the run may be writing it now."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows: list[dict[str, Any]] = []
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif any(lines[i + 1 :]):
            raise InputError(f"report: line {i + 1} of {path} is not a JSON object")
    return rows


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict):
        return {prefix.rstrip("."): config}
    return {key: value for name, inner in config.items() for key, value in _flat(inner, f"{prefix}{name}.").items()}


def _dataset(run: Run) -> str:
    return str(run.settings.get("dataset.name") or run.name)


def _words(run: Run) -> str:
    """Method, encoder and name."""
    named = [str(run.settings[key]) for key in ("run.method", "encoder.name") if run.settings.get(key)]
    return " · ".join([*named, f"run {run.name}"])


def _numbers(run: Run) -> dict[str, float]:
    """The key numbers that the run folder has, by name."""
    found: dict[str, float] = {}
    knn = charts.series(run.rows, "knn")
    if knn:
        best = max(knn, key=lambda point: point[1])
        found |= {"knn_end": knn[-1][1], "knn_end_step": knn[-1][0], "knn_best": best[1], "knn_best_step": best[0]}
        if knn[0][0] == 0:
            found["knn_start"] = knn[0][1]
    for key in ("knn_pixels", "expansion_fraction", "effective_rank", "step"):
        points = charts.series(run.rows, key)
        if points:
            found[key] = points[-1][1]
    for key in ("images_per_second", "data_wait"):
        points = charts.series(run.speed, key)
        if points:
            found[key] = median(value for _, value in points)
    seconds = [row["seconds"] for row in run.speed if charts.is_number(row.get("seconds"))]
    if seconds:  # a resumed run starts its clock again
        found["seconds"] = sum(b - a if b >= a else b for a, b in zip([0, *seconds], seconds, strict=False))
    broken = run.settings.get("dataset.broken")
    found["broken"] = broken if isinstance(broken, int) else len(run.broken)
    return found


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _value(value: Any) -> str:
    """A configured value, as text for HTML."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if charts.is_number(value):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "none"
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _verdict(run: Run, several: bool) -> str:
    name = f"{charts.swatch(run.colour)}<b>{escape(run.name)}</b> · " if several else ""
    status, sentence = run.verdict.status, run.verdict.sentence
    if sentence.lower().startswith(status):
        status, sentence = sentence[: len(status)], sentence[len(status) :]
    else:
        status = f"{status.capitalize()}. "
    return f'<p class="verdict {_kind(run)}">{name}<b>{escape(status)}</b>{escape(sentence)}</p>'


def _kind(run: Run) -> str:
    """The verdict as a class of the style sheet."""
    return escape(run.verdict.status.replace(" ", "-"))


def _card(title: str, value: str, note: str = "", kind: str = "") -> str:
    small = f"<small>{note}</small>" if note else ""
    return f'<div class="card {kind}"><span>{escape(title)}</span><strong>{value}</strong>{small}</div>'


def _cards(run: Run) -> str:
    n = _numbers(run)
    cards: list[str] = []
    if "knn_end" in n:
        start = f"{n['knn_start']:.1f} → " if "knn_start" in n else ""
        last = n["knn_best_step"] == n["knn_end_step"]
        best = "its best" if last else f"best {n['knn_best']:.1f} % at step {n['knn_best_step']:,}"
        note = f"{'random initialisation → ' if start else ''}step {n['knn_end_step']:,}; {best}"
        cards.append(_card("k-NN accuracy", f"{start}{n['knn_end']:.1f} %", note, "knn"))
    else:
        cards.append(_card("k-NN accuracy", ABSENT, "not measured: no labels, or no evaluation yet", "knn"))
    if "knn_pixels" in n:
        gain = n.get("knn_end", n["knn_pixels"]) - n["knn_pixels"]
        note = f"the run ends {abs(gain):.1f} points {'above' if gain >= 0 else 'below'}" if "knn_end" in n else ""
        cards.append(_card("Raw pixels k-NN", f"{n['knn_pixels']:.1f} %", note))
    planned = run.settings.get("run.steps")
    unfinished = isinstance(planned, int) and n.get("step", 0) < planned
    optional = (
        ("Images per second", "images_per_second", charts.number, "median"),
        ("Data wait", "data_wait", lambda v: f"{100 * v:.0f} %", "of the time, median"),
        ("Total time", "seconds", _time, "wall clock"),
        ("Steps", "step", lambda v: f"{v:,}", f"of {planned:,} planned" if unfinished else "all that were planned"),
    )
    cards += [_card(title, show(n[key]), note) for title, key, show, note in optional if key in n]
    cards.append(_card("Broken images", f"{n['broken']:,}", "left out" if n["broken"] else "every file was read"))
    return f'<section class="cards">{"".join(cards)}</section>'


def _comparison(runs: Sequence[Run]) -> str:
    columns = (
        ("k-NN, end", "knn_end", "{:.1f} %", True),
        ("k-NN, best", "knn_best", "{:.1f} %", True),
        ("Step 0", "knn_start", "{:.1f} %", False),
        ("Raw pixels", "knn_pixels", "{:.1f} %", False),
        ("Expansion", "expansion_fraction", "{:.2f}", False),
        ("Eff. rank", "effective_rank", "{:.1f}", False),
        ("Images/s", "images_per_second", "{:,.0f}", True),
        ("Time", "seconds", "", False),
    )
    numbers = [_numbers(run) for run in runs]
    body: list[str] = []
    for run, n in zip(runs, numbers, strict=True):
        pill = f'<span class="pill {_kind(run)}">{escape(run.verdict.status)}</span>'
        cells = [f'<th scope="row">{charts.swatch(run.colour)}{escape(run.name)}</th><td>{pill}</td>']
        for _, key, form, best in columns:
            top = best and key in n and n[key] == max(x.get(key, n[key]) for x in numbers)
            text = ABSENT if key not in n else form.format(n[key]) if form else _time(n[key])
            cells.append(f'<td class="number">{f"<b>{text}</b>" if top else text}</td>')
        body.append("".join(cells))
    head = "".join(f'<th class="number">{title}</th>' for title, *_ in columns)
    return f"<section><h2>Comparison</h2>{_table(f'<th>Run</th><th>Verdict</th>{head}', body)}</section>"


def _charts(runs: Sequence[Run]) -> str:
    figures = charts.grid([charts.History(name=r.name, colour=r.colour, rows=r.rows) for r in runs])
    return f"<section><h2>Training</h2>{figures}</section>" if figures else ""


def _pictures(run: Run) -> str:
    parts: list[str] = []
    for name, title, caption in PICTURES:
        path = run.folder / "pictures" / f"{name}.png"
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            picture = f'<img alt="{title} of run {escape(run.name)}" src="data:image/png;base64,{data}">'
            parts.append(f'<figure class="sheet"><h3>{title}</h3>{picture}<figcaption>{caption}</figcaption></figure>')
    return "".join(parts)


def _broken(run: Run) -> str:
    if not run.broken:
        return ""
    rows = (f"<td>{escape(name)}</td><td>{escape(reason)}</td>" for name, reason in run.broken[:MOST_BROKEN])
    more = len(run.broken) - MOST_BROKEN
    rest = f"<p>and {more:,} more in broken.txt of the run folder</p>" if more > 0 else ""
    table = _table("<th>File</th><th>Reason</th>", rows)
    return f"<details><summary>Broken files ({len(run.broken):,})</summary>{table}{rest}</details>"


def _table(head: str, rows: Iterable[str], kind: str = "") -> str:
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _differences(runs: Sequence[Run]) -> str:
    """The settings in which the runs differ, and those alone."""
    settings = [run.settings for run in runs]
    keys = dict.fromkeys(key for one in settings for key in one)
    differ = [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]
    head = "<th>Setting</th>" + "".join(f"<th>{charts.swatch(run.colour)}{escape(run.name)}</th>" for run in runs)
    rows = (
        f'<th scope="row"><code>{escape(key)}</code></th>'
        + "".join(f"<td>{_value(one[key]) if key in one else ABSENT}</td>" for one in settings)
        for key in differ
    )
    table = _table(head, rows, "differs") if differ else "<p>Nothing: the configurations are equal.</p>"
    return f"<section><h2>What differs</h2>{table}</section>"


def _configuration(run: Run) -> str:
    """Every setting, in the groups of config.json; what the data and the origin are last."""
    groups: dict[str, list[str]] = {}
    for key, value in run.settings.items():
        group, dot, name = key.partition(".")
        row = f'<tr><th scope="row">{escape(name if dot else key)}</th><td>{_value(value)}</td></tr>'
        groups.setdefault(group if dot else "general", []).append(row)
    tables = (
        f"<table><caption>{escape(name)}</caption><tbody>{''.join(rows)}</tbody></table>"
        for name, rows in groups.items()
    )
    return f'<div class="groups">{"".join(tables)}</div>'


def _command(run: Run) -> str:
    command = run.facts.get("command")
    return f"<pre><code>{escape(str(command))}</code></pre>" if command else "<p>config.json names no command.</p>"


def _one(run: Run) -> str:
    pictures, broken = _pictures(run), _broken(run)
    return "".join(
        (
            f"<header><h1>{escape(_dataset(run))}</h1><p>{escape(_words(run))}</p></header>{_verdict(run, False)}",
            _cards(run) + _charts([run]),
            f"<section><h2>Pictures</h2>{pictures}</section>" if pictures else "",
            f"<section>{broken}</section>" if broken else "",
            f"<section><h2>Configuration</h2>{_configuration(run)}</section>",
            f"<section><h2>Repeat it</h2>{_command(run)}</section>",
        )
    )


def _many(runs: Sequence[Run]) -> str:
    title = ", ".join(dict.fromkeys(_dataset(run) for run in runs))
    parts = [f"<header><h1>{escape(title)}</h1><p>{len(runs)} runs side by side</p></header>"]
    parts += [_verdict(run, True) for run in runs]
    parts += [_comparison(runs), _charts(runs), _differences(runs)]
    for run in runs:
        full = f"<details><summary>Full configuration</summary>{_configuration(run)}</details>"
        title = f"<h2>{charts.swatch(run.colour)}{escape(run.name)}</h2><p>{escape(_words(run))}</p>"
        parts.append(f"<section>{title}{_pictures(run)}{_broken(run)}{full}{_command(run)}</section>")
    return "".join(parts)


def _page(runs: Sequence[Run]) -> str:
    title = ", ".join(dict.fromkeys(_dataset(run) for run in runs))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)} – simdino report</title><style>{STYLE}{charts.STYLE}</style></head>"
        f"<body><main>{_one(runs[0]) if len(runs) == 1 else _many(runs)}</main></body></html>\n"
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
@media screen and (max-width: 760px) { .cards { display: block; } .card { margin-bottom: 12px; }
  .groups { columns: 1; } }
@media print { main { padding: 0; } h2 { break-after: avoid; } }
"""
