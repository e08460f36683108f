"""Line charts as inline SVG without scripts, fonts or files from elsewhere, readable in print: one of the curves in
`show.curves` for any number of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, floor, log10
from typing import Any

from simdino.methods.method import Curve
from simdino.runs.run import Point, is_number, series
from simdino.show.page import figure, number, swatch
from simdino.text import escape

GREY, GRID, MUTED = "#7a8092", "#e8eaf0", "#5b6070"
MOST_POINTS = 400  # of a line; longer ones are thinned, their peaks kept
LABEL_HEIGHT = 13


@dataclass(frozen=True, kw_only=True)
class History:
    """The part of a run that a chart needs."""

    name: str
    colour: str
    rows: Sequence[Mapping[str, Any]]
    start: str = "random init"  # what the encoder was at step 0


def _short(value: float) -> str:
    return number(value, 4 if 0.95 <= value < 1 else 3)


def grid(histories: Sequence[History], curves: Sequence[Curve]) -> str:
    """Return every chart that the runs have numbers for, with a legend where there are several runs."""
    names = "".join(f"<span>{swatch(h.colour, h.name)}</span>" for h in histories)
    legend = f'<p class="legend">{names}</p>' if len(histories) > 1 else ""
    charts = "".join(chart(curve, histories) for curve in curves)
    return f'{legend}<div class="charts">{charts}</div>' if charts else ""


def chart(curve: Curve, histories: Sequence[History]) -> str:
    """Return a chart with its title and caption, or nothing where no run has the number."""
    places = [row[curve.along] for h in histories for row in h.rows if is_number(row.get(curve.along))]
    first = 0.0 if curve.along == "step" else min(places, default=0.0)
    last = max([first + 1, *places])
    lines = _lines(curve, histories, (first, last))
    if not lines:
        return ""
    if curve.zones_with and not any(series(h.rows, curve.zones_with) for h in histories):
        curve = replace(curve, zones=())
    picture = _svg(curve, lines, (first, last), (1036, 300) if curve.wide else (506, 232))
    return figure("chart wide" if curve.wide else "chart", escape(curve.title), picture, escape(curve.caption))


@dataclass(frozen=True, kw_only=True)
class _Line:
    points: list[Point]
    colour: str
    label: str = ""
    dashes: str = ""


def _lines(curve: Curve, histories: Sequence[History], ends: tuple[float, float]) -> list[_Line]:
    """Return the curve of every run, after the references, so that curves lie over them."""
    curves = [(h, series(h.rows, curve.key, along=curve.along)) for h in histories]
    curves = [(h, points) for h, points in curves if points]
    if not curves:
        return []
    lines: list[_Line] = []
    for key, name in curve.references:
        lines += _references([(h, name, series(h.rows, key, along=curve.along)) for h, _ in curves], ends, "6 4")
    if curve.start:
        starts = [(h, h.start, points[:1] if points[0][0] == 0 else []) for h, points in curves]
        lines += _references(starts, ends, "1.5 4")
    return lines + [_Line(points=points, colour=h.colour, label=_short(points[-1][1])) for h, points in curves]


def _references(found: list[tuple[History, str, list[Point]]], ends: tuple[float, float], dashes: str) -> list[_Line]:
    """Return dashed lines from edge to edge: one in grey where all runs agree, else one in the colour of each run."""
    first, last = ends
    lines: list[_Line] = []
    for history, name, points in found:
        if points:
            (_, start), (_, end) = points[0], points[-1]
            across, label = [(first, start), *points, (last, end)], f"{name} {_short(end)}"
            lines.append(_Line(points=across, colour=history.colour, label=label, dashes=dashes))
    alike = len({(line.label, _short(line.points[0][1])) for line in lines}) == 1
    return [replace(lines[0], colour=GREY)] if alike else lines


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """A map from values to pixels."""

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


def _steps_axis(ends: tuple[float, float], start: float, end: float) -> _Axis:
    first, last = ends
    gap = max(1.0, _round_gap((last - first) / max(2, (end - start) // 90)))
    gap = gap if gap.is_integer() else 2 * gap  # there is no step 2.5
    ticks = [first + tick for tick in _multiples(gap, 0, last - first)]
    return _Axis(low=first, high=last, start=start, end=end, ticks=ticks)


def _values_axis(curve: Curve, lines: list[_Line], start: float, end: float) -> _Axis:
    values = [y for line in lines for _, y in line.points]
    low, high = min(values), max(values)
    if curve.log and low > 0 and high / low > 30:
        first, last = floor(log10(low)), ceil(log10(high) + 1e-9)
        ticks = [10.0**i for i in range(first, last + 1)]
        return _Axis(low=ticks[0], high=ticks[-1], start=start, end=end, log=True, ticks=ticks)
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


def _svg(curve: Curve, lines: list[_Line], ends: tuple[float, float], size: tuple[int, int]) -> str:
    width, height = size
    y = _values_axis(curve, lines, height - 26, 10)
    left = 12 + round(6.6 * max(len(number(tick)) for tick in y.ticks))
    right = width - 14 - round(6.4 * max(len(line.label) for line in lines))
    x = _steps_axis(ends, left, right)
    bands, names = _zones(curve, x, y)
    paths = [_path(line, x, y) for line in lines]
    parts = "".join([*bands, *_frame(x, y, curve.along), *paths, *names, *_end_labels(lines, x, y)])
    about = f"{curve.title} against {'training step' if curve.along == 'step' else curve.along}"
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(about)}">{parts}</svg>'


def _text(x: float, y: float, text: str, look: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(text)}</text>'


def _straight(x1: float, x2: float, y1: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _zones(curve: Curve, x: _Axis, y: _Axis) -> tuple[list[str], list[str]]:
    """Return shaded bands, and their names, which are drawn over the curves."""
    bands: list[str] = []
    names: list[str] = []
    for low, high, name, colour in curve.zones:
        top, height = y(high), y(low) - y(high)
        inside = height >= 14
        bands.append(
            f'<rect x="{x.start:.1f}" y="{top:.1f}" width="{x.end - x.start:.1f}" height="{height:.1f}" '
            f'fill="{colour}" fill-opacity="{0.12 if inside else 0.35}"/>'
        )
        below = height / 2 + 4 if inside else height + 13
        names.append(_text(x.end - 8, top + below, name, f'text-anchor="end" fill="{colour}" class="over"'))
    return bands, names


def _frame(x: _Axis, y: _Axis, along: str) -> list[str]:
    """Return the lines and numbers of both axes."""
    base = y.start
    parts: list[str] = []
    for tick in y.ticks:
        parts.append(_straight(x.start, x.end, y(tick), y(tick), GRID))
        parts.append(_text(x.start - 7, y(tick) + 4, number(tick), 'text-anchor="end"'))
    for i, tick in enumerate(x.ticks):
        name = f"{along} {number(tick)}" if i == 0 else number(tick)
        parts.append(_straight(x(tick), x(tick), base, base + 4, GREY))
        parts.append(_text(x(tick), base + 18, name, f'text-anchor="{"start" if tick == x.low else "middle"}"'))
    return [*parts, _straight(x.start, x.end, base, base, GREY)]


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
    """Return the lowest and the highest point of each of many short stretches, and both ends."""
    if len(points) <= MOST_POINTS:
        return points
    size = ceil(len(points) / (MOST_POINTS // 2))
    kept = {points[0], points[-1]}
    for i in range(0, len(points), size):
        stretch = points[i : i + size]
        kept |= {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
    return sorted(kept)


def _end_labels(lines: list[_Line], x: _Axis, y: _Axis) -> list[str]:
    """Return the last value of each line as a label to its right: moved apart where two would touch, once where runs
    agree."""
    shared: dict[tuple[float, str], set[str]] = {}
    for line in lines:
        shared.setdefault((round(y(line.points[-1][1])), line.label), set()).add(line.colour)
    labels = sorted((at, label, MUTED if len(of) > 1 else min(of)) for (at, label), of in shared.items())
    places: list[float] = []
    for at, _, _ in labels:
        places.append(max(at, places[-1] + LABEL_HEIGHT) if places else at)
    lowest = y.start
    for i in reversed(range(len(places))):
        places[i] = min(places[i], lowest)
        lowest = places[i] - LABEL_HEIGHT
    return [
        _text(x.end + 8, at + 4, label, f'fill="{colour}" class="over"')
        for at, (_, label, colour) in zip(places, labels, strict=True)
    ]
