"""Encoders in the layouts of other libraries.

    sd.export("runs/photos", "photos-hf/", format="hf")

To add one, write its file with a FORMAT and put its name into FILES. The room is not called `export`, which is the
function's name in `simdino`: a submodule would hide it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from simdino.errors import InputError
from simdino.exports.format import Format, every_token
from simdino.feedback import Log, Progress, no_bar, to_stderr
from simdino.files import beside, check_free_place, named_in_errors
from simdino.keywords import Option
from simdino.result import Result
from simdino.text import nearest

if TYPE_CHECKING:
    from simdino.models.encoder import Encoder

FILES = ("hf", "timm", "torch")
FORMATS: dict[str, Format] = {name: import_module(f"simdino.exports.{name}").FORMAT for name in FILES}

CLOSE = 1e-3  # the largest difference of a token's number that rounding may make, where tokens are near 1


def list_formats() -> list[str]:
    """Return the names of the formats that `export` writes."""
    return list(FORMATS)


def export(encoder: Encoder | str | Path, out: str | Path, *, format: str) -> Path:
    """Write an encoder for another library, and return the folder.

    encoder: one, or whatever `load_encoder` takes. out: a new folder, or an empty one. format: of `list_formats()`.
    The files are read back, by the library itself where it is installed, and must give the same tokens before they
    appear at `out`. Raises InputError for an unknown format, an encoder that it cannot hold, and a folder that holds
    anything."""
    from simdino.models.weights import load_encoder

    folder = Path(out)
    if format not in FORMATS:
        raise InputError(f"--to {format!r} must be {' or '.join(FORMATS)}{nearest(format, FORMATS)}")
    check_free_place(folder, option="--out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--out {folder} is not empty: give another folder")
    model = load_encoder(encoder) if isinstance(encoder, str | Path) else encoder
    with named_in_errors(folder, option="--out"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = beside(folder)
        aside.mkdir()
        try:
            FORMATS[format].write(model, aside)
            check_same(model, aside, format)
            aside.replace(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


@dataclass(frozen=True, kw_only=True)
class Exported(Result):
    """A folder that was written."""

    out: str
    format: str

    def __str__(self) -> str:
        return f"wrote {FORMATS[self.format].text} to {self.out}"


def export_to(
    encoder: str, *,
    to: Annotated[str, Option(f"Layout: {', '.join(f'{name} ({one.text})' for name, one in FORMATS.items())}.")],
    out: Annotated[Path, Option("New folder to write to.")],
    log: Log = to_stderr, progress: Progress = no_bar,
) -> Exported:  # fmt: skip
    """Write ENCODER (a run folder, a file of weights, hf:NAME) for another library. The files are read back and
    compared with the encoder before they appear."""
    return Exported(out=str(export(encoder, out, format=to)), format=to)


def check_same(encoder: Encoder, folder: Path, format: str) -> None:
    """Raise RuntimeError where the files give other tokens of two random images than the encoder."""
    import torch

    from simdino.models.encoder import evaluating

    size = encoder.preprocess.crop
    images = torch.randn(2, encoder.in_chans, size, size, generator=torch.Generator().manual_seed(0))
    with evaluating(encoder), torch.no_grad():
        expected = every_token(encoder)(images.to(encoder.device)).float().cpu()
        found = FORMATS[format].read(encoder, folder)(images).float()
    if found.shape != expected.shape or float((found - expected).abs().max()) > CLOSE * float(expected.std()):
        raise RuntimeError(f"what was written for {format} does not give the encoder's tokens: nothing was exported")
