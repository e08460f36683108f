import math
import re

from run_folders import Page

from simdino.runs.run import series
from simdino.show.charts import MOST_POINTS, History, chart
from simdino.show.curves import curves
from simdino.show.page import number


def test_of_two_values_for_a_step_the_later_counts():
    rows = [
        {"step": 2, "x": 1.0},
        {"step": 1, "x": 5},
        {"step": 2, "x": 3.0},
        {"step": 3, "x": math.nan},
        {"step": 3, "x": True},
    ]
    assert series(rows, "x") == [(1, 5), (2, 3.0)]


def test_long_runs_stay_small_and_keep_their_peaks():
    rows = [{"step": i, "loss": 9.0 if i == 54321 else 1.0 + i / 1e5} for i in range(100_000)]
    curve = next(c for c in curves() if c.key == "loss")
    html = chart(curve, [History(name="a", colour="#000000", rows=rows)])
    places = re.findall(r"[ML]([\d.]+) ([\d.]+)", html)
    assert len(places) <= MOST_POINTS + 2
    top = min(float(y) for _, y in places)
    assert sum(float(y) - top < 1 for _, y in places) == 1


def test_ratios_over_decades_get_a_logarithmic_axis():
    curve = next(c for c in curves() if c.key == "gradient_ratio")
    rows = [{"step": i, "gradient_ratio": 100 / (1 + i)} for i in range(200)]
    html = chart(curve, [History(name="a", colour="#000000", rows=rows)])
    Page(html)
    for tick in ("0.1", "1", "10", "100"):
        assert f">{tick}</text>" in html


def test_rounding_does_not_stretch_the_axis_of_a_share():
    curve = next(c for c in curves() if c.key == "expansion_fraction")
    for values in ([-1e-7, 0.5], [0.5, 1 + 1e-7], [0.0, 0.0]):
        rows = [{"step": i, "expansion_fraction": value} for i, value in enumerate(values)]
        html = chart(curve, [History(name="a", colour="#000000", rows=rows)])
        assert re.findall(r'text-anchor="end">([^<]+)</text>', html)[:5] == ["0", "0.25", "0.5", "0.75", "1"]


def test_numbers_as_people_write_them():
    assert [number(x) for x in (12500, 0.83, 88.12345, 0.0, -0.5)] == ["12,500", "0.83", "88.12", "0", "−0.5"]
    assert number(5e-5) == "5e−5"


def test_steps_are_whole_numbers():
    curve = next(c for c in curves() if c.key == "knn")
    for last in (1, 2, 7, 20, 25):
        rows = [{"step": step, "knn": 50.0} for step in range(last + 1)]
        html = chart(curve, [History(name="a", colour="#000000", rows=rows)])
        ticks = re.findall(r'text-anchor="(?:start|middle)">(?:step )?([^<]+)</text>', html)
        assert len(ticks) >= 2
        assert all(tick.isdigit() for tick in ticks)
