"""One self-contained HTML page about one run, or several side by side, made from their folders."""

import base64
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from PIL import Image

from simdino.contracts import InputError
from simdino.files import check_file, present, write_aside
from simdino.runs.run import Run, dataset, key_numbers, read_run, words
from simdino.show.charts import History, grid
from simdino.show.curves import curves
from simdino.show.page import ABSENT, PALETTE, document, figure, number, section, shown, swatch, table
from simdino.show.scores import layers, protocols, scores
from simdino.text import duration, escape

MOST_BROKEN = 300  # broken files listed on the page; the rest is in the run folder
SHEETS = (
    ("views", "Views", "What the encoder is shown: each image, its global crops and its local crops."),
    ("neighbours", "Nearest neighbours", "Validation images and the training images nearest to them, nearest first."),
    ("attention", "Attention", "What the class token attends to in the last block, and the patches with most of it."),
    ("masks", "Objects", "MaskCut's masks from the keys of the last block, the surest in blue. No label was used."),
)


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one self-contained HTML page about the runs and return its path.

    Args:
        runs: run folders.
        out: the page, or a folder for it. Default: `RUN/report.html`, or `comparison.html` beside the first of several.
    """
    folders = list(dict.fromkeys(Path(run) for run in runs))
    if not folders:
        raise InputError("report: no run folder was given")
    found = [read_run(folder, PALETTE[i % len(PALETTE)]) for i, folder in enumerate(folders)]
    if len({run.name for run in found}) < len(found):
        found = [replace(run, name="/".join(run.folder.resolve().parts[-2:])) for run in found]
    option = "the page" if out is None else "--out"
    out = Path(out or (folders[0] if len(found) == 1 else folders[0].resolve().parent))
    if present(out, option=option) and out.is_dir():
        out /= "report.html" if len(found) == 1 else "comparison.html"
    check_file(out, option=option)
    write_aside(out, _page(found).encode(), option=option)
    return out


def _page(runs: Sequence[Run]) -> str:
    title = ", ".join(dict.fromkeys(dataset(run) for run in runs))
    return document(title, _one(runs[0]) if len(runs) == 1 else _several(runs, title))


def _one(run: Run) -> str:
    parts = [
        f"<header><h1>{escape(dataset(run))}</h1><p>{escape(words(run))}</p></header>",
        _verdict(run),
        _cards(run),
        *_measured([run]),
        section("Pictures", _pictures(run)),
        f"<section>{_broken(run)}</section>" if run.broken else "",
        section("Configuration", _configuration(run)),
        section("Repeat it", _command(run)),
    ]
    return "".join(parts)


def _several(runs: Sequence[Run], title: str) -> str:
    parts = [
        f"<header><h1>{escape(title)}</h1><p>{len(runs)} runs side by side</p></header>",
        *(_verdict(run, f"{swatch(run.colour, '')}<b>{escape(run.name)}</b> · ") for run in runs),
        section("Comparison", _comparison(runs)),
        *_measured(runs),
        section("What differs", _differences(runs)),
    ]
    for run in runs:
        full = f"<details><summary>Full configuration</summary>{_configuration(run)}</details>"
        body = f"<p>{escape(words(run))}</p>{_pictures(run)}{_broken(run)}{full}{_command(run)}"
        parts.append(section(swatch(run.colour, run.name), body))
    return "".join(parts)


def _measured(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the sections of scores and charts that runs have."""
    histories = [History(name=run.name, colour=run.colour, rows=run.rows, start=run.start) for run in runs]
    return scores(runs), protocols(runs), section("Training", grid(histories, curves())), layers(runs)


def _verdict(run: Run, name: str = "") -> str:
    status, sentence = run.verdict.status, run.verdict.sentence
    if sentence.lower().startswith(status):
        status, sentence = sentence[: len(status)], sentence[len(status) :]
    else:
        status = f"{status.capitalize()}. "
    return f'<p class="verdict {_kind(run)}">{name}<b>{escape(status)}</b>{escape(sentence)}</p>'


def _kind(run: Run) -> str:
    """Return the verdict as a class of the style sheet."""
    return escape(run.verdict.status.replace(" ", "-"))


def _cards(run: Run) -> str:
    n = key_numbers(run)
    cards: list[str] = []
    if "knn_end" in n:
        start = f"{n['knn_start']:.1f} → " if "knn_start" in n else ""
        last = n["knn_best_step"] == n["knn_end_step"]
        best = "its best" if last else f"best {n['knn_best']:.1f} % at step {n['knn_best_step']:,}"
        before = "random initialisation" if run.settings.get("run.init") is None else "the given weights"
        note = f"{f'{before} → ' if start else ''}step {n['knn_end_step']:,}; {best}"
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
        ("Images per second", "images_per_second", number, "median"),
        ("MFU", "mfu", "{:.0%}".format, "of the peak of the device, median"),
        ("Data wait", "data_wait", lambda v: f"{100 * v:.0f} %", "of the time, median"),
        ("Total time", "seconds", duration, "wall clock"),
        ("Steps", "step", lambda v: f"{v:,}", f"of {planned:,} planned" if unfinished else "all that were planned"),
    )
    cards += [_card(title, show(n[key]), note) for title, key, show, note in optional if key in n]
    cards.append(_card("Broken images", f"{n['broken']:,}", "left out" if n["broken"] else "every file was read"))
    return f'<section class="cards">{"".join(cards)}</section>'


def _card(title: str, value: str, note: str = "", kind: str = "") -> str:
    """Return a card with a key number and its title; value and note are HTML."""
    small = f"<small>{note}</small>" if note else ""
    return f'<div class="card {kind}"><span>{escape(title)}</span><strong>{value}</strong>{small}</div>'


def _comparison(runs: Sequence[Run]) -> str:
    alike = len({dataset(run) for run in runs}) == 1  # scores on different data have no best
    columns = (
        ("k-NN, end", "knn_end", "{:.1f} %", alike),
        ("k-NN, best", "knn_best", "{:.1f} %", alike),
        ("Step 0", "knn_start", "{:.1f} %", False),
        ("Raw pixels", "knn_pixels", "{:.1f} %", False),
        ("Expansion", "expansion_fraction", "{:.2f}", False),
        ("Eff. rank", "effective_rank", "{:.1f}", False),
        ("Images/s", "images_per_second", "{:,.0f}", True),
        ("MFU", "mfu", "{:.0%}", False),
        ("Time", "seconds", "", False),
    )
    numbers = [key_numbers(run) for run in runs]
    body: list[str] = []
    for run, n in zip(runs, numbers, strict=True):
        pill = f'<span class="pill {_kind(run)}">{escape(run.verdict.status)}</span>'
        cells = [f'<th scope="row">{swatch(run.colour, run.name)}</th><td>{pill}</td>']
        for _, key, form, best in columns:
            top = best and key in n and n[key] == max(x.get(key, n[key]) for x in numbers)
            text = ABSENT if key not in n else form.format(n[key]) if form else duration(n[key])
            cells.append(f'<td class="number">{f"<b>{text}</b>" if top else text}</td>')
        body.append("".join(cells))
    head = "".join(f'<th class="number">{title}</th>' for title, *_ in columns)
    return table(f"<th>Run</th><th>Verdict</th>{head}", body)


def _pictures(run: Run) -> str:
    parts: list[str] = []
    for name, title, caption in SHEETS:
        path = run.folder / "pictures" / f"{name}.png"
        if path.is_file() and (address := embedded(path)):
            picture = f'<img alt="{title} of run {escape(run.name)}" src="{address}">'
            parts.append(figure("sheet", title, picture, caption))
    return "".join(parts)


def embedded(path: Path) -> str | None:
    """Return an image as a data URL, in JPEG where that is smaller, so that a page with photographs stays small. Return
    None for a file that is not a whole image."""
    try:
        png, jpeg = path.read_bytes(), BytesIO()
        with Image.open(path) as picture:
            picture.convert("RGB").save(jpeg, "JPEG", quality=90, subsampling=0)
    except (OSError, SyntaxError):
        return None
    kind, data = min(("png", png), ("jpeg", jpeg.getvalue()), key=lambda one: len(one[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _broken(run: Run) -> str:
    if not run.broken:
        return ""
    listed = list(run.broken_images.items())[:MOST_BROKEN]
    rows = (f"<td>{escape(name)}</td><td>{escape(reason)}</td>" for name, reason in listed)
    more = run.broken - MOST_BROKEN
    rest = f"<p>and {more:,} more in broken.txt of the run folder</p>" if more > 0 else ""
    files = table("<th>File</th><th>Reason</th>", rows)
    return f"<details><summary>Broken files ({run.broken:,})</summary>{files}{rest}</details>"


def _differences(runs: Sequence[Run]) -> str:
    """Return the settings in which the runs differ."""
    settings = [run.settings for run in runs]
    keys = dict.fromkeys(key for one in settings for key in one)
    differ = [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]
    head = "<th>Setting</th>" + "".join(f"<th>{swatch(run.colour, run.name)}</th>" for run in runs)
    rows = (
        f'<th scope="row"><code>{escape(key)}</code></th>'
        + "".join(f"<td>{shown(one[key]) if key in one else ABSENT}</td>" for one in settings)
        for key in differ
    )
    return table(head, rows, "differs") if differ else "<p>Nothing: the configurations are equal.</p>"


def _configuration(run: Run) -> str:
    """Return every setting, in the groups of config.json; the data and the origin come last."""
    groups: dict[str, list[str]] = {}
    for key, value in run.settings.items():
        group, dot, name = key.partition(".")
        row = f'<tr><th scope="row">{escape(name if dot else key)}</th><td>{shown(value)}</td></tr>'
        groups.setdefault(group if dot else "general", []).append(row)
    tables = (
        f"<table><caption>{escape(name)}</caption><tbody>{''.join(rows)}</tbody></table>"
        for name, rows in groups.items()
    )
    return f'<div class="groups">{"".join(tables)}</div>'


def _command(run: Run) -> str:
    command = run.metadata.command
    return f"<pre><code>{escape(str(command))}</code></pre>" if command else "<p>config.json names no command.</p>"
