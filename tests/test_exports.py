"""Exported encoders are read back by the libraries they are for, and give the same tokens."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import simdino as sd
from run_metadata import write_metadata
from simdino.cli import main
from simdino.config import EncoderConfig
from simdino.contracts import Preprocess
from simdino.exports import FORMATS, card, export
from simdino.exports.format import Format, ReadBack, every_token
from simdino.exports.proof import CLOSE, photographs
from simdino.models.catalogue import make_encoder
from simdino.models.encoder import Encoder
from simdino.models.weights import load_encoder, save_encoder

ABOUT = Preprocess(resize=40, crop=32, channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
CONFIG = EncoderConfig(name="vit_toy", image_size=32, patch_size=8, drop_path=0.1)
KINDS = {
    "plain": {}, "registers": {"registers": 3}, "layer scale": {"layer_scale": 0.1}, "mask token": {"mask_token": True},
    "swiglu": {"ffn": "swiglu"}, "plain rule": {"positions": "plain"}, "offset rule": {"positions": "offset"},
    "registers, plain rule": {"registers": 3, "positions": "plain"},
}  # fmt: skip
LIBRARY = {"hf": "transformers", "timm": "timm"}
TAKES_ANY_SIZE = {
    "hf": set(KINDS) - {"offset rule", "registers, plain rule"},
    "timm": set(KINDS) - {"offset rule", "plain rule", "registers, plain rule"},
}
"""The kinds whose positions go to other grids in a library as in ours."""

PROGRAMS = [
    ("vit_toy", {"registers": 3, "mask_token": True}), ("vit_toy", {"ffn": "swiglu", "layer_scale": 0.1}),
    ("crate_nano", {}), ("conv_pico", {"mask_token": True}), ("conv_pico", {"pool": "quarters"}), ("bag:conv_pico", {}),
    ("hybrid_nano", {}),
    pytest.param("timm:resnet18", {}, marks=pytest.mark.extra("timm")),
]  # fmt: skip


def made(about: Preprocess = ABOUT, **settings: Any) -> Encoder:
    torch.manual_seed(0)
    return make_encoder(replace(CONFIG, **settings), about).eval()


@pytest.mark.parametrize("library", [pytest.param("installed", marks=pytest.mark.slow), "missing"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", LIBRARY)
def test_what_is_exported_is_the_encoder(
    format: str, kind: str, library: str, tmp_path: Path, hide: Callable[[str], None]
) -> None:
    if library == "missing":
        hide(LIBRARY[format])
    else:
        pytest.importorskip(LIBRARY[format])
    encoder = made(**KINDS[kind])
    if (format, kind) == ("timm", "swiglu"):
        with pytest.raises(sd.InputError, match="--to timm holds no encoder with swiglu: take --to hf"):
            export(encoder, tmp_path / "out", format=format)
        return
    proof = export(encoder, tmp_path / "out", format=format).proof
    assert not list(tmp_path.glob(".writing*"))
    assert proof.tensors == proof.all_tensors == len(encoder.state_dict().keys() - {"mask_token"})
    if library == "installed":
        assert proof.by.startswith(LIBRARY[format])
        assert proof.sizes == ((32, 48) if kind in TAKES_ANY_SIZE[format] else (32,))
        assert proof.photograph is not None and proof.photograph < 2e-3  # rounded pixels
    for side in proof.sizes:
        images = torch.randn(2, 3, side, side)
        with torch.no_grad():
            found = FORMATS[format].read(encoder, tmp_path / "out").tokens(images)
            torch.testing.assert_close(found, every_token(encoder)(images), atol=CLOSE, rtol=0)
    if format == "hf":
        images = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(load_encoder(tmp_path / "out")(images).cls, encoder(images).cls)


@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels_goes_to_the_layout_of_transformers_and_back(
    channels: int, tmp_path: Path, hide: Callable[[str], None]
) -> None:
    hide("transformers")
    encoder = made(Preprocess(resize=40, crop=32, channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels))
    assert export(encoder, tmp_path / "out", format="hf").proof.difference < CLOSE
    assert load_encoder(tmp_path / "out").in_chans == channels


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.extra("onnxscript"))])
@pytest.mark.parametrize(("name", "settings"), PROGRAMS)
def test_a_program_gives_the_tokens_of_any_number_of_images_of_any_size(
    format: str, name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    about = replace(ABOUT, resize=72, crop=64) if name.startswith("timm:") else ABOUT
    encoder = made(about, name=name, **settings)
    proof = export(encoder, tmp_path / "out", format=format).proof
    assert proof.tensors == proof.all_tensors and len(proof.sizes) == 2 and proof.images == 6
    tokens = FORMATS[format].read(encoder, tmp_path / "out").tokens
    for shape in ((1, 3, 64, 64), (5, 3, 32, 32), (2, 3, 96, 64)):
        if name.startswith("timm:") and 32 in shape:
            continue  # see SMALLEST
        images = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(tokens(images), every_token(encoder)(images), atol=CLOSE, rtol=0)
    assert Preprocess(**json.loads((tmp_path / "out" / "preprocess.json").read_text())).crop == about.crop


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.extra("onnxscript"))])
@pytest.mark.parametrize(("settings", "size"), [({}, 48), ({"positions": "offset"}, None)])
def test_the_size_of_a_program_can_be_fixed_and_is_where_positions_ask_for_it(
    format: str, settings: dict[str, Any], size: int | None, tmp_path: Path
) -> None:
    encoder = made(**settings)
    assert export(encoder, tmp_path / "out", format=format, image_size=size).proof.sizes == (size or 32,)
    tokens = FORMATS[format].read(encoder, tmp_path / "out").tokens
    with pytest.raises(Exception, match=r"[Gg]uard failed|invalid dimensions"):
        tokens(torch.randn(1, 3, 64, 64))


def test_a_path_of_an_encoder_is_taken_and_the_command_does_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "encoder.safetensors"
    save_encoder(made(), where)
    assert export(str(where), str(tmp_path / "hf"), format="hf").out == str(tmp_path / "hf")
    main(["export", str(where), "--to", "hf", "--out", str(tmp_path / "again"), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert (answer["out"], answer["format"], answer["url"]) == (str(tmp_path / "again"), "hf", None)
    for file in (tmp_path / "hf").iterdir():
        if file.name != "README.md":  # which names the folder
            assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "words", "told"),
    [
        ({}, {"format": "hff"}, "--to 'hff' must be hf or timm or onnx or torch; did you mean hf?"),
        ({"name": "crate_nano"}, {"format": "hf"}, "--to hf holds no crate_nano: export a ViT of ours"),
        ({"patch_embed": "dual_norm"}, {"format": "timm"}, "--to timm holds no encoder with the patch embedding"),
        ({}, {"format": "hf", "image_size": 32}, "--image-size says nothing to --to hf"),
        ({}, {"format": "torch", "image_size": 30}, "--image-size 30 is not a multiple of the encoder's patches of 8"),
        ({}, {"format": "hf", "private": True}, "--private is for --push: without it nothing is sent"),
        ({}, {"format": "hf", "push": "mine"}, "--push 'mine' must be ORG/NAME"),
        ({}, {"format": "hf", "push": "a/b--c"}, "--push 'a/b--c' must be ORG/NAME"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    settings: dict[str, Any], words: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(sd.InputError, match=re.escape(told)) as caught:
        export(made(**settings), tmp_path / "out", **words)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_anything_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(sd.InputError, match="is not empty: give another folder"):
        export(made(), tmp_path, format="hf")


def toy(**wrong: Any) -> Format:
    """A format that is one file of weights; `wrong` replaces parts of what is read back."""

    def write(encoder: Encoder, folder: Path, image_size: int | None) -> None:
        save_file(encoder.state_dict(), folder / "weights.safetensors")

    def read(encoder: Encoder, folder: Path) -> ReadBack:
        copy, tensors = made(), load_file(folder / "weights.safetensors")
        copy.load_state_dict(tensors)
        return replace(ReadBack(by="a toy", tokens=every_token(copy), names=tensors), **wrong)

    return Format(text="a toy", write=write, read=read, usage='cls = patches = "FOLDER"')


def test_a_toy_format_is_one_entry_and_wrong_files_never_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "toy", toy())
    export(made(), tmp_path / "good", format="toy")
    assert {path.name for path in (tmp_path / "good").iterdir()} == {"README.md", "weights.safetensors"}
    near = made()
    nn.init.constant_(near.get_parameter("norm.bias"), 3e-4)
    for wrong in (
        {"tokens": torch.zeros_like}, {"tokens": every_token(near)}, {"names": ["norm.weight"]},
        {"tokens": lambda images: every_token(made())(images) * torch.nan},
        {"tokens": lambda images: every_token(made())(images) * (torch.nan if images.shape[-1] > 32 else 1)},
        {"prepare": lambda _: torch.zeros(1, 3, 32, 32)},
    ):  # fmt: skip
        monkeypatch.setitem(FORMATS, "toy", toy(**wrong))
        with pytest.raises(RuntimeError, match="what was written is not the encoder"):
            export(made(), tmp_path / "bad", format="toy")
        assert [path.name for path in tmp_path.iterdir()] == ["good"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "format",
    [
        pytest.param("hf", marks=pytest.mark.extra("transformers")),
        pytest.param("timm", marks=pytest.mark.extra("timm")),
        pytest.param("onnx", marks=[pytest.mark.extra("onnxscript"), pytest.mark.extra("onnxruntime")]),
        "torch",
    ],
)
@pytest.mark.parametrize("channels", [3, 1])
def test_the_code_on_the_card_gives_the_encoders_tokens_of_a_photograph(
    format: str, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = Preprocess(resize=40, crop=32, channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels)
    encoder = made(about=about, registers=2)
    monkeypatch.chdir(tmp_path)
    export(encoder, "exported", format=format)
    with Image.open(photographs(tmp_path)[0]) as picture:
        (picture.convert("L") if channels == 1 else picture).save("photo.jpg")
    text = Path("exported/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "simdino" not in code
    found: dict[str, Any] = {}
    with torch.no_grad():
        exec(code, found)
    expected = encoder(encoder.transform("photo.jpg")[None])
    for name in ("cls", "patches"):
        torch.testing.assert_close(torch.as_tensor(found[name]), getattr(expected, name), atol=0.05, rtol=0)
    assert (torch.as_tensor(found["cls"]) - expected.cls).abs().max() < 2e-3


@pytest.mark.slow
def test_the_card_of_a_run_tells_its_data_recipe_curve_and_scores(tmp_path: Path) -> None:
    run = sd.pretrain("digits", tmp_path / "run", encoder="vit_toy", steps=6, log=lambda _: None)
    sd.evaluate.knn(tmp_path / "run", "digits", k=5, baselines=False)
    proof = export(tmp_path / "run", tmp_path / "out", format="torch", license="mit").proof
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("---\nlicense: mit\n") and text.endswith("## Licence\n\nmit\n")
    assert str(proof) in text and run.verdict.sentence in text
    assert "- Recipe: simdino, 6 steps of" in text and "images of digits" in text
    assert "| 0 |" in text and "| 6 |" in text and "- knn on digits:" in text
    del run
    other = export(tmp_path / "run", tmp_path / "other", format="hf")
    assert "license" not in (tmp_path / "other" / "README.md").read_text() and other.url is None


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub's API does to a login, a new repository and a commit, and keeps what it was sent."""

    refuses = False
    private = True
    asked: list[tuple[str, str]]
    files: dict[str, bytes]
    made: list[dict[str, Any]]

    def answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        type(self).asked.append(("GET", self.path))
        self.answer(
            {
                "name": "me",
                "type": "user",
                "orgs": [],
                "siblings": [],
                "id": "me/encoder",
                "sha": "0" * 40,
                "private": type(self).private,
            }
        )

    def do_POST(self) -> None:
        type(self).asked.append(("POST", self.path))
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if type(self).refuses:
            self.answer({"error": "no room"}, 403)
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer({"files": [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for one in files
            ]})  # fmt: skip
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    type(self).files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {
                    "commitUrl": f"http://{self.headers['Host']}/me/encoder/commit/{'0' * 40}",
                    "commitOid": "0" * 40,
                    "success": True,
                }
            )
        else:
            if self.path == "/api/repos/create":
                type(self).made.append(json.loads(body))
            self.answer({"url": f"http://{self.headers['Host']}/me/encoder"})

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub of this machine, at which somebody has logged in."""
    own = type("Own", (Hub,), {"asked": [], "files": {}, "made": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    yield own
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.extra("huggingface_hub")
def test_a_folder_is_sent_to_the_hub_when_a_person_asks_and_never_else(tmp_path: Path, hub: type[Hub]) -> None:
    export(made(), tmp_path / "quiet", format="hf")
    assert not hub.asked
    done = export(made(), tmp_path / "out", format="hf", push="me/encoder", private=True)
    (made_there,) = hub.made
    assert made_there["name"] == "encoder" and (made_there.get("private") or made_there["visibility"] == "private")
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert (
        done.url is not None
        and done.url.endswith("me/encoder")
        and 'from_pretrained("me/encoder")' in ((tmp_path / "out" / "README.md").read_text())
    )


@pytest.mark.slow
@pytest.mark.extra("huggingface_hub")
def test_a_hub_that_refuses_is_told_in_one_line_and_the_folder_stays(tmp_path: Path, hub: type[Hub]) -> None:
    hub.refuses = True
    with pytest.raises(sd.InputError, match=r"^--push me/encoder: nothing was sent: .*stays$") as caught:
        export(made(), tmp_path / "out", format="hf", push="me/encoder")
    assert "\n" not in str(caught.value) and (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.extra("huggingface_hub")
def test_what_is_private_does_not_go_where_everybody_sees_it(tmp_path: Path, hub: type[Hub]) -> None:
    hub.private = False
    with pytest.raises(sd.InputError, match="nothing was sent: the repository is there and everybody sees it"):
        export(made(), tmp_path / "out", format="hf", push="me/encoder", private=True)
    assert not hub.files


@pytest.mark.extra("huggingface_hub")
def test_without_a_login_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(sd.InputError, match="nobody has logged in to the hub here: run `hf auth login`"):
        export(made(), tmp_path / "out", format="hf", push="me/encoder")
    assert not list(tmp_path.iterdir())


def test_an_encoder_of_no_run_has_no_run_on_its_card(tmp_path: Path) -> None:
    assert card.run_of(None) is None and card.run_of(tmp_path) is None
    write_metadata(tmp_path)
    for name in ("classifier.safetensors", "encoder-best.safetensors", "encoder.safetensors"):
        assert card.run_of(tmp_path / name) is None  # it has no numbers yet
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert card.run_of(tmp_path) is not None and card.run_of(tmp_path / "encoder.safetensors") is not None
    assert card.run_of(tmp_path / "classifier.safetensors") is None and card.run_of(Path("timm:x")) is None
