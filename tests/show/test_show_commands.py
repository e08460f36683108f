"""`simdino show` end to end on a toy encoder, and every mistake in one line."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from run_metadata import write_metadata
from simdino.cli import main
from simdino.config import EncoderConfig
from simdino.contracts import InputError, Preprocess
from simdino.data.base import ArraySource
from simdino.data.sources import open_dataset
from simdino.features.extract import extract
from simdino.models.catalogue import make_encoder
from simdino.models.weights import load_encoder, save_encoder
from simdino.show.gallery import file_names
from simdino.show.pictures import centred, inside_sheets, nearest_images

pytestmark = pytest.mark.slow

KINDS = ("attention", "pca", "masks --size 16", "neighbours --bank {photos}")
ENCODERS = {
    "vit": EncoderConfig(name="vit_toy", image_size=16, patch_size=4, registers=2),
    "crate": EncoderConfig(name="crate_tiny", embed_dim=32, depth=1, num_heads=2, image_size=16, patch_size=4),
    "convnet": EncoderConfig(name="timm:resnet18", image_size=32),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Encoders and pictures by name."""
    top = tmp_path_factory.mktemp("show")
    for name, config in ENCODERS.items():
        if config.name.startswith("timm:") and find_spec("timm") is None:
            continue
        torch.manual_seed(0)
        size = config.image_size
        preprocess = Preprocess(resize=size, crop=size, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3)
        save_encoder(make_encoder(config, preprocess), top / f"{name}.safetensors")
    for name, height, width in (("a/1.png", 30, 40), ("b/1.png", 40, 30), ("b/2.jpg", 20, 20), ("c d/ü*.png", 25, 25)):
        (top / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(height + width).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(top / "photos" / name)
    (top / "photos" / "torn.png").write_bytes(b"no picture")
    (top / "torn").mkdir()
    (top / "torn" / "1.png").write_bytes(b"no picture")
    (top / "empty").mkdir()
    (top / "file").write_text("a file")
    return {path.name.partition(".")[0]: path for path in top.iterdir()} | {"top": top}


def call(
    capsys: pytest.CaptureFixture[str], words: str, places: dict[str, Path], *more: object
) -> tuple[int, str, str]:
    """Exit code, output and errors of `simdino show WORDS`."""
    capsys.readouterr()
    code = 0
    try:
        main(["show", *(word.format(**places) for word in words.split()), *map(str, more)])
    except SystemExit as end:
        code = int(end.code or 0)
    return code, *capsys.readouterr()


def test_the_sheets_of_a_run_show_readable_pictures_of_encoders_with_attention(places: dict[str, Path]) -> None:
    pictures = open_dataset(str(places["photos"]))
    sheets = inside_sheets(load_encoder(str(places["vit"])), pictures, count=3)
    assert sheets.keys() == {"attention", "masks"}
    with pytest.raises(InputError, match="no readable image"):
        inside_sheets(load_encoder(str(places["vit"])), open_dataset(str(places["torn"])))


@pytest.mark.extra("timm")
def test_a_convnet_has_no_sheets(places: dict[str, Path]) -> None:
    assert inside_sheets(load_encoder(str(places["convnet"])), open_dataset(str(places["photos"]))) == {}


@pytest.mark.extra("timm")
def test_without_a_class_token_masks_are_shown_alone(places: dict[str, Path]) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(name="timm:vit_wee_patch16_reg1_gap_256", image_size=32)
    preprocess = Preprocess(resize=32, crop=32, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3)
    sheets = inside_sheets(make_encoder(config, preprocess), open_dataset(str(places["photos"])), count=1)
    assert sheets.keys() == {"masks"}


OPTIONS = [  # each changes what is drawn
    ("attention", "--mass 0.9"), ("attention", "--size 64"), ("pca", "--size 64"), ("pca", "--no-foreground"),
    ("masks", "--masks 1"), ("masks", "--tau 0.9"), ("masks", "--size 16"), ("neighbours --bank {photos}", "--k 1"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "option"), OPTIONS)
def test_every_option_changes_the_sheet(
    kind: str, option: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"{kind} {{vit}} {{photos}}" + " --size 64" * (kind == "masks")  # 480 pixels take seconds
    usual, other = tmp_path / "usual", tmp_path / "other"
    for asked, out in ((words, usual), (f"{words} {option}", other)):
        assert call(capsys, asked, places, "--out", out)[0] == 0
    assert (usual / "sheet.png").read_bytes() != (other / "sheet.png").read_bytes()


def test_copies_in_the_bank_are_neighbours_but_for_one(places: dict[str, Path]) -> None:
    bank = torch.stack([torch.full((3, 4, 4), 9, dtype=torch.uint8)] * 3)
    source = ArraySource("copies", bank.permute(0, 2, 3, 1).numpy(), ["a", "b", "c"])
    encoder = load_encoder(str(places["vit"]))
    features = extract(encoder, source)
    picture = centred(source, "a", encoder)
    near = nearest_images(picture, features.vectors[0], features, source, encoder, k=5)
    assert len(near) == 2 and all(torch.equal(one, picture) for one in near)


@pytest.mark.parametrize("encoder", ["vit", "crate"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.split()[0])
def test_each_picture_has_a_page_and_all_have_a_sheet(
    encoder: str, kind: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    code, said, errors = call(capsys, f"{kind} {{{encoder}}} {{photos}}", places, "--out", out, "--json")
    assert code == 0, errors
    result = json.loads(said)
    assert [Path(page).name for page in result["pages"]] == ["a-1.png", "b-1.png", "b-2.png", "c-d-ü.png"]
    assert list(result["broken"]) == ["torn.png"]
    assert {path.name for path in out.iterdir()} == {Path(page).name for page in result["pages"]} | {"sheet.png"}
    for page in out.iterdir():
        with Image.open(page) as picture:
            assert min(picture.size) > 60 and len(picture.convert("RGB").getcolors(1 << 24)) > 50
    again = tmp_path / "again"
    call(capsys, f"{kind} {{{encoder}}} {{photos}}", places, "--out", again)
    assert (again / "sheet.png").read_bytes() == (out / "sheet.png").read_bytes()


def test_one_picture_can_be_given_by_its_path(places: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = call(capsys, "attention {vit} {photos}/b/2.jpg --size 16", places, "--out", tmp_path)
    assert code == 0 and "a page for the image" in said
    assert {path.name for path in tmp_path.iterdir()} == {"2.png", "sheet.png"}


def test_count_bounds_the_pictures(places: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = call(capsys, "pca {vit} {photos} --no-foreground --count 2 --json", places, "--out", tmp_path)
    assert code == 0 and len(json.loads(said)["pages"]) == 2


def test_neighbours_are_looked_for_in_the_run_s_training_images_unless_a_bank_is_given(
    places: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "encoder.safetensors").write_bytes(places["vit"].read_bytes())
    words = f"neighbours {run} {{photos}} --count 1"
    code, _, errors = call(capsys, words, places, "--out", tmp_path / "out")
    assert code == 2 and errors.count("\n") == 1 and "--bank" in errors
    write_metadata(run, "digits")
    assert call(capsys, words, places, "--out", tmp_path / "out")[0] == 0


def test_the_nearest_images_are_those_of_the_greatest_cosine_without_the_picture(places: dict) -> None:
    encoder, source = load_encoder(places["vit"]), open_dataset("digits").select(range(40))
    bank = extract(encoder, source)
    cosines = torch.nn.functional.normalize(bank.vectors, dim=1) @ torch.nn.functional.normalize(bank.vectors[7], dim=0)
    expected = [i for i in cosines.argsort(descending=True).tolist() if i != 7][:3]
    picture = centred(source, source.names[7], encoder)
    found = nearest_images(picture, bank.vectors[7], bank, source, encoder, k=3)
    for image, i in zip(found, expected, strict=True):
        assert torch.equal(image, centred(source, source.names[i], encoder))


MISTAKES = {
    "attention of a ConvNet": ("attention {convnet} {photos}", "attention"),
    "colours of a ConvNet": ("pca {convnet} {photos}", "no patches"),
    "masks of a ConvNet": ("masks {convnet} {photos}", "take a ViT or a CRATE"),
    "no pictures": ("attention {vit} {empty}", "is empty"),
    "no readable picture": ("pca {vit} {torn}", "no readable image"),
    "no such path": ("masks {vit} {top}/nowhere", "no file or folder"),
    "no such encoder": ("attention {top}/nothing {photos}", "no encoder at"),
    "a bank that is not there": ("neighbours {vit} {photos} --bank {top}/nowhere", "no file or folder"),
    "a mass above one": ("attention {vit} {photos} --mass 1.5", "1.5"),
    "a device that is not here": ("attention {vit} {photos} --device cuda:99", "cuda:99"),
    "a mistyped kind": ("atention {vit} {photos}", "did you mean attention?"),
}


@pytest.mark.parametrize(("words", "told"), [
    pytest.param(*given, id=name, marks=[pytest.mark.extra("timm")] if "{convnet}" in given[0] else [])
    for name, given in MISTAKES.items()
])  # fmt: skip
def test_a_mistake_costs_one_line(
    words: str, told: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, errors = call(capsys, words, places, "--out", tmp_path / "out")
    assert (code, said) == (2, "")
    assert told in errors and errors.count("\n") == 1


def test_a_file_in_place_of_the_folder_is_refused(places: dict, capsys: pytest.CaptureFixture[str]) -> None:
    for out in (places["file"], places["file"] / "below"):
        code, _, errors = call(capsys, "attention {vit} {photos}", places, "--out", out)
        assert code == 2 and f"--out {out} cannot be written: " in errors and errors.count("\n") == 1


def test_file_names_are_safe_and_no_two_alike() -> None:
    names = [
        "a/b.png",
        "a-b.jpg",
        "A/B.gif",
        "../x.png",
        "sheet.png",
        ".png",
        "caf\udce9.jpg",
        "n" * 300 + ".png",
        "***",
    ]
    found = file_names(names)
    assert found[:5] == ["a-b.png", "a-b-2.png", "A-B-3.png", "x.png", "sheet-2.png"]
    assert len({name.lower() for name in found}) == len(names)
    for name in found:
        assert "/" not in name and not name.startswith(".") and len(name.encode()) <= 255 and name.endswith(".png")
