"""Line charts as inline SVG: no script, no fonts or files from elsewhere, readable in print.

`CURVES` says what a report draws and what good looks like; `figure` draws one of them for any number of runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from math import ceil, floor, isfinite, log10
from typing import Any

PALETTE = ("#2f5fd0", "#d9730d", "#0f8a5f", "#b5309b", "#c9352b", "#0b86a3", "#6d4bd1", "#6b7a12")
GREY, GRID, MUTED = "#7a8092", "#e8eaf0", "#5b6070"
ALARM, WARNING = "#d64545", "#a87400"
MOST_POINTS = 400  # of a line; longer ones are thinned, their peaks kept
LABEL_HEIGHT = 13
STYLE = """
.charts { display: grid; grid-template-columns: 1fr 1fr; gap: 28px 24px; }
.charts .wide { grid-column: 1 / -1; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { color: var(--muted); font-size: 13px; margin-top: 4px; }
svg { display: block; width: 100%; height: auto; fill: #5b6070; }
svg text { font-size: 11.5px; font-variant-numeric: tabular-nums; }
svg .over { paint-order: stroke; stroke: #fff; stroke-width: 3px; stroke-linejoin: round; }
.legend span { margin-right: 20px; white-space: nowrap; }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 7px; }
@media screen and (max-width: 760px) { .charts { grid-template-columns: 1fr; } .charts .wide { overflow-x: auto; }
  .wide svg { min-width: 680px; } }
"""

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One chart of a report: which number, beside which others, and what good looks like."""

    key: str
    title: str
    caption: str
    references: tuple[tuple[str, str], ...] = ()  # (key, name), drawn dashed
    start: str | None = None  # the name of a line at the value of step 0
    zones: tuple[tuple[float, float, str, str], ...] = ()  # (low, high, name, colour)
    limits: tuple[float | None, float | None] = (None, None)  # where the axis ends, whatever rounding adds
    log: bool = False  # logarithmic where values span more than a factor of thirty
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class History:
    """What a chart needs of a run."""

    name: str
    colour: str
    rows: Sequence[Mapping[str, Any]]


CURVES = (
    Curve(
        key="knn",
        title="k-NN accuracy, %",
        caption="Held-out images whose nearest training images carry the right label. Good: ends above the start and "
        "raw pixels, at its best.",
        references=(("knn_pixels", "raw pixels"),),
        start="random init",
        wide=True,
    ),
    Curve(
        key="alignment",
        title="Alignment",
        caption="Mean cosine between student and teacher on different views of one image. Good: rises towards 1 while "
        "the expansion fraction stays up.",
        limits=(None, 1.0),
    ),
    Curve(
        key="expansion_fraction",
        title="Expansion fraction",
        caption="Where the coding rate lies between its floor (0) and its ceiling (1). Good: stays clear of both "
        "shaded zones.",
        zones=((0.0, 0.1, "collapse", ALARM), (0.98, 1.0, "over-expansion risk", WARNING)),
        limits=(0.0, 1.0),
    ),
    Curve(
        key="rate",
        title="Coding rate",
        caption="Volume of the embeddings. Floor: all images alike; ceiling: all directions used equally. Good: leaves "
        "the floor early and settles between the two.",
        references=(("rate_ceiling", "ceiling"), ("rate_floor", "floor")),
    ),
    Curve(
        key="rate_weighted",
        title="Weighted rate",
        caption="The coding rate as it enters the loss, times gamma. Good: rises early, then stays steady.",
    ),
    Curve(
        key="effective_rank",
        title="Effective rank of the embeddings",
        caption="Directions that the embeddings really use. Good: rises and stays up; a fall to a few is collapse.",
    ),
    Curve(
        key="feature_rank",
        title="Effective rank of the features",
        caption="The same for the encoder's own features, at each evaluation. Good: ends above where it started.",
    ),
    Curve(
        key="gradient_ratio",
        title="Gradient ratio, rho",
        caption="Gradient of the rate over gradient of the alignment. Good: steady, near 1 to 3; from about 8 on, "
        "expansion swamps alignment.",
        log=True,
    ),
    Curve(
        key="loss",
        title="Total loss",
        caption="Alignment loss minus weighted rate. Good: falls, then flattens; jumps mean an unstable run.",
    ),
    Curve(
        key="lr",
        title="Learning rate",
        caption="Follows the step alone. Good: a warm-up, then a smooth decay.",
        limits=(0.0, None),
    ),
    Curve(
        key="momentum",
        title="Teacher momentum",
        caption="How slowly the teacher follows the student. Good: rises smoothly towards 1.",
    ),
)


def series(rows: Iterable[Mapping[str, Any]], key: str) -> list[Point]:
    """The finite values of `key` in order of the step. Of two lines for one step (a resumed run) the later counts."""
    found: dict[float, float] = {}
    for row in rows:
        if is_number(row.get("step")) and is_number(row.get(key)):
            found[row["step"]] = row[key]
    return sorted(found.items())


def is_number(value: object) -> bool:
    """A finite number, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def number(value: float, digits: int = 4) -> str:
    """A number as a person writes it: 12,500; 0.83; 5e-5."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}".replace("e-0", "e-").replace("-", "\N{MINUS SIGN}")


def _short(value: float) -> str:
    return number(value, 4 if 0.95 <= value < 1 else 3)


def grid(histories: Sequence[History]) -> str:
    """Every chart that the runs have numbers for, with a legend where there are several runs."""
    names = "".join(f"<span>{swatch(h.colour)}{escape(h.name)}</span>" for h in histories)
    legend = f'<p class="legend">{names}</p>' if len(histories) > 1 else ""
    figures = "".join(figure(curve, histories) for curve in CURVES)
    return f'{legend}<div class="charts">{figures}</div>' if figures else ""


def swatch(colour: str) -> str:
    """A small square in the colour of a run."""
    return f'<i class="swatch" style="background:{colour}"></i>'


def figure(curve: Curve, histories: Sequence[History]) -> str:
    """A chart with its title and caption, or nothing where no run has the number."""
    last = max([1.0, *(row["step"] for h in histories for row in h.rows if is_number(row.get("step")))])
    lines = _lines(curve, histories, last)
    if not lines:
        return ""
    size = (1036, 300) if curve.wide else (506, 232)
    chart = _svg(curve, lines, last, size)
    kind = "chart wide" if curve.wide else "chart"
    title, caption = escape(curve.title), escape(curve.caption)
    return f'<figure class="{kind}"><h3>{title}</h3>{chart}<figcaption>{caption}</figcaption></figure>'


@dataclass(frozen=True, kw_only=True)
class _Line:
    points: list[Point]
    colour: str
    label: str = ""
    dashes: str = ""


def _lines(curve: Curve, histories: Sequence[History], last: float) -> list[_Line]:
    """The curve of every run, the references first so that curves lie over them."""
    curves = [(h, series(h.rows, curve.key)) for h in histories]
    curves = [(h, points) for h, points in curves if points]
    if not curves:
        return []
    lines: list[_Line] = []
    for key, name in curve.references:
        lines += _references([(h, series(h.rows, key)) for h, _ in curves], name, last, "6 4")
    if curve.start is not None:
        starts = [(h, points[:1] if points[0][0] == 0 else []) for h, points in curves]
        lines += _references(starts, curve.start, last, "1.5 4")
    return lines + [_Line(points=points, colour=h.colour, label=_short(points[-1][1])) for h, points in curves]


def _references(found: list[tuple[History, list[Point]]], name: str, last: float, dashes: str) -> list[_Line]:
    """A dashed line from edge to edge: one in grey where all runs agree, else one in the colour of each run."""
    full = [(h, [(0.0, points[0][1]), *points, (last, points[-1][1])]) for h, points in found if points]
    labels = [(f"{name} {_short(points[-1][1])}", _short(points[0][1])) for _, points in full]
    if full and len(set(labels)) == 1:
        return [_Line(points=full[0][1], colour=GREY, label=labels[0][0], dashes=dashes)]
    return [
        _Line(points=points, colour=h.colour, label=label[0], dashes=dashes)
        for (h, points), label in zip(full, labels, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    ticks: list[float] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        low, high = (log10(self.low), log10(self.high)) if self.log else (self.low, self.high)
        share = ((log10(value) if self.log else value) - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def _steps_axis(last: float, start: float, end: float) -> _Axis:
    gap = max(1.0, _round_gap(last / max(2, (end - start) // 90)))
    return _Axis(low=0, high=last, start=start, end=end, ticks=_multiples(gap, 0, last))


def _values_axis(curve: Curve, lines: list[_Line], start: float, end: float) -> _Axis:
    values = [y for line in lines for _, y in line.points]
    low, high = min(values), max(values)
    if curve.log and low > 0 and high / low > 30:
        low, high = 10 ** floor(log10(low)), 10 ** ceil(log10(high) + 1e-9)
        decades = range(round(log10(low)), round(log10(high)) + 1)
        return _Axis(low=low, high=high, start=start, end=end, log=True, ticks=[10.0**i for i in decades])
    low = low if curve.limits[0] is None else curve.limits[0]
    high = high if curve.limits[1] is None else curve.limits[1]
    if high - low < 1e-9 * abs(high) or high <= low:
        pad = abs(high) * 0.1 or 0.5
        low, high = low - pad, high + pad
    gap = _round_gap((high - low) / 4)
    low, high = floor(low / gap + 1e-9) * gap, ceil(high / gap - 1e-9) * gap
    return _Axis(low=low, high=high, start=start, end=end, ticks=_multiples(gap, low, high))


def _round_gap(gap: float) -> float:
    power = 10.0 ** floor(log10(gap))
    return next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= gap * (1 - 1e-9))


def _multiples(gap: float, low: float, high: float) -> list[float]:
    return [i * gap for i in range(ceil(low / gap - 1e-9), floor(high / gap + 1e-9) + 1)]


def _svg(curve: Curve, lines: list[_Line], last: float, size: tuple[int, int]) -> str:
    width, height = size
    right = width - 14 - round(6.4 * max(len(line.label) for line in lines))
    probe = _values_axis(curve, lines, 0, 1)
    left = 12 + round(6.6 * max(len(number(tick)) for tick in probe.ticks))
    x = _steps_axis(last, left, right)
    y = _values_axis(curve, lines, height - 26, 10)
    zones, names = _zones(curve, x, y)
    parts = [*zones, *_frame(x, y), *(_path(line, x, y) for line in lines), *names, *_end_labels(lines, x, y)]
    about = f"{curve.title} against training step"
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(about)}">{"".join(parts)}</svg>'


def _zones(curve: Curve, x: _Axis, y: _Axis) -> tuple[list[str], list[str]]:
    """Shaded bands, and their names, which are written over the curves."""
    bands: list[str] = []
    names: list[str] = []
    for low, high, name, colour in curve.zones:
        top, height = y(high), y(low) - y(high)
        inside = height >= 14
        bands.append(
            f'<rect x="{x.start:.1f}" y="{top:.1f}" width="{x.end - x.start:.1f}" height="{height:.1f}" '
            f'fill="{colour}" fill-opacity="{0.12 if inside else 0.35}"/>'
        )
        at = top + (height / 2 + 4 if inside else height + 13)
        place = f'x="{x.end - 8:.1f}" y="{at:.1f}" text-anchor="end"'
        names.append(f'<text {place} fill="{colour}" class="over">{escape(name)}</text>')
    return bands, names


def _frame(x: _Axis, y: _Axis) -> list[str]:
    parts: list[str] = []
    for tick in y.ticks:
        at = y(tick)
        parts.append(
            f'<line x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{at:.1f}" y2="{at:.1f}" stroke="{GRID}"/>'
            f'<text x="{x.start - 7:.1f}" y="{at + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    for i, tick in enumerate(x.ticks):
        at, base = x(tick), y.start
        name = f"step {number(tick)}" if i == 0 else number(tick)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{base:.1f}" y2="{base + 4:.1f}" stroke="{GREY}"/>'
            f'<text x="{at:.1f}" y="{base + 18:.1f}" text-anchor="{"start" if i == 0 else "middle"}">{name}</text>'
        )
    parts.append(f'<line x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{y.start:.1f}" y2="{y.start:.1f}" stroke="{GREY}"/>')
    return parts


def _path(line: _Line, x: _Axis, y: _Axis) -> str:
    places = [(x(step), y(value)) for step, value in _thinned(line.points)]
    data = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    if line.dashes:
        return (
            f'<path d="{data}" fill="none" stroke="{line.colour}" stroke-width="1.3" stroke-dasharray="{line.dashes}" '
            'stroke-linecap="round"/>'
        )
    dots = places if len(places) <= 30 else places[-1:]
    return (
        f'<path d="{data}" fill="none" stroke="{line.colour}" stroke-width="1.8" stroke-linejoin="round"/>'
        + "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6" fill="{line.colour}"/>' for a, b in dots)
    )


def _thinned(points: list[Point]) -> list[Point]:
    """The lowest and the highest point of each of many short stretches, and both ends."""
    if len(points) <= MOST_POINTS:
        return points
    size = ceil(len(points) / (MOST_POINTS // 2))
    kept = {points[0], points[-1]}
    for i in range(0, len(points), size):
        stretch = points[i : i + size]
        kept |= {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
    return sorted(kept)


def _end_labels(lines: list[_Line], x: _Axis, y: _Axis) -> list[str]:
    """The last value of each line to its right, moved apart where two would touch, once where runs agree."""
    shared: dict[tuple[float, str], set[str]] = {}
    for line in lines:
        shared.setdefault((round(y(line.points[-1][1])), line.label), set()).add(line.colour)
    labels = sorted((at, label, MUTED if len(of) > 1 else min(of)) for (at, label), of in shared.items())
    places: list[float] = []
    for at, _, _ in labels:
        places.append(max(at, places[-1] + LABEL_HEIGHT) if places else at)
    floor_line = y.start
    for i in reversed(range(len(places))):
        places[i] = min(places[i], floor_line)
        floor_line = places[i] - LABEL_HEIGHT
    return [
        f'<text x="{x.end + 8:.1f}" y="{at + 4:.1f}" fill="{colour}" class="over">{escape(label)}</text>'
        for at, (_, label, colour) in zip(places, labels, strict=True)
    ]
