import base64
import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folders import CONFIG, TERMS, edit, make_run, read, write_lines

from simdino.contracts import InputError
from simdino.show.curves import curves
from simdino.show.report import write_report

GOLDEN = Path(__file__).parents[1] / "golden"


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


@pytest.mark.slow
def test_photographs_are_embedded_as_jpeg_and_look_the_same(tmp_path):
    run = make_run(tmp_path / "photos", pictures=True)
    blurred = np.random.default_rng(0).integers(0, 256, (40, 45, 3), dtype=np.uint8)
    sheet = Image.fromarray(blurred).resize((900, 800), Image.Resampling.BICUBIC)
    for name in ("attention", "masks"):
        sheet.save(run / "pictures" / f"{name}.png")
    page = read(write_report([run]))
    addresses = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert [address.partition(";")[0] for address in addresses] == ["data:image/png"] * 2 + ["data:image/jpeg"] * 2
    shown = Image.open(BytesIO(base64.b64decode(addresses[-1].split(",")[1])))
    assert np.abs(np.asarray(shown, np.int64) - np.asarray(sheet, np.int64)).mean() < 3


def test_half_a_picture_is_left_out_and_the_page_written(tmp_path):
    run = make_run(tmp_path / "photos", pictures=True)
    path = run / "pictures" / "views.png"
    path.write_bytes(path.read_bytes()[:100])
    page = read(write_report([run]))
    assert sum(tag == "img" for tag, _ in page.tags) == 1


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


def drawn(method: str) -> int:
    """How many curves a run of the method has numbers for."""
    alien = {name for names in TERMS.values() for name in names} - set(TERMS[method])
    return sum(curve.key not in alien for curve in curves())


@pytest.mark.parametrize("method", TERMS)
def test_every_chart_of_a_method_is_drawn_and_inside_its_frame(tmp_path, method):
    page = read(write_report([make_run(tmp_path / "photos", method=method)]))
    assert sum(tag == "svg" for tag, _ in page.tags) == drawn(method)
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
    assert sum(tag == "svg" for tag, _ in page.tags) == drawn("simdino")
    html = path.read_text()
    differs = html[html.index("What differs") : html.index("</section>", html.index("What differs"))]
    assert "loss.eps" in differs
    assert "0.25" in differs
    assert "optim.lr" not in differs
    assert html.count("Full configuration") == 3
    assert all(name in page.text for name in ("slow", "fast", "wide", "3 runs side by side"))


def test_every_term_that_a_method_logs_has_a_curve():
    keys = {curve.key for curve in curves()} | {key for curve in curves() for key, _ in curve.references}
    steps = [json.loads(path.read_text())[0] for path in GOLDEN.glob("*.json")]  # all that a step of a method logs
    assert steps and {name for step in steps for name in step} - {"weight_decay"} <= keys


def test_the_collapse_zone_is_of_methods_with_a_rate(tmp_path):
    dino, simdino = (make_run(tmp_path / method, method=method) for method in ("dino", "simdino"))
    assert ">collapse</text>" not in write_report([dino]).read_text()
    for runs in ([simdino], [dino, simdino]):
        assert ">collapse</text>" in write_report(runs).read_text()


def test_a_run_that_started_from_weights_has_no_random_start(tmp_path):
    given = make_run(tmp_path / "given", init="timm:vit_small_patch16_224")
    text = " ".join(read(write_report([given])).text.split())
    assert "the given weights → step 1,000" in text
    assert "given weights 55.4" in text
    assert "random" not in text
    both = read(write_report([given, make_run(tmp_path / "fresh")])).text
    assert "random init 55.4" in both
    assert "given weights 55.4" in both


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


@pytest.mark.parametrize("row", [{"step": 0}, {"step": 0, "knn": 50.0}, {"step": 5, "loss": None}])
def test_missing_numbers_do_not_crash(tmp_path, row):
    run = make_run(tmp_path / "photos")
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
        config=CONFIG | {"encoder": CONFIG["encoder"] | {"name": evil}, "run": CONFIG["run"] | {"init": evil}},
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
    for out in (run / "config.json" / "page.html", tmp_path / (300 * "x"), "/proc/page.html", "/dev/full"):
        with pytest.raises(InputError, match=f"^--out {out} cannot be written: "):
            write_report([run], out)
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="is empty"):
        write_report([run])
    (run / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=r"metrics\.jsonl is empty or missing"):
        write_report([run])
