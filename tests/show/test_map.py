"""`simdino show map`: what its page holds, beside plain formulas, and every mistake in one line."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import read
from torch.nn import functional as F

from simdino.cli import main
from simdino.config import EncoderConfig
from simdino.contracts import Preprocess
from simdino.data.sources import open_dataset
from simdino.features.extract import Features, extract
from simdino.features.projection import clusters
from simdino.models.catalogue import make_encoder
from simdino.models.weights import load_encoder, save_encoder
from simdino.show.map import NEIGHBOURS, neighbours_of, show_map
from simdino.show.map_page import COLOURS, centred

pytestmark = pytest.mark.slow

NAMES = ("plain.png", "a b&c.png", 'it\'s <b>"bold"</b>.png', "<!--<script>.png", "line\nbreak.png", "sep\u2028.png")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A toy encoder, a broken one, and folders of pictures: with classes, without, with one too few."""
    top = tmp_path_factory.mktemp("map")
    torch.manual_seed(0)
    preprocess = Preprocess(resize=16, crop=16, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3)
    encoder = make_encoder(EncoderConfig(name="vit_toy", image_size=16, patch_size=4), preprocess)
    save_encoder(encoder, top / "toy.safetensors")
    for parameter in encoder.parameters():
        parameter.data.fill_(torch.nan)
    save_encoder(encoder, top / "nan.safetensors")
    names = {
        "classes": [f"{c}/{name}" for c in ("cats", 'dogs & "wolves"') for name in NAMES],
        "flat": [f"{i}.png" for i in range(5)],
        "two": ["1.png", "2.png"],
    }
    for folder, inside in names.items():
        for i, name in enumerate(inside):
            (top / folder / name).parent.mkdir(parents=True, exist_ok=True)
            coarse = np.random.default_rng(i).integers(0, 256, (3, 3, 3), dtype=np.uint8)
            size = (48, 36) if i % 2 else (30, 40)
            Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(top / folder / name)
    (top / "classes" / "cats" / "torn.png").write_bytes(b"no picture")
    strange = os.fsencode(top / "classes" / "cats") + b"/caf\xe9.png"
    Path(os.fsdecode(strange)).write_bytes((top / "flat" / "0.png").read_bytes())
    return {path.name.partition(".")[0]: path for path in top.iterdir()} | {"top": top}


def data_of(page: Path) -> dict[str, Any]:
    """What a page's script reads, as a browser finds it: up to the first </script."""
    text = page.read_text().split('<script type="application/json" id="data">')[1]
    return json.loads(re.split("</script", text, flags=re.IGNORECASE)[0])


def call(capsys: pytest.CaptureFixture[str], words: str, places: dict[str, Path], out: Path) -> tuple[int, str, str]:
    """Exit code, output and errors of `simdino show map WORDS`."""
    capsys.readouterr()
    code = 0
    try:
        main(["show", "map", *(word.format(**places) for word in words.split()), "--out", str(out)])
    except SystemExit as end:
        code = int(end.code or 0)
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def digits(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 150 digits."""
    out = tmp_path_factory.mktemp("page") / "map.html"
    found = show_map(str(places["toy"]), "digits", out=out, count=150)
    assert (found.images, found.of, found.by, found.clusters) == (150, 1797, "folder", 10)
    assert found.bytes == out.stat().st_size
    assert str(found) == f"wrote {out}: 150 images of 1,797, a fixed sample, {out.stat().st_size / 1e6:.1f} MB"
    return out


def test_the_page_holds_the_plane_clusters_and_neighbours_of_the_features(places: dict, digits: Path) -> None:
    data = data_of(digits)
    source = open_dataset("digits")
    at = [source.names.index(name) for name in data["names"]]
    assert at == sorted(at) and len(set(at)) == 150
    features = extract(load_encoder(places["toy"]), source.select(at), reduced=True)
    rows = features.vectors.double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    near, told = np.array(data["neighbours"]), np.array(data["cosines"])
    expected = -np.sort(-cosines, axis=1)[:, :NEIGHBOURS]
    np.testing.assert_allclose(np.take_along_axis(cosines, near, axis=1), expected, atol=1e-6)
    np.testing.assert_allclose(told, expected, atol=6e-4)

    u, s, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    plane = u[:, :2] * s[:2]
    plane *= np.sign((plane**3).sum(0))
    np.testing.assert_allclose(data["planes"]["PCA"], centred(plane), atol=2e-4)
    assert list(data["planes"]) == ["PCA"] and np.abs(data["planes"]["PCA"]).max() == 1
    share = f"PCA holds {100 * (s[:2] ** 2).sum() / (s**2).sum():.0f} % of the variance"
    assert data["notes"] == ["150 images of 1,797, a fixed sample", "encoder toy.safetensors", share]

    folder, cluster = data["groupings"]
    assert (folder["name"], cluster["name"]) == ("folder", "cluster")
    assert source.labels is not None
    assert [folder["classes"][label] for label in folder["labels"]] == [source.classes[source.labels[i]] for i in at]
    assert cluster["labels"] == clusters(features.vectors, 10).tolist()
    assert cluster["classes"] == [f"cluster {i + 1}" for i in range(10)]


def test_thumbnails_cut_from_the_page_are_the_pictures(places: dict, tmp_path: Path) -> None:
    show_map(str(places["toy"]), str(places["flat"]), out=tmp_path / "map.html", thumb=32)
    data, page = data_of(tmp_path / "map.html"), read(tmp_path / "map.html")
    sheets = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sheets) == 1 and data["cell"] == 32
    sheet = Image.open(BytesIO(base64.b64decode(sheets[0].split(",")[1]))).convert("RGB")
    for i, name in enumerate(data["names"]):
        width, height = data["sizes"][i]
        left, top = i % data["columns"] * data["cell"], i // data["columns"] * data["cell"]
        shown = np.asarray(sheet.crop((left, top, left + width, top + height)), np.int64)
        with Image.open(places["flat"] / name) as picture:
            assert max(width, height) == 32 and abs(width / height - picture.width / picture.height) < 0.05
            own = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), np.int64)
        assert np.abs(shown - own).mean() < 8


def test_names_reach_the_page_as_text_whatever_is_in_them(
    places: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "map.html"
    code, said, errors = call(capsys, "{toy} {classes} --json", places, out)
    assert code == 0
    result = json.loads(said)
    assert list(result["broken"]) == ["cats/torn.png"] and "left out cats/torn.png: " in errors
    data = data_of(out)
    assert len(data["names"]) == result["images"] == 13 and result["of"] == 14
    assert {f"cats/{name}" for name in NAMES[:4]} < set(data["names"])
    assert {r"cats/line\nbreak.png", r"cats/sep\u2028.png", r"cats/caf\xe9.png"} < set(data["names"])
    assert data["groupings"][0]["classes"] == ["cats", 'dogs & "wolves"']
    assert "13 images" in data["notes"] and "1 could not be read" in data["notes"]
    page = read(out)
    assert [tag for tag, _ in page.tags].count("script") == 2 and "b" not in {tag for tag, _ in page.tags}


def test_the_page_needs_nothing_else_and_runs_its_own_script_alone(digits: Path) -> None:
    text, page = digits.read_text(), read(digits)
    assert not re.search(r"https?:|url\(|@import|\bfetch\(|XMLHttpRequest", re.sub('base64,[^"]*', "", text))
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "iframe", "object"})
    policy = next(one["content"] for tag, one in page.tags if tag == "meta" and one.get("http-equiv"))
    script = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    assert len(script) == 1
    known = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{known}'"


@pytest.mark.parametrize("option", ["--by cluster", "--clusters 3", "--thumb 16", "--count 9"])
def test_every_option_changes_the_page_and_the_same_words_give_the_same_bytes(
    option: str, places: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, name in (("", "usual"), ("", "again"), (option, "other")):
        assert call(capsys, f"{{toy}} {{classes}} {words}", places, tmp_path / name)[0] == 0
    usual, again, other = ((tmp_path / name).read_bytes() for name in ("usual", "again", "other"))
    assert usual == again and usual != other


@pytest.mark.extra("umap")
def test_umap_s_page_has_both_planes(places: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        assert call(capsys, "{toy} {classes} --layout umap", places, tmp_path / name)[0] == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    planes = data_of(tmp_path / "one")["planes"]
    assert list(planes) == ["UMAP", "PCA"] and np.shape(planes["UMAP"]) == np.shape(planes["PCA"]) == (13, 2)


def test_what_colours_tell_apart_first_can_be_chosen(places: dict, tmp_path: Path) -> None:
    encoder, out = str(places["toy"]), tmp_path / "map.html"
    assert show_map(encoder, str(places["classes"]), out=out, by="cluster").by == "cluster"
    assert [one["name"] for one in data_of(out)["groupings"]] == ["cluster", "folder"]
    found = show_map(encoder, str(places["flat"]), out=out)
    assert (found.by, found.clusters) == ("cluster", 5)  # there are no more images
    assert [one["name"] for one in data_of(out)["groupings"]] == ["cluster"]


def test_a_folder_gets_a_page_of_its_own_name(places: dict, tmp_path: Path) -> None:
    found = show_map(str(places["toy"]), str(places["flat"]), out=tmp_path)
    assert found.out == str(tmp_path / "map.html") and Path(found.out).is_file()


MISTAKES = {
    "no classes": ("{toy} {flat} --by folder", "no folders of flat name classes"),
    "too few images": ("{toy} {two}", "a map needs 3 readable images, and two has 2"),
    "a sample of two": ("{toy} {flat} --count 2", "a map needs 3 readable images"),
    "more clusters than images": ("{toy} {flat} --clusters 6", "--clusters 6: it needs 6 readable images"),
    "more clusters than readable images": ("{toy} {classes} --clusters 14", "classes has 13"),
    "one cluster": ("{toy} {flat} --clusters 1", "--clusters 1 must be"),
    "thumbnails beyond what a page holds": ("{toy} {flat} --thumb 600", "--thumb 600 must be"),
    "broken weights": ("{nan} {flat}", "not all finite: its weights are broken"),
    "a mistyped layout": ("{toy} {flat} --layout tsne", "'tsne'"),
    "no such path": ("{toy} {top}/nowhere", "no file or folder"),
    "no such encoder": ("{top}/nothing {flat}", "no encoder at"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_costs_one_line(
    words: str, told: str, places: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, errors = call(capsys, words, places, tmp_path / "map.html")
    left_out = errors.count("left out cats/torn.png")
    assert (code, said) == (2, "")
    assert told in errors and errors.count("\n") == 1 + left_out
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused(places: dict, capsys: pytest.CaptureFixture[str]) -> None:
    out = places["toy"] / "below.html"
    code, _, errors = call(capsys, "{toy} {flat}", places, out)
    assert code == 2 and f"--out {out} cannot be written: " in errors and errors.count("\n") == 1


# Machado, Oliveira and Fernandes (2009): what those without the long or the middle cones see, in linear light.
VISIONS = {
    "common": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def linear(colours: list[str]) -> np.ndarray:
    values = np.array([[int(one[i : i + 2], 16) / 255 for i in (1, 3, 5)] for one in colours])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def oklab(light: np.ndarray) -> np.ndarray:
    """Ottosson (2020): in it alike distances look alike."""
    cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
             [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
    axes = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
    return np.cbrt(light @ np.transpose(cones)) @ np.transpose(axes)


@pytest.mark.parametrize(("theme", "paper"), [("light", "#ffffff"), ("dark", "#12151c")])
def test_colours_can_be_told_apart_by_every_eye_and_from_the_paper(theme: str, paper: str) -> None:
    colours = linear([*COLOURS[theme]])
    for vision, matrix in VISIONS.items():
        seen = oklab((colours @ np.transpose(matrix)).clip(0, 1))
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(seen), 1)]
        assert apart.min() > (0.18 if vision == "common" else 0.09), vision
    luminance = (linear([paper]) @ [0.2126, 0.7152, 0.0722])[0], colours @ [0.2126, 0.7152, 0.0722]
    contrast = (np.maximum(*luminance) + 0.05) / (np.minimum(*luminance) + 0.05)
    assert contrast.min() > 1.65


def test_neighbours_are_those_of_float64() -> None:
    vectors = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    features = Features(vectors=vectors, names=[str(i) for i in range(30)], labels=None, classes=(), broken={})
    near, cosines = neighbours_of(features)
    rows = F.normalize(vectors.double(), dim=1)
    expected = (rows @ rows.T).fill_diagonal_(-2).topk(NEIGHBOURS)
    assert near.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(cosines, expected.values.numpy(), rtol=1e-6)
