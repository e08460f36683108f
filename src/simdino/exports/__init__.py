"""Encoders in the layouts of other libraries.

    sd.export("runs/photos", "photos-hf/", format="hf")

To add one, write its file with a FORMAT and put its name into FILES. The room is not called `export`, which is the
function's name in `simdino`: a submodule would hide it.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from simdino.errors import InputError
from simdino.exports.format import Format
from simdino.exports.proof import Proof, prove
from simdino.extras import optional
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.files import beside, check_free_place, named_in_errors
from simdino.keywords import Option
from simdino.result import Result
from simdino.settings import Range
from simdino.text import nearest

if TYPE_CHECKING:
    from simdino.models.encoder import Encoder

FILES = ("hf", "timm", "onnx", "torch")
FORMATS: dict[str, Format] = {name: import_module(f"simdino.exports.{name}").FORMAT for name in FILES}

SIZE = Range(at_least=1, at_most=2**16)


def list_formats() -> list[str]:
    """Return the names of the formats that `export` writes."""
    return list(FORMATS)


@dataclass(frozen=True, kw_only=True)
class Exported(Result):
    """A folder that was written, the proof that it holds the encoder, and the address that it was sent to."""

    out: str
    format: str
    proof: Proof
    url: str | None = None

    def __str__(self) -> str:
        sent = "" if self.url is None else f"\nsent to {self.url}"
        return f"{self.proof}\nwrote {FORMATS[self.format].text} to {self.out}{sent}"


def export(
    encoder: Encoder | str | Path, out: str | Path, *,
    format: str, image_size: int | None = None, license: str | None = None, push: str | None = None,
    private: bool = False,
) -> Exported:  # fmt: skip
    """Write an encoder for another library, with a card (README.md) that says what it is and how to load it.

    Args:
        encoder: one, or whatever `load_encoder` takes. Of a run folder the card tells data, recipe, curve and scores.
        out: a new folder, or an empty one.
        format: of `list_formats()`.
        image_size: the side in pixels that a program's images have; None: any multiple of a patch.
        license: the name of the weights' licence, for the card.
        push: ORG/NAME on the Hugging Face hub, where the folder is sent too.
        private: whether only its owner sees a repository that this makes.

    The files are read back, by the library itself where it is installed, and must give the encoder's tokens within
    1e-4 before they appear at `out`. Raises InputError for an unknown format, an encoder that it cannot hold, a folder
    that holds anything and a hub that refuses; RuntimeError where the tokens differ, and nothing is left."""
    from simdino.exports import card
    from simdino.exports import push as hub
    from simdino.models.weights import load_encoder

    folder = Path(out)
    chosen = checked_format(format, image_size)
    check_free_place(folder, option="--out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--out {folder} is not empty: give another folder")
    if push is not None:
        hub.check_name(push)
    elif private:
        raise InputError("--private is for --push: without it nothing is sent")
    where = Path(encoder) if isinstance(encoder, str | Path) else None
    model = load_encoder(encoder) if isinstance(encoder, str | Path) else copy.deepcopy(encoder).float().cpu()
    run = card.run_of(where)
    with named_in_errors(folder, option="--out"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = beside(folder)
        aside.mkdir()
        try:
            chosen.write(model, aside, image_size)
            proof = prove(model, aside, chosen, image_size=image_size)
            text = card.card(model, chosen, proof, run=run, license=license, folder=folder, push=push)
            (aside / "README.md").write_text(text, encoding="utf-8")
            aside.replace(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    url = None if push is None else hub.push(folder, push, private=private)
    return Exported(out=str(folder), format=format, proof=proof, url=url)


def checked_format(name: str, image_size: int | None) -> Format:
    """Return a format by its name. Raises InputError for an unknown one, a missing package, and a size that it does
    not fix."""
    if name not in FORMATS:
        raise InputError(f"--to {name!r} must be {' or '.join(FORMATS)}{nearest(name, FORMATS)}")
    chosen = FORMATS[name]
    if image_size is not None and not chosen.fixes_size:
        raise InputError(f"--image-size says nothing to --to {name}, which takes images of any size: leave it out")
    for package in chosen.needs:
        optional(package)
    return chosen


def export_to(
    encoder: str, *,
    to: Annotated[str, Option(f"Layout: {', '.join(f'{name} ({one.text})' for name, one in FORMATS.items())}.")],
    out: Annotated[Path, Option("New folder to write to.")],
    image_size: Annotated[int | None, Option(
        "Side in pixels of the images that onnx and torch then take.", SIZE, default="any multiple of a patch"
    )] = None,
    license: Annotated[str | None, Option("Licence of the weights, for the card, such as mit.")] = None,
    push: Annotated[str | None, Option("ORG/NAME on the Hugging Face hub, to send the folder to.")] = None,
    private: Annotated[bool, Option("Let its owner alone see a repository that --push makes.")] = False,
    log: Log = to_stderr, progress: Progress = no_bar,
) -> Exported:  # fmt: skip
    """Write ENCODER (a run folder, a file of weights, hf:NAME) for another library. The files are read back and
    compared with the encoder before they appear; README.md beside them says what it is and how to load it."""
    return export(encoder, out, format=to, image_size=image_size, license=license, push=push, private=private)
