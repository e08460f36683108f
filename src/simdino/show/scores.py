"""Evaluations of a run on the page: its scores on any data, other protocols, and what the layers of a CRATE do."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from simdino.runs.run import Run, is_number
from simdino.show.charts import History, grid
from simdino.show.curves import LAYERS
from simdino.show.page import ABSENT, number, section, swatch, table
from simdino.text import escape

ENCODER, BASELINES = "encoder", ("random initialisation", "raw pixels")
EARLIER = "of an earlier encoder of this run"
CAPTION = (
    "k-NN accuracy: validation images, classified by the nearest among all training images of the same data. The run "
    "trained without labels. Good: above random initialisation and raw pixels, also on data that it was not trained on."
)


class Place(NamedTuple):
    """The key of a row of the table: scores of different runs with the same key can be compared."""

    data: str
    k: float
    temperature: float
    bank: float
    queries: float


@dataclass(frozen=True, kw_only=True)
class Score:
    """One k-NN table of a run."""

    place: Place
    root: str  # where the data lie
    accuracy: dict[str, float]  # of the encoder and of its baselines, in percent
    trained_on: bool
    outdated: bool  # whether the run's encoder has changed since


def scores_of(run: Run) -> list[Score]:
    """Return the k-NN tables in the run's folder; incomplete lines are left out. Data are called by their names, or by
    their paths where two sets have the same name."""
    found = [score for row in run.evaluations if (score := _score(row, run)) is not None]
    twice = {a.place.data for a in found for b in found if a.place.data == b.place.data and a.root != b.root}
    return [replace(s, place=s.place._replace(data=s.root)) if s.place.data in twice else s for s in found]


def _score(row: dict[str, Any], run: Run) -> Score | None:
    settings, results = row.get("settings"), row.get("results")
    if row.get("protocol") != "knn" or not isinstance(settings, dict) or not isinstance(results, dict):
        return None
    tables = {name: one for name, one in results.items() if isinstance(one, dict) and is_number(one.get("top1"))}
    if ENCODER not in tables:
        return None
    numbers = {**settings, **tables[ENCODER]}
    place = [value for name in Place._fields[1:] if is_number(value := numbers.get(name))]
    if len(place) < len(Place._fields[1:]):
        return None
    return Score(
        place=Place(str(row.get("data")), *place),
        root=str(row.get("root")),
        accuracy={name: one["top1"] for name, one in tables.items()},
        trained_on=row.get("trained_on") is True,
        outdated=row.get("encoder") != run.weights,
    )


def scores(runs: Sequence[Run]) -> str:
    """Return the section with a row for each data set: one run with its baselines, or a column for each of several
    runs."""
    found = [{score.place: score for score in scores_of(run)} for run in runs]
    every = [score for one in found for score in one.values()]
    places = dict.fromkeys(s.place for s in sorted(every, key=lambda s: (not s.trained_on, s.place)))
    if not places:
        return ""
    if len(runs) == 1:
        titles = [name.capitalize() for name in (ENCODER, *BASELINES)]
        body = [_beside_baselines(found[0][place]) for place in places]
    else:
        titles = [swatch(run.colour, run.name) for run in runs]
        body = [_side_by_side(place, [one.get(place) for one in found]) for place in places]
    head = "<th>Data</th>" + "".join(f'<th class="number">{title}</th>' for title in titles)
    return section("Scores", f'{table(head, body)}<p class="caption">{CAPTION}</p>')


def _beside_baselines(score: Score) -> str:
    best = max(score.accuracy.values()) if len(score.accuracy) > 1 else None
    cells = [_cell(score.accuracy.get(name), best) for name in (ENCODER, *BASELINES)]
    return _head(score.place, _notes(score)) + "".join(cells)


def _side_by_side(place: Place, found: Sequence[Score | None]) -> str:
    best = max(score.accuracy[ENCODER] for score in found if score is not None)
    cells = [_cell(None, best) if one is None else _cell(one.accuracy[ENCODER], best, _beside(one)) for one in found]
    return _head(place, []) + "".join(cells)


def _head(place: Place, notes: list[str]) -> str:
    tempered = "" if place.temperature == 0.07 else f" at temperature {place.temperature}"
    lines = [*notes, f"{place.k}-NN{tempered}, {place.queries:,} images against {place.bank:,}"]
    return f'<th scope="row">{escape(place.data)}{_small(lines)}</th>'


def _notes(score: Score) -> list[str]:
    lines = ["trained on these images" if score.trained_on else "not trained on these images"]
    return [*lines, EARLIER] if score.outdated else lines


def _beside(score: Score) -> list[str]:
    """Return the notes that stand below a score in a row of several runs."""
    return [*_notes(score), *(f"{name} {score.accuracy[name]:.1f} %" for name in BASELINES if name in score.accuracy)]


def _cell(value: float | None, best: float | None, notes: Sequence[str] = ()) -> str:
    text = ABSENT if value is None else f"{value:.1f} %"
    return f'<td class="number">{f"<b>{text}</b>" if value is not None and value == best else text}{_small(notes)}</td>'


def _small(lines: Sequence[str]) -> str:
    return "".join(f"<small>{escape(line)}</small>" for line in lines)


def protocols(runs: Sequence[Run]) -> str:
    """Return the section with the results of all other protocols (linear, segmentation, video, ...), as they print
    them."""
    rows: list[str] = []
    for run in runs:
        for row in run.evaluations:
            if not isinstance(row.get("said"), str) or row.get("protocol") == "knn":  # which `scores` shows
                continue
            notes = [str(row.get("data")), *([EARLIER] if row.get("encoder") != run.weights else [])]
            name = f"{swatch(run.colour, run.name)} · " if len(runs) > 1 else ""
            head = f'<th scope="row">{name}{escape(str(row.get("protocol")))}{_small(notes)}</th>'
            rows.append(f"{head}<td><pre>{escape(row['said'])}</pre></td>")
    return section("Protocols", table("<th>Protocol</th><th>Result</th>", rows) if rows else "")


def layers(runs: Sequence[Run]) -> str:
    """Return the section with charts, over depth, of what the blocks of CRATE encoders do; empty without such runs."""
    histories: list[History] = []
    about: dict[str, None] = {}
    for run in runs:
        for row in run.evaluations:
            results, settings = row.get("results"), row.get("settings")
            if row.get("protocol") != "white-box" or not isinstance(results, list) or not isinstance(settings, dict):
                continue
            measured = [layer for layer in results if isinstance(layer, dict)]
            histories.append(History(name=run.name, colour=run.colour, rows=measured))
            images, eps = (number(v) if is_number(v) else "?" for v in (settings.get("images"), settings.get("eps")))
            about[f"Means over {images} images of {row.get('data')}, distortion {eps}."] = None
    charts = grid(histories, LAYERS)
    return section("Layer by layer", f'{charts}<p class="caption">{escape(" ".join(about))}</p>' if charts else "")
