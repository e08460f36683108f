"""What the page says of evaluations.jsonl."""

import json

import pytest
from run_folders import edit, make_run, read, write_lines

import simdino as sd
from simdino.runs.evaluations import FILE, fingerprint
from simdino.show.report import write_report


def knn_row(data="photos", *, encoder=75.8, own=True, root=None, bank=60000, **changes):
    scores = {"encoder": encoder, "random initialisation": 60.5, "raw pixels": 85.7}
    return {
        "protocol": "knn",
        "data": data,
        "root": root or f"/data/{data}",
        "trained_on": own,
        "settings": {"k": 20, "temperature": 0.07},
        "results": {n: {"top1": s, "top5": 99.0, "k": 20, "bank": bank, "queries": 1000} for n, s in scores.items()},
        "encoder": None,
        **changes,
    }


def layer_rows(layers=6):
    rows = [
        {"layer": i, "rate": 50.0 + i, "before": 140.0 - i, "after": 138.0 - i, "nonzero": 1 / i}
        for i in range(1, layers)
    ]
    return {"protocol": "white-box", "data": "photos", "settings": {"images": 64, "eps": 0.1}, "results": rows}


def with_evaluations(run, *rows):
    write_lines(run / FILE, list(rows))
    return run


def text_of(*runs):
    return " ".join(read(write_report(runs)).text.split())


def section(*runs, title="Scores"):
    text = text_of(*runs)
    return text[text.index(title) : text.index("k-NN accuracy: validation")]


def test_without_evaluations_there_is_no_section(tmp_path):
    text = text_of(make_run(tmp_path / "run"))
    assert "Scores" not in text
    assert "Layer by layer" not in text


def test_a_table_without_the_encoder_is_left_out_also_beside_another_run(tmp_path):
    row = knn_row()
    del row["results"]["encoder"]
    row["settings"] |= {"bank": 60000, "queries": 1000}
    run = with_evaluations(make_run(tmp_path / "run"), row)
    other = with_evaluations(make_run(tmp_path / "other"), knn_row())
    assert "Scores" not in text_of(run) and "75.8 %" in text_of(run, other)


def test_other_protocols_are_shown_in_their_own_words(tmp_path):
    rows = [
        {"protocol": "linear", "data": "birds", "said": "linear: 43.9 % <best>\n5 per class", "encoder": None},
        {"protocol": "video", "data": "davis", "said": "J&F 60.0 %", "encoder": "0123"},
        {"protocol": "video", "data": "davis", "said": 60.0},
    ]
    run = with_evaluations(make_run(tmp_path / "run"), *rows)
    text = text_of(run)
    assert (
        "Protocols Protocol Result linear birds linear: 43.9 % <best> 5 per class "
        "video davis of an earlier encoder of this run J&F 60.0 % Training"
    ) in text
    both = text_of(run, make_run(tmp_path / "other"))
    assert "run · linear birds" in both and "other · linear" not in both


def test_a_run_is_shown_beside_its_baselines_and_other_data_are_named_as_such(tmp_path):
    run = with_evaluations(make_run(tmp_path / "run"), knn_row("birds", encoder=30.25, own=False), knn_row())
    assert section(run) == (
        "Scores Data Encoder Random initialisation Raw pixels "
        "photos trained on these images 20-NN, 1,000 images against 60,000 75.8 % 60.5 % 85.7 % "
        "birds not trained on these images 20-NN, 1,000 images against 60,000 30.2 % 60.5 % 85.7 % "
    )
    assert "<b>85.7 %</b>" in (run / "report.html").read_text()


def test_several_runs_have_a_column_each_and_share_rows_of_the_same_data_and_settings(tmp_path):
    a = with_evaluations(make_run(tmp_path / "a"), knn_row(root="/here/photos"), knn_row("birds", own=False))
    b = with_evaluations(
        make_run(tmp_path / "b"), knn_row(root="/there/photos", encoder=80.0, own=False), knn_row("birds", bank=500)
    )
    assert section(a, b) == (
        "Scores Data a b "
        "birds 20-NN, 1,000 images against 500 – "
        "75.8 % trained on these images random initialisation 60.5 % raw pixels 85.7 % "
        "photos 20-NN, 1,000 images against 60,000 "
        "75.8 % trained on these images random initialisation 60.5 % raw pixels 85.7 % "
        "80.0 % not trained on these images random initialisation 60.5 % raw pixels 85.7 % "
        "birds 20-NN, 1,000 images against 60,000 "
        "75.8 % not trained on these images random initialisation 60.5 % raw pixels 85.7 % – "
    )


def test_two_sets_of_one_name_are_told_apart_by_their_places(tmp_path):
    rows = knn_row(root="/a/photos"), knn_row(root="/b/photos", own=False)
    found = section(with_evaluations(make_run(tmp_path / "run"), *rows))
    assert "/a/photos trained on these images" in found
    assert "/b/photos not trained on these images" in found


def test_scores_of_weights_that_have_changed_since_say_so(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "encoder.safetensors").write_bytes(b"now")
    with_evaluations(run, {**knn_row(), "encoder": fingerprint(run)}, {**knn_row("birds"), "encoder": "before"})
    birds, photos = section(run).split("photos")
    assert "of an earlier encoder of this run" in birds
    assert "of an earlier encoder of this run" not in photos


def test_a_score_without_baselines_leaves_their_cells_empty(tmp_path):
    row = knn_row()
    del row["results"]["random initialisation"], row["results"]["raw pixels"]
    assert section(with_evaluations(make_run(tmp_path / "run"), row)).endswith("75.8 % – – ")


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"protocol": "knn"},
        {"protocol": "knn", "settings": {}, "results": {}},
        {"protocol": "knn", "settings": {"k": "many"}, "results": {"encoder": {"top1": 3.0}}},
        {"protocol": "knn", "settings": 3, "results": {"encoder": None}},
        {"protocol": "white-box", "settings": {}, "results": [3, {"layer": None}, {"layer": 1}]},
        {"protocol": "white-box", "settings": {}, "results": 3},
        {"protocol": "linear", "results": {"encoder": 3}},
    ],
)
def test_lines_that_lack_something_are_left_out(tmp_path, row):
    run = with_evaluations(make_run(tmp_path / "run"), row)
    for runs in ([run], [run, make_run(tmp_path / "other")]):
        text = text_of(*runs)
        assert "Scores" not in text
        assert "Layer by layer" not in text


def test_names_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    run = with_evaluations(make_run(tmp_path / "run"), knn_row(evil), {**layer_rows(), "data": evil})
    for runs in ([run], [run, make_run(tmp_path / "other")]):
        assert {tag for tag, _ in read(write_report(runs)).tags}.isdisjoint({"script"})


def test_layers_are_drawn_over_the_depth(tmp_path):
    run, other = (with_evaluations(make_run(tmp_path / name), layer_rows(n)) for name, n in (("a", 7), ("b", 13)))
    for runs in ([run], [run, other], [run, make_run(tmp_path / "vit")]):
        html = write_report(runs).read_text()
        charts = html[html.index("Layer by layer") :]
        assert charts.count("against layer") == 3
        assert ">layer 1</text>" in charts
        assert "Means over 64 images of photos, distortion 0.1." in charts


def test_an_encoder_of_one_layer_is_drawn(tmp_path):
    html = write_report([with_evaluations(make_run(tmp_path / "run"), layer_rows(2))]).read_text()
    assert html.count("against layer") == 3


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_run_of_a_crate_measures_its_layers(tmp_path):
    config = sd.recipes.auto("digits", encoder="crate_nano", steps=2, batch=8, threads=1, device="cpu")
    run = sd.pretrain(config, tmp_path / "run", log=lambda _: None)
    (row,) = [json.loads(line) for line in (run.folder / FILE).read_text().splitlines()]
    assert (row["protocol"], row["data"], row["encoder"]) == ("white-box", "digits", fingerprint(run.folder))
    assert "Layer by layer" in (run.folder / "report.html").read_text()


def test_names_that_are_no_utf_8_do_not_end_the_report_for_ever(tmp_path):
    run = make_run(tmp_path / "run")
    edit(run, command="simdino pretrain donn\udce9es", data={"name": "donn\udce9es"})
    said = {"protocol": "discover", "data": "donn\udce9es", "settings": {}, "results": {}, "said": "a\udce8\nb\x1b"}
    text = text_of(with_evaluations(run, knn_row("donn\udce9es"), said))
    assert r"donn\xe9es" in text and r"a\xe8 b\x1b" in text
