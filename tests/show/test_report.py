import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from simdino.contracts import InputError
from simdino.show.charts import MOST_POINTS, History, figure
from simdino.show.curves import CURVES
from simdino.show.page import number
from simdino.show.report import write_report
from simdino.show.runs import series
from simdino.show.sheets import neighbours_sheet, views_sheet

CONFIG = {
    "data": {"root": "fashion-mnist", "channels": 1, "mean": [0.286040604], "std": [0.353024245], "labels": True},
    "views": {"local_views": 6, "global_size": 28, "local_size": 14, "global_scale": [0.4, 1.0], "flip": 0.5},
    "encoder": {"name": "vit_tiny", "patch_size": 4, "registers": 0, "layer_scale": None, "drop_path": 0.1},
    "projector": {"hidden": 2048, "dim": 256},
    "loss": {"eps": 0.5, "gamma": "balanced", "rho": 1.5, "scope": "global"},
    "optim": {"lr": 0.002, "final_lr": 1e-6, "warmup": 0.1, "weight_decay": 0.04, "momentum": 0.996},
    "run": {"method": "simdino", "steps": 1000, "batch": 64, "seed": 0},
    "speed": {"micro_batch": None, "precision": "float32", "device": "cpu", "workers": 2},
}
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks nesting while it reads, and keeps the tags and the text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += f" {data} "


def training_row(step: int, steps: int, pace: float, top: float) -> dict:
    t = step / steps
    wobble = 0.01 * math.sin(step * 1.7)
    fraction = top * (1 - math.exp(-9 * pace * t)) + wobble
    return {
        "step": step,
        "loss": -0.2 - 0.9 * (1 - math.exp(-6 * pace * t)) + wobble,
        "alignment": 0.93 - 0.45 * math.exp(-5 * pace * t) + wobble,
        "rate": 12.0 + 60.0 * fraction,
        "rate_weighted": 0.1 + 0.55 * fraction,
        "rate_floor": 12.0,
        "rate_ceiling": 72.0,
        "expansion_fraction": fraction,
        "effective_rank": 2 + 90 * fraction,
        "gradient_ratio": 1.5 + 6 * math.exp(-8 * t) + 10 * wobble,
        "grad_norm": 2.1,
        "lr": 0.002 * min(10 * t, 0.5 * (1 + math.cos(math.pi * t))),
        "weight_decay": 0.04 + 0.36 * t,
        "momentum": 0.996 + 0.004 * t,
    }


def make_run(
    folder: Path, *, pace: float = 1.0, top: float = 0.86, labels: bool = True, pictures: bool = False
) -> Path:
    folder.mkdir(parents=True)
    steps = 1000
    rows = []
    for step in range(0, steps + 1, 10):
        if step:
            rows.append(training_row(step, steps, pace, top))
        if step % 100 == 0:
            knn = 55.4 + 33.1 * (1 - math.exp(-4 * pace * step / steps))
            scores = {"knn": knn, "knn_pixels": 85.7, "knn_k": 20} if labels else {}
            rows.append({"step": step, **scores, "bank": 60000, "queries": 10000, "feature_rank": 12 + step / 20})
    facts = {
        "simdino": "0.1.0",
        "source_revision": "abc123",
        "command": f"simdino pretrain fashion-mnist --steps 1000 --eps {0.5 * pace:g} --out runs/{folder.name}",
        "machine": "2 x AMD EPYC, torch 2.14",
        "config": CONFIG | {"loss": CONFIG["loss"] | {"eps": 0.5 * pace}},
        "data": {"name": "fashion-mnist", "train_images": 60000, "val_images": 10000, "classes": 10, "broken": 3},
    }
    (folder / "config.json").write_text(json.dumps(facts))
    write_lines(folder / "metrics.jsonl", rows)
    speed = [
        {"step": s, "images_per_second": 812.0 + s % 7, "data_wait": 0.03, "seconds": s * 0.08}
        for s in range(10, 1001, 10)
    ]
    write_lines(folder / "speed.jsonl", speed)
    (folder / "broken.txt").write_text("a/<b>.png\ttruncated file\nc.png\tno image\nd.png\tempty file\n")
    if pictures:
        (folder / "pictures").mkdir()
        image = torch.arange(28 * 28).reshape(1, 28, 28).remainder(251).to(torch.uint8)
        views_sheet([image] * 3, image.expand(2, 3, 1, 28, 28), None).save(folder / "pictures" / "views.png")
        neighbours_sheet([image] * 12, [[image] * 5] * 12).save(folder / "pictures" / "neighbours.png")
    return folder


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def edit(run: Path, **changes) -> None:
    facts = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(facts | changes))


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_a_run_becomes_one_page_that_needs_nothing_else(tmp_path):
    run = make_run(tmp_path / "photos", pictures=True)
    path = write_report([run])
    assert path == run / "report.html"
    page = read(path)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})
    for _, attributes in page.tags:
        for name in ("src", "href", "data", "srcset"):
            assert attributes.get(name, "data:image/png;base64,").startswith("data:image/png;base64,")
    assert "url(" not in path.read_text()
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    found = [base64.b64decode(picture.split(",")[1]) for picture in pictures]
    assert found == [(run / "pictures" / f"{name}.png").read_bytes() for name in ("views", "neighbours")]


def test_the_page_says_the_key_numbers(tmp_path):
    text = " ".join(read(write_report([make_run(tmp_path / "photos")])).text.split())
    for words in (
        "fashion-mnist",
        "simdino · vit_tiny · run photos",
        "55.4 → 87.9 %",
        "random initialisation → step 1,000; its best",
        "85.7 %",
        "2.2 points above",
        "815",
        "3 %",
        "80 s",
        "all that were planned",
        "Broken files (3)",
        "a/<b>.png",
        "simdino pretrain fashion-mnist --steps 1000",
        "weight_decay",
        "raw pixels 85.7",
        "random init 55.4",
    ):
        assert words in text, words
    assert "NaN" not in text


def test_every_chart_is_drawn_and_inside_its_frame(tmp_path):
    page = read(write_report([make_run(tmp_path / "photos")]))
    assert sum(tag == "svg" for tag, _ in page.tags) == len(CURVES)
    for tag, attributes in page.tags:
        if tag == "svg":
            width, height = (float(x) for x in attributes["viewbox"].split()[2:])
        for place in re.findall(r"[-\d.]+ [-\d.]+", attributes.get("d", "")):
            x, y = (float(v) for v in place.split())
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_several_runs_share_charts_and_show_what_differs(tmp_path):
    runs = [make_run(tmp_path / "slow", pace=0.5), make_run(tmp_path / "fast"), make_run(tmp_path / "wide", top=0.97)]
    path = write_report(runs, tmp_path / "pages" / "all.html")
    assert path == tmp_path / "pages" / "all.html"
    page = read(path)
    assert sum(tag == "svg" for tag, _ in page.tags) == len(CURVES)
    html = path.read_text()
    differs = html[html.index("What differs") : html.index("</section>", html.index("What differs"))]
    assert "loss.eps" in differs
    assert "0.25" in differs
    assert "optim.lr" not in differs
    assert html.count("Full configuration") == 3
    assert all(name in page.text for name in ("slow", "fast", "wide", "3 runs side by side"))


def test_default_places_and_names(tmp_path):
    runs = [make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run")]
    assert write_report(runs) == tmp_path / "a" / "comparison.html"
    text = read(tmp_path / "a" / "comparison.html").text
    assert "a/run" in text
    assert "b/run" in text
    assert "the configurations are equal" in text.replace("  ", " ")
    assert write_report([runs[0], runs[0]]) == runs[0] / "report.html"  # the same run twice is one run
    assert write_report(runs[:1], tmp_path) == tmp_path / "report.html"


def test_without_labels_there_is_no_score_and_no_crash(tmp_path):
    text = read(write_report([make_run(tmp_path / "photos", labels=False)])).text
    assert "no labels" in text
    assert "raw pixels 85.7" not in text


@pytest.mark.parametrize("config", [{}, {"config": None, "data": None}, {"config": {"run": 3}, "data": "photos"}])
@pytest.mark.parametrize(
    "row", [{"step": 0}, {"step": 0, "knn": 50.0}, {"step": 5, "loss": None, "new": [1]}, {"x": 1}]
)
def test_missing_keys_do_not_crash(tmp_path, config, row):
    run = make_run(tmp_path / "photos")
    (run / "config.json").write_text(json.dumps(config))
    write_lines(run / "metrics.jsonl", [row])
    for name in ("speed.jsonl", "broken.txt"):
        (run / name).unlink()
    read(write_report([run]))
    read(write_report([run, make_run(tmp_path / "other")]))


def test_everything_a_person_can_name_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    run = make_run(tmp_path / "a<i>&b", pictures=True)
    edit(
        run,
        command=evil,
        machine=evil,
        source_revision=None,
        data={"name": evil, evil: evil},
        config={evil: {evil: evil, "list": [evil]}, "method": evil, "encoder": {"name": evil}},
    )
    (run / "broken.txt").write_text(f"{evil}\t{evil}\n{evil}\n")
    for runs in ([run], [run, make_run(tmp_path / "plain")]):
        page = read(write_report(runs))
        assert {tag for tag, _ in page.tags}.isdisjoint({"script"})
        assert "alert(1)" in page.text


def test_a_line_being_written_is_ignored_and_a_broken_one_is_named(tmp_path):
    run = make_run(tmp_path / "photos")
    metrics = run / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 1010, "lo')
    read(write_report([run]))
    metrics.write_text('{"step": 10}\nnonsense\n{"step": 20}\n')
    with pytest.raises(InputError, match=r"line 2 of .*metrics\.jsonl is not a JSON object"):
        write_report([run])


def test_mistakes_are_named_in_one_line(tmp_path):
    run = make_run(tmp_path / "photos")
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [([], "no run folder"), ([tmp_path / "absent"], "is not a folder"), ([run, empty], "has no config.json")]
    for runs, words in cases:
        with pytest.raises(InputError, match=words) as caught:
            write_report(runs)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot write"):
        write_report([run], run / "config.json" / "page.html")
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="is empty"):
        write_report([run])
    (run / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=r"has no metrics\.jsonl"):
        write_report([run])
    for text, words in (("{", "is not JSON"), ("[]", "no JSON object")):
        (run / "metrics.jsonl").write_text("{}")
        (run / "config.json").write_text(text)
        with pytest.raises(InputError, match=words):
            write_report([run])


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
    curve = next(c for c in CURVES if c.key == "loss")
    html = figure(curve, [History(name="a", colour="#000000", rows=rows)])
    places = re.findall(r"[ML]([\d.]+) ([\d.]+)", html)
    assert len(places) <= MOST_POINTS + 2
    top = min(float(y) for _, y in places)
    assert sum(float(y) - top < 1 for _, y in places) == 1


def test_ratios_over_decades_get_a_logarithmic_axis():
    curve = next(c for c in CURVES if c.key == "gradient_ratio")
    rows = [{"step": i, "gradient_ratio": 100 / (1 + i)} for i in range(200)]
    html = figure(curve, [History(name="a", colour="#000000", rows=rows)])
    Page(html)
    for tick in ("0.1", "1", "10", "100"):
        assert f">{tick}</text>" in html


def test_rounding_does_not_stretch_the_axis_of_a_share():
    curve = next(c for c in CURVES if c.key == "expansion_fraction")
    for values in ([-1e-7, 0.5], [0.5, 1 + 1e-7], [0.0, 0.0]):
        rows = [{"step": i, "expansion_fraction": value} for i, value in enumerate(values)]
        html = figure(curve, [History(name="a", colour="#000000", rows=rows)])
        assert re.findall(r'text-anchor="end">([^<]+)</text>', html)[:5] == ["0", "0.25", "0.5", "0.75", "1"]


def test_numbers_as_people_write_them():
    assert [number(x) for x in (12500, 0.83, 88.12345, 0.0, -0.5)] == ["12,500", "0.83", "88.12", "0", "−0.5"]
    assert number(5e-5) == "5e−5"
